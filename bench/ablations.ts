/**
 * What each step in the history of serving is worth on this machine: the same mixed workload under
 * the scheduling policies servers had before, each a setting of the real engine.
 *
 *     npm run build && node dist/bench/ablations.js [--model DIR] [--requests 200] [--runs 3]
 *         [--request-rate R] [--kv-cache-memory BYTES] [--threads N] [--seed N] [--output-json FILE]
 *
 * The workload: short prompts, half of them behind one of two shared system prompts, and one in ten
 * a long document; answers of 16 to 200 tokens. First all requests come at once, which shows how much
 * can be served; then as a Poisson process, by default at 70 % of the rate the full engine reached,
 * which shows how long users wait. All policies get the same requests at the same times, and the same
 * memory for the KV cache. Latencies count from the intended arrival. Runs go round-robin over the
 * policies, each on a fresh engine; medians with (least - most).
 */
import { writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { SeededRandom } from '../src/bench/seeded-random.js';
import { mean, median, percentile } from '../src/bench/statistics.js';
import { cell, textTable } from '../src/bench/text-table.js';
import { type Engine, now } from '../src/engine/api.js';
import type { EngineOptions } from '../src/engine/engine-options.js';
import { samplingParams } from '../src/engine/sampling-params.js';
import { startEngine } from '../src/engine/start-engine.js';
import { root } from '../test/helpers/root.js';

type Policy = Pick<
  EngineOptions,
  | 'maxNumSeqs'
  | 'maxNumBatchedTokens'
  | 'batching'
  | 'enableChunkedPrefill'
  | 'enablePrefixCaching'
  | 'kvReservation'
>;

const MAX_MODEL_LEN = 2048;
/** Whole prompts need steps as long as the longest; chunks do with less. */
const WHOLE = { enableChunkedPrefill: false, maxNumBatchedTokens: MAX_MODEL_LEN };
const CHUNKED = { enableChunkedPrefill: true, maxNumBatchedTokens: 512 };

const POLICIES: Readonly<Record<string, Policy>> = {
  'one at a time': { ...WHOLE, maxNumSeqs: 1, enablePrefixCaching: false },
  'static batches': { ...WHOLE, maxNumSeqs: 64, enablePrefixCaching: false, batching: 'static' },
  'continuous batching': { ...WHOLE, maxNumSeqs: 64, enablePrefixCaching: false },
  '+ chunked prefill': { ...CHUNKED, maxNumSeqs: 64, enablePrefixCaching: false },
  '+ prefix caching': { ...CHUNKED, maxNumSeqs: 64, enablePrefixCaching: true },
  'that, worst-case KV': {
    ...{ ...CHUNKED, maxNumSeqs: 64, enablePrefixCaching: true },
    kvReservation: 'worst-case',
  },
};
/** The policy that sets the rate. */
const FULL = '+ prefix caching';
const RATE_SHARE = 0.7;

const { values: flags } = parseArgs({
  options: {
    model: { type: 'string', default: `${root}models/stories-7m` },
    requests: { type: 'string', default: '200' },
    runs: { type: 'string', default: '3' },
    'request-rate': { type: 'string' },
    // Eight sequences of the longest length, or forty of a usual one.
    'kv-cache-memory': { type: 'string', default: String(64 * 2 ** 20) },
    threads: { type: 'string' },
    seed: { type: 'string', default: '0' },
    'output-json': { type: 'string' },
  },
});

interface Job {
  prompt: number[];
  outputTokens: number;
  /** Seconds after the start, at one request a second. */
  arrival: number;
}

interface Result {
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

async function main(): Promise<void> {
  const rate = flags['request-rate'] ? Number(flags['request-rate']) : await findRate();
  const empty = () => Object.keys(POLICIES).map((name): [string, Result[]] => [name, []]);
  const [atOnce, atRate] = [new Map(empty()), new Map(empty())];
  for (let run = 0; run < Number(flags.runs); run++) {
    const jobs = makeJobs(Number(flags.seed) + run);
    for (const [name, policy] of Object.entries(POLICIES)) {
      for (const [results, speed] of [
        [atOnce, Infinity],
        [atRate, rate],
      ] as const) {
        results.get(name)!.push(await withEngine(policy, (engine) => measure(engine, jobs, speed)));
      }
    }
  }
  console.log(`\nall at once\n${table(atOnce, ['tokensPerSecond', 'e2e50', 'e2e99'])}`);
  const latencies = ['ttft50', 'ttft99', 'itl50', 'itl99', 'e2e50', 'e2e99'] as const;
  console.log(`\nat ${cell(rate)} requests a second\n${table(atRate, latencies)}`);
  if (flags['output-json']) {
    const report = {
      ...{ rate, policies: POLICIES },
      ...{ atOnce: Object.fromEntries(atOnce), atRate: Object.fromEntries(atRate) },
    };
    writeFileSync(flags['output-json'], `${JSON.stringify(report, null, 1)}\n`);
  }
}

/** Requests per second that are well within what the full engine can do. */
async function findRate(): Promise<number> {
  const jobs = makeJobs(Number(flags.seed));
  const output = jobs.reduce((sum, { outputTokens }) => sum + outputTokens, 0);
  const all = await withEngine(POLICIES[FULL], (engine) => measure(engine, jobs, Infinity));
  return (RATE_SHARE * all.tokensPerSecond * jobs.length) / output;
}

/** Starts an engine under `policy`, warms it up and hands it to `use`. */
async function withEngine<T>(policy: Policy, use: (engine: Engine) => Promise<T>): Promise<T> {
  const engine = await startEngine({
    ...policy,
    model: flags.model,
    maxModelLen: MAX_MODEL_LEN,
    kvCacheMemory: Number(flags['kv-cache-memory']),
    threads: flags.threads === undefined ? undefined : Number(flags.threads),
  });
  try {
    const warmup = Array.from({ length: 4 }, () => ({
      prompt: Array.from({ length: 64 }, (_, i) => i + 100),
      ...{ outputTokens: 16, arrival: 0 },
    }));
    await measure(engine, warmup, Infinity);
    return await use(engine);
  } finally {
    await engine.close();
  }
}

function makeJobs(seed: number): Job[] {
  const random = new SeededRandom(seed);
  const tokens = (count: number) => Array.from({ length: count }, () => random.integer(10, 4096));
  const systemPrompts = [tokens(320), tokens(200)];
  let arrival = 0;
  return Array.from({ length: Number(flags.requests) }, () => {
    arrival += random.exponential();
    const kind = random.next();
    const prompt =
      kind < 0.1
        ? tokens(random.integer(1000, 1600))
        : kind < 0.55
          ? [...systemPrompts[random.integer(0, 2)], ...tokens(random.integer(10, 80))]
          : tokens(random.integer(10, 120));
    return { prompt, outputTokens: random.integer(16, 201), arrival };
  });
}

async function measure(engine: Engine, jobs: readonly Job[], rate: number): Promise<Result> {
  const before = engine.stats();
  const running: number[] = [];
  const stop = engine.onStep(({ stats }) => running.push(stats.running));
  const params = (maxTokens: number) =>
    samplingParams({ temperature: 0, maxTokens, ignoreEos: true }, engine.info);
  const start = now();
  const served = await Promise.all(
    jobs.map(async ({ prompt, outputTokens, arrival }, i) => {
      const intended = start + (arrival / rate) * 1000;
      if (intended > now()) await sleep(intended - now());
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

const TITLES = {
  tokensPerSecond: 'output tok/s',
  ...{ ttft50: 'TTFT p50 ms', ttft99: 'TTFT p99', itl50: 'ITL p50 ms', itl99: 'ITL p99' },
  ...{ e2e50: 'E2E p50 ms', e2e99: 'E2E p99' },
} as const;

function table(
  results: ReadonlyMap<string, readonly Result[]>,
  measures: readonly (keyof typeof TITLES)[],
): string {
  const titles = measures.map((measure) => TITLES[measure]);
  const header = ['policy', ...titles, 'running', 'cached', 'preempted'];
  const rows = [...results].map(([name, runs]) => {
    const of = (key: keyof Result) => runs.map((run) => run[key]);
    const spread = (key: keyof Result) => {
      if (runs.length === 1) return cell(runs[0][key]);
      const [least, most] = [Math.min(...of(key)), Math.max(...of(key))];
      return `${cell(median(of(key)))} (${cell(least)} - ${cell(most)})`;
    };
    return [
      name,
      ...measures.map(spread),
      cell(median(of('running'))),
      `${cell(100 * median(of('cached')))}%`,
      cell(median(of('preemptions'))),
    ];
  });
  return textTable(header, rows);
}

await main();
