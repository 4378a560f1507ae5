/** What the traces have in common: lengths and times without text. */
import { SeededRandom } from '../seeded-random.js';
import { randomIds } from './random.js';
import type { TokenRange, Workload, WorkloadRequest } from './workload.js';

export interface TraceOptions {
  seed: number;
  vocabulary: TokenRange;
}

/** One row: arrival in ms on any clock, and lengths in tokens. */
export interface TraceRow {
  at: number;
  inputTokens: number;
  outputTokens: number;
}

/** Streams of the seed start here, one for each row. */
const PROMPTS = 2_000_000;

/**
 * Requests with the rows' lengths and times, counted from the earliest, in the order of arrival.
 * Rows without input or output were failures when they were recorded; they are left out.
 */
export function traceWorkload(
  name: string,
  rows: readonly TraceRow[],
  options: TraceOptions,
  prompt?: (row: TraceRow, index: number) => number[],
): Workload {
  const usable = rows.filter((row) => row.inputTokens > 0 && row.outputTokens > 0);
  const start = usable.reduce((least, row) => Math.min(least, row.at), Number.POSITIVE_INFINITY);
  const { seed, vocabulary } = options;
  const requests = usable.map((row, index): WorkloadRequest => {
    const random = () =>
      randomIds(row.inputTokens, vocabulary, new SeededRandom(seed, PROMPTS + index));
    return {
      at: row.at - start,
      inputTokens: row.inputTokens,
      outputTokens: row.outputTokens,
      prompt: prompt ? () => prompt(row, index) : random,
    };
  });
  requests.sort((a, b) => (a.at as number) - (b.at as number));
  const left = rows.length - usable.length;
  return { name, requests, notes: left === 0 ? [] : [`${left} rows without tokens left out`] };
}
