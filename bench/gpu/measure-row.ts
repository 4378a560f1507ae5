/** Measures one row of floors.ts in a process of its own: what fails there fails alone. */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { costOfStep, type Machine, totalCost } from '../../src/backend/cost/cost.js';
import { type Device, loadBackend } from '../../src/backend/load-backend.js';
import { median } from '../../src/bench/statistics.js';
import { startServerProcess } from '../../src/cli/server-process.js';
import type { Engine } from '../../src/engine/api.js';
import type { EngineOptions } from '../../src/engine/engine-options.js';
import { startEngine } from '../../src/engine/start-engine.js';
import { loadModel } from '../../src/model/load-model.js';
import { bareDecoder } from './bare-steps.js';
import { watchCard } from './card-watch.js';
import type { ClientJob, ClientResult } from './http-clients.js';
import type { Job, Measured, Row } from './rows.js';
import { decodeInterval, type Lengths, runRequests, same, uniform } from './run-requests.js';

/** By the row's name; with `-kv8` and `-w8` it is the same with what the row says of its numbers. */
const MEASURES: Record<string, (job: Job) => Promise<Measured>> = {
  '1b-offline': (job) => offline(job, same(256, 128, 128)),
  '8b-offline': (job) => offline(job, same(256, 128, 128)),
  '8b-long': (job) => offline(job, same(512, 1000, 1000)),
  '0.6b-uniform': (job) => offline(job, uniform(256)),
  '8b-decode': decodeStep,
  '8b-prefill': prefill,
  '8b-fp8': quantized,
  host: hostWork,
  http,
};

if (process.send) {
  process.send('ready');
  const [job] = (await once(process, 'message')) as [Job];
  try {
    process.send({ measured: await measureOf(job.row)(job) });
  } catch (error) {
    process.send({ failure: (error as Error).stack ?? `${error}` });
  }
  process.disconnect();
}

function measureOf({ name }: Row): (job: Job) => Promise<Measured> {
  return MEASURES[name.replace(/-(kv8|w8)$/, '')];
}

function modelPath({ modelDir, row }: Job): string {
  return join(modelDir, row.shape);
}

function modelOf(job: Job, maxModelLen: number) {
  const { kvCacheDtype, quantization } = job.row;
  return {
    model: modelPath(job),
    kvCacheDtype,
    quantization,
    loadFormat: 'dummy',
    dtype: 'bfloat16',
    maxModelLen,
  } as const;
}

async function withEngine<T>(
  job: Job,
  maxModelLen: number,
  use: (engine: Engine) => Promise<T>,
  options: Partial<EngineOptions> = {},
): Promise<T> {
  const device = job.device as Device;
  const engine = await startEngine({ ...modelOf(job, maxModelLen), device, ...options });
  for (const line of engine.info.plan) console.error(`  ${line}`);
  try {
    return await use(engine);
  } finally {
    await engine.close();
  }
}

async function offline(job: Job, lengths: readonly Lengths[]): Promise<Measured> {
  const longest = Math.max(...lengths.map(({ input, output }) => input + output));
  return withEngine(job, longest, async (engine) => {
    // Every size of decode that the run will pass through, once.
    await runRequests(engine, same(lengths.length, 16, 16));
    const values: number[] = [];
    let steps = 0;
    const card = await watchCard(async () => {
      for (let run = 0; run < job.runs; run++) {
        const times = await runRequests(engine, lengths);
        steps = times.steps.length;
        values.push(times.outputTokens / times.total);
        progress(job, run, `${Math.round(values[run])} tok/s`);
      }
    });
    const { preemptions } = engine.stats();
    const notes = [`${steps} steps, ${preemptions} preemptions`, card];
    return { values, note: notes.filter(Boolean).join('; ') };
  });
}

/** How much faster with weights in fp8: two engines on one GPU take turns. */
async function quantized(job: Job): Promise<Measured> {
  const lengths = same(128, 128, 128);
  const { program } = loadModel(modelPath(job), modelOf(job, 256));
  const keys = program.kvLayers.reduce((sum, layer) => sum + layer.kvHeads * layer.headDim, 0);
  // Bytes of keys and values of all requests at once, and some to spare.
  const kvCacheMemory = Math.ceil(1.25 * lengths.length * 256 * keys * 2 * 2);
  const rates: { bf16: number[]; fp8: number[] } = { bf16: [], fp8: [] };
  await withEngine(
    job,
    256,
    (bf16) =>
      withEngine(
        job,
        256,
        async (fp8) => {
          const engines = { bf16, fp8 };
          for (let run = -1; run < job.runs; run++) {
            for (const name of ['bf16', 'fp8'] as const) {
              const { outputTokens, total } = await runRequests(engines[name], lengths);
              if (run < 0) continue;
              rates[name].push(outputTokens / total);
              progress(job, run, `${name} ${Math.round(outputTokens / total)} tok/s`);
            }
          }
        },
        { kvCacheMemory, quantization: 'fp8' },
      ),
    { kvCacheMemory },
  );
  const [bf16, fp8] = [rates.bf16, rates.fp8].map((list) => Math.round(median(list)));
  const values = rates.fp8.map((rate, run) => rate / rates.bf16[run]);
  return { values, note: `${fp8} tok/s in fp8, ${bf16} in bf16` };
}

