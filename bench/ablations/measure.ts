/** One run of a workload on an engine: what was served, and how long its users waited. */
import { setTimeout as sleep } from 'node:timers/promises';
import { mean, median, percentile } from '../../src/bench/statistics.js';
import { type Engine, now } from '../../src/engine/api.js';
import { samplingParams } from '../../src/engine/sampling-params.js';
import type { Job } from './workload.js';

export interface Result {
  /** Output tokens per second from the first arrival to the last token. */
  tokensPerSecond: number;
  /** Milliseconds. */
  ttft50: number;
  ttft99: number;
  itl50: number;
  itl99: number;
  e2e50: number;
  e2e99: number;
  /** Mean over the steps. */
  running: number;
  /** Share of prompt tokens that were not computed. */
  cached: number;
  preemptions: number;
}

/** Serves `jobs` at `rate` requests a second. Rejects if `signal` aborts first. */
export async function measure(
  engine: Engine,
  jobs: readonly Job[],
  rate: number,
  signal: AbortSignal,
): Promise<Result> {
  const before = engine.stats();
  const running: number[] = [];
  const stop = engine.onStep(({ stats }) => running.push(stats.running));
  const params = (maxTokens: number) =>
    samplingParams({ temperature: 0, maxTokens, ignoreEos: true }, engine.info);
  const start = now();
  const serving = Promise.all(
    jobs.map(async ({ prompt, outputTokens, arrival }, i) => {
      const intended = start + (arrival / rate) * 1000;
      if (intended > now()) await sleep(intended - now(), undefined, { signal });
      const times: number[] = [];
      let cached = 0;
      await new Promise<void>((resolve, reject) => {
        const request = { id: `${start}-${i}`, prompt, params: params(outputTokens) };
        engine.generate({ ...request, arrivalMs: intended }, ({ tokens, finish }) => {
          const at = now();
          for (const _ of tokens) times.push(at);
          if (!finish) return;
          cached = finish.cachedTokens;
          if (finish.reason === 'length') resolve();
          else reject(new Error(`a request ended with ${finish.reason}`));
        });
      });
      return { intended, times, cached };
    }),
  );
  const served = await Promise.race([serving, rejectOnAbort(signal)]);
  stop();
  const ttft = served.map(({ intended, times }) => times[0] - intended);
  const e2e = served.map(({ intended, times }) => times[times.length - 1] - intended);
  const gaps = served.flatMap(({ times }) => times.slice(1).map((at, i) => at - times[i]));
  const end = Math.max(...served.map(({ times }) => times[times.length - 1]));
  const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
  return {
    tokensPerSecond: (1000 * sum(jobs.map((job) => job.outputTokens))) / (end - start),
    ttft50: median(ttft),
    ttft99: percentile(ttft, 99),
    itl50: median(gaps),
    itl99: percentile(gaps, 99),
    e2e50: median(e2e),
    e2e99: percentile(e2e, 99),
    running: mean(running),
    cached: sum(served.map((one) => one.cached)) / sum(jobs.map((job) => job.prompt.length)),
    preemptions: engine.stats().preemptions - before.preemptions,
  };
}

function rejectOnAbort(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    signal.throwIfAborted();
    signal.addEventListener('abort', () => reject(signal.reason), { once: true });
  });
}
