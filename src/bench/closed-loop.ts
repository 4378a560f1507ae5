/** Keeps a fixed number of requests in flight until all have been sent: the closed-loop workload. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { RequestRecord } from './request-record.js';

/** Requests sent in one turn of the event loop at the start, so that answers are read in between. */
const SENDS_PER_TURN = 8;

/**
 * Calls `send(i)` for i in 0 .. count - 1, at most `concurrency` at a time, in order, and returns the
 * records in the order of i. `onDone` sees each record as it ends. Once `signal` is aborted nothing
 * more is sent, and the records are those of the requests that were.
 */
export async function closedLoop(options: {
  count: number;
  concurrency: number;
  send: (index: number) => Promise<RequestRecord>;
  onDone?: (record: RequestRecord, index: number) => void;
  signal?: AbortSignal;
}): Promise<RequestRecord[]> {
  const { count, concurrency, send, onDone, signal } = options;
  const records: RequestRecord[] = [];
  let next = 0;
  const lane = async () => {
    while (next < count && !signal?.aborted) {
      const index = next++;
      records[index] = await send(index);
      onDone?.(records[index], index);
    }
  };
  const lanes: Promise<void>[] = [];
  while (lanes.length < Math.min(concurrency, count)) {
    lanes.push(lane());
    if (lanes.length % SENDS_PER_TURN === 0) await nextTurn();
  }
  await Promise.all(lanes);
  return records;
}
