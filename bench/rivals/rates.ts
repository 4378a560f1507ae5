/** Rates of one run from the times of its tokens. */
import type { Streams } from './contender.js';

export interface Rates {
  /** Output tokens per second while every stream decodes: from the last first token to the first end. */
  decode: number;
  /** Output tokens per second from handing over the prompts to the last token. */
  endToEnd: number;
  /** Prompt tokens per second until the last first token. */
  prefill: number;
}

/** NaN for `decode` where the streams never all decode at the same time. */
export function rates({ start, times }: Streams, promptTokens: number): Rates {
  const lastFirst = Math.max(...times.map((stream) => stream[0]));
  const firstEnd = Math.min(...times.map((stream) => stream[stream.length - 1]));
  const end = Math.max(...times.map((stream) => stream[stream.length - 1]));
  const all = times.flat();
  const steady = all.filter((at) => at > lastFirst && at <= firstEnd).length;
  return {
    decode: firstEnd > lastFirst ? (steady / (firstEnd - lastFirst)) * 1000 : Number.NaN,
    endToEnd: (all.length / (end - start)) * 1000,
    prefill: (promptTokens / (lastFirst - start)) * 1000,
  };
}

/**
 * The rate end to end of a run in which each stream generates `outputTokens` instead of the
 * `trialTokens` of this one: what is longer goes at the rate of decoding.
 */
export function lengthened(
  { decode, endToEnd }: Rates,
  trialTokens: number,
  outputTokens: number,
): number {
  if (Number.isNaN(decode)) return endToEnd;
  const more = (outputTokens - trialTokens) / decode;
  return outputTokens / (trialTokens / endToEnd + more);
}
