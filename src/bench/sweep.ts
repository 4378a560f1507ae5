/**
 * From idle to saturation: one request at a time, then everything at once for the saturation
 * throughput, then open loops at rates in between, until one is too much.
 */
import { setTimeout as pause } from 'node:timers/promises';
import { now } from '../engine/api.js';
import { arrivalTimes } from './arrivals.js';
import { type LoadRun, runLoad } from './load.js';
import { rises } from './over-saturation.js';
import type { RequestRecord } from './request-record.js';
import { SeededRandom } from './seeded-random.js';
import { summarize } from './summary.js';
import type { Target } from './target.js';
import type { WorkloadRequest } from './workloads/workload.js';

export interface SweepOptions {
  target: Target;
  /** Taken in order, from the start again when they run out. */
  requests: readonly WorkloadRequest[];
  points: number;
  /** Seconds a point. */
  seconds: number;
  burstiness: number;
  /** In flight while saturating. */
  saturatingConcurrency: number;
  seed: number;
  signal?: AbortSignal;
  /** A point begins, of `count` requests (NaN where nobody knows); returns what watches it. */
  onPoint?: (name: string, count: number, times?: readonly number[]) => PointWatch;
}

/** Sees a point's requests come and go. */
export interface PointWatch {
  onSend: () => void;
  onTokens: (count: number) => void;
  onDone: (record: RequestRecord) => void;
  end: () => void;
}

export interface MeasuredPoint extends LoadRun {
  name: string;
  rate: number | null;
  overSaturated: boolean;
}

/** ms between two looks at the queue. */
const LOOK = 100;
/** Rates offered go up to this multiple of the saturation throughput, to show what is past it. */
const PAST_SATURATION = 1.1;
/** Seconds before a queue's growth is believed. */
const MIN_SECONDS = 3;
/** A closed loop that has too few answers goes on for this many times its seconds at most. */
const PATIENCE = 4;
/**
 * A queue grows without bound only if a good share of what arrives stays: this share of the
 * requests sent, and a few at least. A queue that fluctuates does not grow with their number.
 */
const MIN_LEFT_SHARE = 0.05;
const MIN_LEFT = 4;
/** ms for the server to clear away what was cut off. */
const SETTLE = 250;

/** Failures, beside those in flight, without one answer: then a closed loop would only hammer. */
const HOPELESS = 16;

/**
 * Yields each point as it is done. Ends after the first over-saturated one, when nothing is answered,
 * or when aborted.
 */
export async function* sweep(options: SweepOptions): AsyncGenerator<MeasuredPoint> {
  const { requests, points, seconds, burstiness, saturatingConcurrency, seed, signal } = options;
  // Each point goes on in the list where the one before it ended: prompts seen before would be
  // found in the server's prefix cache.
  let used = 0;
  const draw = (index: number) => requests[(used + index) % requests.length];
  const settled = async (point: MeasuredPoint) => {
    used += point.records.length;
    await pause(SETTLE);
    return point;
  };
  const idle = await settled(await closedPoint(options, 'idle', draw, 1));
  yield idle;
  if (signal?.aborted || !idle.records.some(({ error }) => !error)) return;
  const saturated = await settled(
    await closedPoint(options, 'saturated', draw, saturatingConcurrency),
  );
  yield saturated;
  const most = summarize(saturated.records).steady.requests.value;
  const { steady, latencies } = summarize(idle.records);
  const least = steady.requests.value;
  const idleTtft = latencies.ttft.percentiles[50];
  if (!(most > 0)) return;
  const low = Math.min(least, most / points);
  for (let i = 0; i < points && !signal?.aborted; i++) {
    const share = points === 1 ? 0.5 : i / (points - 1);
    const rate = low + (PAST_SATURATION * most - low) * share;
    const count = Math.max(20, Math.ceil(rate * seconds));
    const times = arrivalTimes(count, { rate, burstiness }, new SeededRandom(seed, 10 + i));
    const point = await settled(await openPoint(options, draw, rate, times, idleTtft));
    yield point;
    if (point.overSaturated) return;
  }
}

type Draw = (index: number) => WorkloadRequest;

async function closedPoint(
  options: SweepOptions,
  name: string,
  request: Draw,
  concurrency: number,
): Promise<MeasuredPoint> {
  const { target, signal, seconds } = options;
  // As many as fit the time; a deadline, not a count, because nobody knows the speed yet.
  const controller = new AbortController();
  const deadline = now() + seconds * 1000;
  const watch = options.onPoint?.(name, Number.NaN);
  const unlink = linkAbort(controller, signal);
  const enough = 2 * concurrency + 8;
  let done = 0;
  let answered = 0;
  const load = { count: Number.MAX_SAFE_INTEGER, request, maxConcurrency: concurrency };
  const timer = setInterval(() => {
    const tooMuch = now() > deadline + PATIENCE * seconds * 1000;
    if ((now() > deadline && done >= enough) || tooMuch) controller.abort();
  }, LOOK);
  const run = await runLoad(load, target, {
    signal: controller.signal,
    observer: {
      onSend: watch?.onSend,
      onTokens: watch?.onTokens,
      onDone: (record) => {
        done++;
        if (!record.error) answered++;
        if (answered === 0 && done >= HOPELESS + concurrency) controller.abort();
        watch?.onDone(record);
      },
    },
  });
  clearInterval(timer);
  unlink();
  watch?.end();
  return { ...run, records: finished(run.records), name, rate: null, overSaturated: false };
}

async function openPoint(
  options: SweepOptions,
  request: Draw,
  rate: number,
  times: readonly number[],
  idleTtft: number,
): Promise<MeasuredPoint> {
  const { target, signal } = options;
  const name = `${rate.toPrecision(3)} req/s`;
  const controller = new AbortController();
  const unlink = linkAbort(controller, signal);
  const watch = options.onPoint?.(name, times.length, times);
  const concurrency: number[] = [];
  const ttft: number[] = [];
  const start = now();
  let inFlight = 0;
  let sent = 0;
  let overSaturated = false;
  const timer = setInterval(() => {
    const elapsed = now() - start;
    // After the last arrival the queue only shrinks; that says nothing.
    if (elapsed > times[times.length - 1]) return;
    concurrency.push(inFlight);
    const left = Math.max(MIN_LEFT, MIN_LEFT_SHARE * sent);
    if (elapsed > MIN_SECONDS * 1000 && rises(concurrency, left) && rises(ttft, idleTtft)) {
      overSaturated = true;
      controller.abort();
    }
  }, LOOK);
  const run = await runLoad({ count: times.length, request, times }, target, {
    signal: controller.signal,
    observer: {
      onSend: () => {
        inFlight++;
        sent++;
        watch?.onSend();
      },
      onFirstToken: (value) => ttft.push(value),
      onTokens: watch?.onTokens,
      onDone: (record) => {
        inFlight--;
        watch?.onDone(record);
      },
    },
  });
  clearInterval(timer);
  unlink();
  watch?.end();
  return { ...run, records: finished(run.records), name, rate, overSaturated };
}

/** What was cut off at the end of a point is no failure of the server. */
function finished(records: readonly RequestRecord[]): RequestRecord[] {
  return records.filter((record) => record.error?.kind !== 'aborted');
}

function linkAbort(controller: AbortController, signal?: AbortSignal): () => void {
  const abort = () => controller.abort();
  signal?.addEventListener('abort', abort);
  if (signal?.aborted) abort();
  return () => signal?.removeEventListener('abort', abort);
}
