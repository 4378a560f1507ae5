/**
 * What the load generator can drive on one core, against a minimal server in another process.
 *
 *     npm run build && node dist/bench/client-capacity.js [--seconds 5] [--runs 3]
 *
 * The capacity is tokens (requests) a second of the client's CPU time: what it would reach with a
 * core to itself and a server fast enough, which on two cores no Node server is. Every token
 * comes in a TCP segment of its own. The floor asked of it: 50,000 tokens/s, or 2,000 requests/s
 * of short streams.
 */
import { spawn } from 'node:child_process';
import { parseArgs } from 'node:util';
import { arrivalTimes } from '../src/bench/arrivals.js';
import { runLoad } from '../src/bench/load.js';
import { SeededRandom } from '../src/bench/seeded-random.js';
import { median } from '../src/bench/statistics.js';
import { Target } from '../src/bench/target.js';
import { cell, textTable } from '../src/bench/text-table.js';
import { randomWorkload } from '../src/bench/workloads/random.js';

const { values: flags } = parseArgs({
  options: { seconds: { type: 'string', default: '5' }, runs: { type: 'string', default: '3' } },
});

interface Case {
  name: string;
  tokens: number;
  /** ms between the tokens of a stream. */
  interval: number;
  /** Requests a second, Poisson. */
  rate: number;
}

const CASES: Case[] = [
  { name: 'long streams: 400 tokens', tokens: 400, interval: 10, rate: 130 },
  { name: 'short streams: 8 tokens', tokens: 8, interval: 4, rate: 2000 },
];

async function measure({ tokens, interval, rate }: Case) {
  const server = spawn(
    process.execPath,
    [new URL('./token-firehose.js', import.meta.url).pathname, String(tokens), String(interval)],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const port = await new Promise<string>((resolve) =>
    server.stdout.once('data', (line) => resolve(String(line).trim())),
  );
  const target = new Target({
    url: `http://127.0.0.1:${port}`,
    endpoint: '/v1/completions',
    model: 'firehose',
    extraBody: {},
    timeout: 60_000,
  });
  const fixed = (value: number) => ({ kind: 'fixed', value }) as const;
  const count = Math.round(rate * Number(flags.seconds));
  const { requests } = randomWorkload({
    count,
    seed: 0,
    input: fixed(64),
    output: fixed(tokens),
    vocabulary: { low: 300, high: 2000 },
    prefixTokens: 0,
    prefixShare: 0,
    prefixes: 1,
  });
  const times = arrivalTimes(count, { rate, burstiness: 1 }, new SeededRandom(0));
  const load = { count, request: (index: number) => requests[index], times };
  // Half a second at the same pace: what comes after is compiled and connected.
  const warmUp = times.slice(0, Math.ceil(rate / 2));
  await runLoad({ ...load, count: warmUp.length, times: warmUp }, target);
  const before = process.cpuUsage();
  const start = performance.now();
  const { records, health } = await runLoad(load, target);
  const seconds = (performance.now() - start) / 1000;
  const cpu = process.cpuUsage(before);
  server.kill();
  target.close();
  const failed = records.filter((record) => record.error).length;
  if (failed > 0)
    throw new Error(`${failed} requests failed: ${records.find((r) => r.error)?.error?.message}`);
  const cpuSeconds = (cpu.user + cpu.system) / 1e6;
  return {
    tokenRate: (count * tokens) / seconds,
    requestRate: count / seconds,
    share: cpuSeconds / seconds,
    tokenCapacity: (count * tokens) / cpuSeconds,
    requestCapacity: count / cpuSeconds,
    late: health.lateP99,
  };
}

const rows: string[][] = [];
for (const one of CASES) {
  const runs: Awaited<ReturnType<typeof measure>>[] = [];
  for (let i = 0; i < Number(flags.runs); i++) runs.push(await measure(one));
  const middle = (key: keyof (typeof runs)[number]) => median(runs.map((run) => run[key]));
  rows.push([
    one.name,
    cell(middle('tokenRate')),
    cell(middle('requestRate')),
    `${cell(middle('share') * 100)} %`,
    cell(middle('late'), ' ms'),
    cell(middle('tokenCapacity')),
    cell(middle('requestCapacity')),
  ]);
}
console.log(
  textTable(
    ['', 'tok/s', 'req/s', 'of a core', 'late p99', 'tok/s per core', 'req/s per core'],
    rows,
  ),
);
