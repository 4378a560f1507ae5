/**
 * Sends requests at their intended times whatever the server does: the open-loop workload. A
 * server that stalls meets the requests that came meanwhile, which a closed loop would never send
 * (the "coordinated omission" of Gil Tene's "How NOT to measure latency").
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { now } from '../engine/api.js';
import { Pacer } from './pacer.js';
import type { RequestRecord } from './request-record.js';

/** Overdue requests sent before the event loop may read answers again. */
const SENDS_PER_TURN = 4;

export interface OpenLoopOptions {
  /** Intended times in ms from the start, ascending. */
  times: readonly number[];
  /** At most so many in flight; what is due waits, and its clock runs. Default: no limit. */
  maxConcurrency?: number;
  /** Makes request `index` ready, and returns what sends it. Called ahead of the time. */
  prepare: (index: number) => (intended: number) => Promise<RequestRecord>;
  onDone?: (record: RequestRecord, index: number) => void;
  /** How late a request was sent, in ms, for which only the client is to blame. */
  onSend?: (late: number) => void;
  signal?: AbortSignal;
}

/** Returns the records of the requests sent, in their order. */
export async function openLoop(options: OpenLoopOptions): Promise<RequestRecord[]> {
  const { times, maxConcurrency = Number.POSITIVE_INFINITY, prepare, onDone, onSend } = options;
  const { signal } = options;
  const records: RequestRecord[] = [];
  const pacer = await Pacer.start();
  let inFlight = 0;
  let freed: (() => void) | undefined;
  const ended: Promise<void>[] = [];
  const start = now();
  let overdue = 0;
  for (let index = 0; index < times.length && !signal?.aborted; index++) {
    const launch = prepare(index);
    const intended = start + times[index];
    if (now() < intended) {
      overdue = 0;
      await pacer.until(intended, signal);
    } else if (++overdue % SENDS_PER_TURN === 0) {
      await nextTurn();
    }
    let due = intended;
    if (inFlight >= maxConcurrency) {
      await new Promise<void>((resolve) => {
        freed = resolve;
      });
      due = Math.max(due, now());
    }
    if (signal?.aborted) break;
    onSend?.(now() - due);
    inFlight++;
    ended.push(
      launch(intended).then((record) => {
        records[index] = record;
        inFlight--;
        freed?.();
        freed = undefined;
        onDone?.(record, index);
      }),
    );
  }
  pacer.close();
  await Promise.all(ended);
  return records;
}