/** The floor: a quarter more than matrices and keys and values take at the machine's limits. */
async function decodeStep(job: Job): Promise<Measured> {
  const [batch, context, output] = [64, 1024, 128];
  const { program, weights } = loadModel(modelPath(job), modelOf(job, context + output));
  const shape = { sequences: Array(batch).fill({ query: 1, context }), rows: batch };
  const costs = costOfStep(program, weights, shape);
  const linears = costs.filter(({ op }) => op.kind === 'linear');
  const gemms = linears.reduce((sum, cost) => sum + seconds(cost.flops, cost.weightBytes, job), 0);
  const keys = totalCost(costs).kvBytes / job.bytesPerSecond;
  const limit = (gemms + keys) * 1e3;
  const values = await withEngine(job, context + output, async (engine) => {
    const intervals: number[] = [];
    const lengths = same(batch, context - output / 2, output);
    await runRequests(engine, same(batch, 16, 32));
    for (let run = 0; run < job.runs; run++) {
      intervals.push(decodeInterval(await runRequests(engine, lengths), batch));
      progress(job, run, `${intervals[run].toFixed(2)} ms`);
    }
    return intervals;
  });
  const note = `limit ${limit.toFixed(2)} ms: matrices ${(gemms * 1e3).toFixed(2)}, keys and values ${(keys * 1e3).toFixed(2)}; ${(median(values) / limit).toFixed(2)} x`;
  return { values, floor: 1.25 * limit, note };
}

function seconds(flops: number, bytes: number, machine: Machine): number {
  return Math.max(flops / machine.flopsPerSecond, bytes / machine.bytesPerSecond);
}

async function prefill(job: Job): Promise<Measured> {
  const [count, input] = [8, 4096];
  const { program, weights } = loadModel(modelPath(job), modelOf(job, input + 16));
  const shape = { sequences: Array(count).fill({ query: input, context: input }), rows: count };
  const { flops } = totalCost(costOfStep(program, weights, shape));
  return withEngine(job, input + 16, async (engine) => {
    await runRequests(engine, same(count, input, 1));
    const values: number[] = [];
    const card = await watchCard(async () => {
      for (let run = 0; run < job.runs; run++) {
        const times = await runRequests(engine, same(count, input, 1));
        values.push(flops / times.prefill / 1e12);
        progress(job, run, `${Math.round((count * input) / times.prefill)} tok/s`);
      }
    });
    const share = (median(values) * 1e12) / job.flopsPerSecond;
    const notes = [`${(100 * share).toFixed(0)} % of ${job.flopsPerSecond / 1e12}`, card];
    const note = notes.filter(Boolean).join('; ');
    return { values, floor: (0.55 * job.flopsPerSecond) / 1e12, note };
  });
}

/** What the engine, its thread and its messages add to a step of the executor alone. */
async function hostWork(job: Job): Promise<Measured> {
  const [batch, first, count] = [64, 128, 128];
  const reported: number[] = [];
  const engines = await withEngine(job, first + count, async (engine) => {
    await runRequests(engine, same(batch, 16, 32));
    const intervals: number[] = [];
    for (let run = 0; run < job.runs; run++) {
      const times = await runRequests(engine, same(batch, first, count));
      intervals.push(decodeInterval(times, batch));
      reported.push(...times.steps.map(({ report }) => report.hostMs * 1e3));
    }
    return intervals;
  });
  const backend = await loadBackend({ device: job.device as Device });
  const model = loadModel(modelPath(job), modelOf(job, first + count));
  const decoder = bareDecoder(backend, model, { batch, first, count });
  const bare = engines.map(() => decoder.run());
  decoder.close();
  const least = median(bare);
  const note =
    `step ${median(engines).toFixed(3)} ms, of the executor alone ${least.toFixed(3)}; ` +
    `host busy ${median(reported).toFixed(0)} us a step`;
  return { values: engines.map((interval) => (interval - least) * 1e3), note };
}

/** Server and clients in processes of their own; the floor is 85 % of the row without HTTP. */
async function http(job: Job): Promise<Measured> {
  const [clients, input, output] = [256, 128, 128];
  const { config } = loadModel(modelPath(job), modelOf(job, input + output));
  const server = await startServerProcess([
    ...[modelPath(job), '--device', job.device, '--load-format', 'dummy', '--dtype', 'bfloat16'],
    ...['--skip-tokenizer-init', '--served-model-name', 'm', '--port', '0'],
    ...['--max-model-len', String(input + output)],
  ]);
  const processes = Math.max(1, Math.min(8, availableParallelism() - 2));
  const path = fileURLToPath(new URL('http-clients.js', import.meta.url));
  const children = Array.from({ length: processes }, () => fork(path));
  try {
    await Promise.all(children.map((child) => once(child, 'message')));
    const values: number[] = [];
    for (let run = -1; run < job.runs; run++) {
      const results = await Promise.all(
        children.map(async (child, n): Promise<ClientResult> => {
          const share = Math.floor(((n + 1) * clients) / processes);
          const mine = share - Math.floor((n * clients) / processes);
          const { vocabSize } = config;
          const seed = run * processes + n + 1000;
          const order: ClientJob = {
            ...{ url: server.url, clients: mine, input, output, vocabSize, seed },
          };
          child.send(order);
          const [result] = (await once(child, 'message')) as [ClientResult];
          if (result.failure) throw new Error(result.failure);
          return result;
        }),
      );
      const start = Math.min(...results.map((result) => result.start));
      const end = Math.max(...results.map((result) => result.end));
      const tokens = results.reduce((sum, result) => sum + result.tokens, 0);
      const rate = tokens / ((end - start) / 1000);
      if (run < 0) continue;
      values.push(rate);
      progress(job, run, `${Math.round(rate)} tok/s`);
    }
    return { values, note: `${processes} client processes` };
  } finally {
    for (const child of children) child.kill();
    await server.stop();
  }
}

function progress({ row, runs }: Job, run: number, what: string): void {
  console.error(`  ${row.name} ${run + 1}/${runs}: ${what}`);
}
