/**
 * The part of a run in which the server was as busy as the workload makes it: from the first
 * answer's end, before which the server only fills up, to the last send, after which it only
 * empties.
 */
import { type Interval, middle95 } from './bootstrap.js';
import type { RequestRecord } from './request-record.js';
import { SeededRandom } from './seeded-random.js';

export interface SteadyWindow {
  /** ms of `now()`. */
  from: number;
  to: number;
  /** False if the run has no such part; the window is then the whole run. */
  steady: boolean;
  /** A second, within the window. */
  requests: Rate;
  outputTokens: Rate;
  /** Output tokens, and the prompt tokens of the requests whose first token came in the window. */
  totalTokens: Rate;
}

/** The interval is a bootstrap over equal slices of the window. */
export interface Rate {
  value: number;
  interval: Interval;
}

/** A window shorter than this share of the run says little. */
const MIN_SHARE = 0.2;
const SLICES = 20;
const RESAMPLES = 1000;

export function steadyWindow(
  records: readonly RequestRecord[],
  start: number,
  end: number,
): SteadyWindow {
  let from = Number.POSITIVE_INFINITY;
  let to = start;
  for (const record of records) {
    if (!record.error) from = Math.min(from, record.end);
    to = Math.max(to, record.sent);
  }
  const steady = to - from >= MIN_SHARE * (end - start);
  if (!steady) [from, to] = [start, end];

  const requests = new Float64Array(SLICES);
  const outputTokens = new Float64Array(SLICES);
  const totalTokens = new Float64Array(SLICES);
  const add = (slices: Float64Array, time: number, amount: number) => {
    if (time < from || time > to) return;
    const slice = Math.floor(((time - from) / (to - from)) * SLICES);
    slices[Math.min(SLICES - 1, slice)] += amount;
  };
  for (const record of records) {
    if (record.error) continue;
    add(requests, record.end, 1);
    const { tokenTimes } = record;
    // Where usage and stream disagree, usage is right about the number and the stream about when.
    const weight = record.outputTokens / tokenTimes.length;
    for (const time of tokenTimes) {
      add(outputTokens, time, weight);
      add(totalTokens, time, weight);
    }
    add(totalTokens, tokenTimes[0], record.promptTokens);
  }
  const sliceSeconds = (to - from) / 1000 / SLICES;
  return {
    from,
    to,
    steady,
    requests: rate(requests, sliceSeconds),
    outputTokens: rate(outputTokens, sliceSeconds),
    totalTokens: rate(totalTokens, sliceSeconds),
  };
}

function rate(slices: Float64Array, sliceSeconds: number): Rate {
  const random = new SeededRandom(0, 4);
  const scale = 1 / (slices.length * sliceSeconds);
  const replicates = Array.from({ length: RESAMPLES }, () => {
    let sum = 0;
    for (let i = 0; i < slices.length; i++) sum += slices[random.integer(0, slices.length)];
    return sum * scale;
  });
  const value = slices.reduce((sum, slice) => sum + slice, 0) * scale;
  return { value, interval: middle95(replicates) };
}
