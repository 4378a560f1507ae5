/** The run over time: requests in flight and tokens a second, in equal slices. */
import type { RequestRecord } from './request-record.js';

export interface Timeline {
  /** Width of a slice, seconds. */
  step: number;
  /** Mean number of requests in flight in each slice. */
  concurrency: number[];
  /** Output tokens a second in each slice. */
  tokens: number[];
}

const MAX_SLICES = 240;

export function timeline(records: readonly RequestRecord[], start: number, end: number): Timeline {
  const seconds = Math.max(1e-3, (end - start) / 1000);
  const step = Math.max(0.1, Math.ceil((seconds / MAX_SLICES) * 10) / 10);
  const slices = Math.ceil(seconds / step);
  const concurrency: number[] = new Array(slices).fill(0);
  const tokens: number[] = new Array(slices).fill(0);
  const slice = (time: number) => Math.min(slices - 1, (time - start) / 1000 / step);
  for (const record of records) {
    const from = slice(record.sent);
    const to = slice(record.end);
    for (let i = Math.floor(from); i <= to && i < slices; i++) {
      concurrency[i] += Math.min(to, i + 1) - Math.max(from, i);
    }
    for (const time of record.tokenTimes) tokens[Math.floor(slice(time))] += 1 / step;
  }
  return { step, concurrency, tokens };
}
