/** Sends one workload to one server and notes what happens. */
import { setMaxListeners } from 'node:events';
import { now } from '../engine/api.js';
import { ClientHealth, type HealthReport } from './client-health.js';
import { closedLoop } from './closed-loop.js';
import { openLoop } from './open-loop.js';
import type { RequestRecord } from './request-record.js';
import type { Target } from './target.js';
import type { WorkloadRequest } from './workloads/workload.js';

export interface Load {
  count: number;
  request: (index: number) => WorkloadRequest;
  /**
   * Intended times in ms from the start (open loop). Without them a new request is sent whenever
   * one ends (closed loop), and the first all at once.
   */
  times?: readonly number[];
  maxConcurrency?: number;
}

/** Calls in the order of events, for the live line and the sweep. */
export interface LoadObserver {
  onSend?: () => void;
  onFirstToken?: (ttft: number) => void;
  onTokens?: (count: number) => void;
  onDone?: (record: RequestRecord) => void;
}

export interface LoadRun {
  /** Of the requests sent, in their order. */
  records: RequestRecord[];
  health: HealthReport;
  /** The run was ended by `signal`. */
  aborted: boolean;
}

export async function runLoad(
  load: Load,
  target: Target,
  options: { signal?: AbortSignal; observer?: LoadObserver } = {},
): Promise<LoadRun> {
  const { count, request, times, maxConcurrency } = load;
  const { signal, observer } = options;
  if (signal) setMaxListeners(0, signal);
  const health = new ClientHealth();
  const prepare = (index: number) => {
    let intendedAt = 0;
    let started = false;
    const onTokens = (count: number) => {
      if (!started) observer?.onFirstToken?.(now() - intendedAt);
      started = true;
      observer?.onTokens?.(count);
    };
    const send = target.prepare(request(index), { signal, onTokens: observer && onTokens });
    return (intended: number) => {
      intendedAt = intended;
      observer?.onSend?.();
      return send(intended);
    };
  };
  const onDone = (record: RequestRecord) => {
    if (record.error?.kind === 'no_socket') health.noteNoSocket();
    observer?.onDone?.(record);
  };
  const records = times
    ? await openLoop({
        times,
        maxConcurrency,
        prepare,
        onDone,
        onSend: (late) => health.noteSend(late),
        signal,
      })
    : await closedLoop({
        count,
        concurrency: maxConcurrency ?? count,
        send: (index) => {
          const send = prepare(index);
          return send(now());
        },
        onDone,
        signal,
      });
  return { records, health: health.report(), aborted: signal?.aborted ?? false };
}
