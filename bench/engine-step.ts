/**
 * What a step costs besides the kernels: schedule, build the batch, take the results, publish, hand
 * over to the caller's thread. The runner computes nothing.
 *
 *     npm run build && node dist/bench/engine-step.js [--seqs 64] [--context 512] [--steps 4000]
 *
 * loop: from the end of one runner call to the beginning of the next, the whole cost of the engine's
 * thread. hand-over: from the end of the runner call until the caller has the last token of the
 * step. The runner sleeps 1 ms, so that, as with a model, the two threads don't wait for each other.
 */
import { parseArgs } from 'node:util';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import { MAX_LOGPROBS, type ModelRunner, type StepResult } from '../src/backend/backend.js';
import { textTable } from '../src/bench/text-table.js';
import { type EngineInfo, now } from '../src/engine/api.js';
import { EngineCore } from '../src/engine/engine-core.js';
import { serveEngine } from '../src/engine/engine-loop.js';
import { samplingParams } from '../src/engine/sampling-params.js';
import { connectEngine } from '../src/engine/start-engine.js';

const VOCAB = 50_000;
const WARM_UP = 500;

interface Setup {
  seqs: number;
  context: number;
  steps: number;
  /** Times written by the engine's thread: begin and end of each runner call. */
  times: Float64Array<SharedArrayBuffer>;
}

if (isMainThread) await main();
else serve(workerData as Setup);

async function main(): Promise<void> {
  const { values: flags } = parseArgs({
    options: {
      seqs: { type: 'string', default: '64' },
      context: { type: 'string', default: '512' },
      steps: { type: 'string', default: '4000' },
    },
  });
  const [seqs, context, steps] = [flags.seqs, flags.context, flags.steps].map(Number);
  const times = new Float64Array(new SharedArrayBuffer(16 * (steps + WARM_UP + context)));
  const setup: Setup = { seqs, context, steps, times };
  const worker = new Worker(new URL(import.meta.url), { workerData: setup });
  const engine = await connectEngine(worker);
  const received: number[] = [];
  let decodes = 0;
  engine.onStep(({ tokens }) => {
    received.push(now());
    if (tokens === seqs) decodes++;
  });
  const params = samplingParams({ maxTokens: WARM_UP + steps, temperature: 1 }, engine.info);
  for (let i = 0; i < seqs; i++) {
    const prompt = Array.from({ length: context }, (_, at) => (i * 7919 + at * 31) % VOCAB);
    engine.generate({ id: String(i), prompt, params }, () => {});
  }
  await engine.idle();
  await engine.close();

  const last = received.length - 1;
  const loop: number[] = [];
  const handOver: number[] = [];
  for (let step = last - Math.min(steps, decodes - WARM_UP); step < last; step++) {
    loop.push((times[2 * step + 2] - times[2 * step + 1]) * 1000);
    handOver.push((received[step] - times[2 * step + 1]) * 1000);
  }
  console.log(
    `${seqs} sequences, contexts of ${context} and more, ${loop.length} decode steps, us:`,
  );
  console.log(
    textTable(
      ['', 'p10', 'median', 'p90', 'p99'],
      [
        ['loop', ...quantiles(loop)],
        ['hand-over', ...quantiles(handOver)],
      ],
    ),
  );
}

function quantiles(samples: number[]): string[] {
  const sorted = samples.toSorted((a, b) => a - b);
  return [0.1, 0.5, 0.9, 0.99].map((q) => sorted[Math.floor(q * (sorted.length - 1))].toFixed(0));
}

function serve({ seqs, context, steps, times }: Setup): void {
  const blockSize = 16;
  const maxModelLen = context + WARM_UP + steps;
  const info: EngineInfo = {
    ...{ model: 'none', backend: 'none', dtype: 'none', plan: [], kvCacheBytes: 0 },
    ...{ vocabSize: VOCAB, blockSize, maxModelLen },
    numBlocks: seqs * Math.ceil(maxModelLen / blockSize),
    maxNumSeqs: seqs,
    maxNumBatchedTokens: Math.max(2048, seqs),
    enablePrefixCaching: true,
  };
  const runner = idleRunner(info.maxNumBatchedTokens, times);
  const core = new EngineCore(runner, { ...info, schedulingPolicy: 'fcfs', eosTokenIds: [2] });
  serveEngine(parentPort!, core, () => {});
  parentPort!.postMessage({ type: 'ready', info });
}

function idleRunner(rows: number, times: Float64Array): ModelRunner {
  const result: StepResult = {
    tokens: new Int32Array(rows),
    logprobs: new Float32Array(rows),
    ranks: new Int32Array(rows),
    topTokens: new Int32Array(rows * MAX_LOGPROBS),
    topLogprobs: new Float32Array(rows * MAX_LOGPROBS),
  };
  const sleeper = new Int32Array(new SharedArrayBuffer(4));
  let step = 0;
  return {
    memory: { weights: 0, workspace: 0, kvCache: 0 },
    description: 'computes nothing',
    step({ numRows }) {
      times[2 * step] = now();
      for (let row = 0; row < numRows; row++) result.tokens[row] = 3 + ((step * 31 + row) % 1000);
      Atomics.wait(sleeper, 0, 0, 1);
      times[2 * step++ + 1] = now();
      return result;
    },
    close() {},
  };
}
