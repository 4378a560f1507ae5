/**
 * What a step costs besides the kernels: schedule, build the batch, take the results, publish, hand
 * over to the caller's thread. The runner computes nothing.
 *
 *     npm run build && node dist/bench/engine-step.js [--seqs 64] [--context 512] [--steps 4000]
 *         [--overlap] [--device-ms 1]
 *
 * loop: from the end of one runner call to the beginning of the next, the whole cost of the engine's
 * thread. hand-over: from the end of the runner call until the caller has the last token of the
 * step. A step takes `--device-ms`, asleep, so that, as with a model, the two threads don't wait for
 * each other. With --overlap the runner is a device with a queue: a step begins when the one before
 * is done and it is there. idle: how long the device had nothing to do before a step, which is what
 * the host's work costs then. (A sleep ends some 60 us late, so that much more is hidden.)
 */
import { parseArgs } from 'node:util';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import {
  MAX_LOGPROBS,
  type ModelRunner,
  type StepBatch,
  type StepResult,
} from '../src/backend/backend.js';
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
  overlap: boolean;
  deviceMs: number;
  /** Times written by the engine's thread: begin and end of each runner call, and the device's idle time. */
  times: Float64Array<SharedArrayBuffer>;
}

const TIMES = 3;

async function main(): Promise<void> {
  const { values: flags } = parseArgs({
    options: {
      seqs: { type: 'string', default: '64' },
      context: { type: 'string', default: '512' },
      steps: { type: 'string', default: '4000' },
      overlap: { type: 'boolean', default: false },
      'device-ms': { type: 'string', default: '1' },
    },
  });
  const [seqs, context, steps] = [flags.seqs, flags.context, flags.steps].map(Number);
  const times = new Float64Array(
    new SharedArrayBuffer(8 * TIMES * (steps + WARM_UP + seqs * context)),
  );
  const { overlap } = flags;
  const setup: Setup = {
    seqs,
    context,
    steps,
    overlap,
    deviceMs: Number(flags['device-ms']),
    times,
  };
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
  const idle: number[] = [];
  const ahead = overlap ? 2 : 1;
  for (let step = last - Math.min(steps, decodes - WARM_UP); step <= last - ahead; step++) {
    loop.push((times[TIMES * (step + ahead)] - times[TIMES * step + 1]) * 1000);
    handOver.push((received[step] - times[TIMES * step + 1]) * 1000);
    idle.push(times[TIMES * step + 2] * 1000);
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
        ...(overlap ? [['idle', ...quantiles(idle)]] : []),
      ],
    ),
  );
}

function quantiles(samples: number[]): string[] {
  const sorted = samples.toSorted((a, b) => a - b);
  return [0.1, 0.5, 0.9, 0.99].map((q) => sorted[Math.floor(q * (sorted.length - 1))].toFixed(0));
}

function serve({ seqs, context, steps, overlap, deviceMs, times }: Setup): void {
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
  const runner = new SleepingRunner(info.maxNumBatchedTokens, deviceMs, times);
  if (overlap) runner.overlaps = true;
  const core = new EngineCore(runner, { ...info, schedulingPolicy: 'fcfs', eosTokenIds: [2] });
  serveEngine(parentPort!, core, () => {});
  parentPort!.postMessage({ type: 'ready', info });
}

class SleepingRunner implements ModelRunner {
  readonly memory = { weights: 0, workspace: 0, kvCache: 0 };
  readonly description = 'computes nothing';
  overlaps?: true;
  readonly #deviceMs: number;
  readonly #times: Float64Array;
  readonly #result: StepResult;
  readonly #sleeper = new Int32Array(new SharedArrayBuffer(4));
  /** When the device will be done with each uncollected step, and with all it was ever given. */
  readonly #ends: number[] = [];
  #free = 0;
  #submitted = 0;
  #collected = 0;

  constructor(rows: number, deviceMs: number, times: Float64Array) {
    this.#deviceMs = deviceMs;
    this.#times = times;
    this.#result = {
      tokens: new Int32Array(rows),
      logprobs: new Float32Array(rows),
      ranks: new Int32Array(rows),
      topTokens: new Int32Array(rows * MAX_LOGPROBS),
      topLogprobs: new Float32Array(rows * MAX_LOGPROBS),
    };
  }

  step(batch: StepBatch): StepResult {
    this.submit(batch);
    return this.collect();
  }

  submit({ numRows }: StepBatch): void {
    const time = now();
    const step = this.#submitted++;
    this.#times[TIMES * step] = time;
    this.#times[TIMES * step + 2] = Math.max(0, time - this.#free);
    this.#free = Math.max(time, this.#free) + this.#deviceMs;
    this.#ends.push(this.#free);
    const { tokens } = this.#result;
    for (let row = 0; row < numRows; row++) tokens[row] = 3 + ((step * 31 + row) % 1000);
  }

  collect(): StepResult {
    const wait = this.#ends.shift()! - now();
    if (wait > 0) Atomics.wait(this.#sleeper, 0, 0, wait);
    this.#times[TIMES * this.#collected++ + 1] = now();
    return this.#result;
  }

  close(): void {}
}

if (isMainThread) await main();
else serve(workerData as Setup);
