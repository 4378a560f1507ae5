/**
 * What each step in the history of serving is worth on this machine: the same mixed workload
 * (ablations/workload.ts) under the scheduling policies servers had before, each a setting of the
 * real engine.
 *
 *     npm run build && node dist/bench/ablations.js [--model DIR] [--requests 200] [--runs 3]
 *         [--request-rate R] [--kv-cache-memory BYTES] [--threads N] [--seed N] [--time-limit S]
 *         [--output-json FILE]
 *
 * First all requests come at once, which shows how much can be served; then as a Poisson process, by
 * default at 70 % of the rate the full engine reached, which shows how long users wait. A policy that
 * cannot keep up with that falls behind for as long as requests come: its tok/s stay below those asked
 * for, and its waits grow with --requests. All policies get the same requests at the same times, and
 * the same memory for the KV cache. Latencies count from the intended arrival. Runs go round-robin over
 * the policies, each on a fresh engine; medians with (least - most), and once more in Markdown.
 *
 * Three runs of stories-7m take some ten minutes on two cores. After --time-limit seconds (1800)
 * it stops where it is and reports what it has, with
 * exit code 1 if not every policy was measured once. Every measurement is a line of progress on stderr.
 */
import { setMaxListeners } from 'node:events';
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { cell } from '../src/bench/text-table.js';
import { type Engine, now } from '../src/engine/api.js';
import type { EngineOptions } from '../src/engine/engine-options.js';
import { startEngine } from '../src/engine/start-engine.js';
import { root } from '../test/helpers/root.js';
import { measure, type Result } from './ablations/measure.js';
import { markdownTable, spreadTables } from './ablations/report.js';
import { makeJobs } from './ablations/workload.js';

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
    'time-limit': { type: 'string', default: '1800' },
    'output-json': { type: 'string' },
  },
});
const runs = Number(flags.runs);
const outOfTime = AbortSignal.timeout(1000 * Number(flags['time-limit']));
setMaxListeners(0, outOfTime);

const empty = () => new Map(Object.keys(POLICIES).map((name): [string, Result[]] => [name, []]));
const [atOnce, atRate] = [empty(), empty()];
const offers = jobsOf(0);
const tokensPerRequest = offers.reduce((sum, job) => sum + job.outputTokens, 0) / offers.length;
let rate = Number(flags['request-rate'] ?? Number.NaN);

try {
  for (let run = 0; run < runs; run++) {
    await measureAll(run, 'all at once', atOnce, Number.POSITIVE_INFINITY);
    // Well within what the full engine can do.
    if (Number.isNaN(rate)) {
      rate = (RATE_SHARE * atOnce.get(FULL)![0].tokensPerSecond) / tokensPerRequest;
    }
    await measureAll(run, `at ${cell(rate)} req/s`, atRate, rate);
  }
} catch (error) {
  if (!outOfTime.aborted) throw error;
  console.error(`stopped after ${flags['time-limit']} s, the time limit`);
  if (atRate.get(FULL)!.length === 0) process.exitCode = 1;
}
const report = { rate, offered: rate * tokensPerRequest, atOnce, atRate };
console.log(`\n${spreadTables(report)}\n\n${markdownTable(report)}`);
if (flags['output-json']) {
  const json = {
    ...{ rate, policies: POLICIES },
    ...{ atOnce: Object.fromEntries(atOnce), atRate: Object.fromEntries(atRate) },
  };
  writeFileSync(flags['output-json'], `${JSON.stringify(json, null, 1)}\n`);
}

/** Every policy once. */
async function measureAll(
  run: number,
  half: string,
  results: ReadonlyMap<string, Result[]>,
  speed: number,
): Promise<void> {
  for (const [name, policy] of Object.entries(POLICIES)) {
    const start = now();
    const result = await withEngine(policy, (engine) =>
      measure(engine, jobsOf(run), speed, outOfTime),
    );
    results.get(name)!.push(result);
    const rateOf = cell(result.tokensPerSecond);
    const seconds = cell((now() - start) / 1000, ' s');
    console.error(`run ${run + 1}/${runs}, ${half}, ${name}: ${rateOf} tok/s, took ${seconds}`);
  }
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
    const prompt = Array.from({ length: 64 }, (_, i) => i + 100);
    const warmup = Array.from({ length: 4 }, () => ({ prompt, outputTokens: 16, arrival: 0 }));
    await measure(engine, warmup, Number.POSITIVE_INFINITY, outOfTime);
    return await use(engine);
  } finally {
    await engine.close();
  }
}

function jobsOf(run: number) {
  return makeJobs(Number(flags.requests), Number(flags.seed) + run);
}
