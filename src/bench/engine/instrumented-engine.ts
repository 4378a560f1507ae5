/**
 * The engine core on an executor in this thread, with every step taken apart: host phases from the
 * step report, operation kinds from the executor's profile if it has one, and the step's shape,
 * from which the cost executor tells what it should have taken.
 */
import { MessageChannel, type MessagePort, receiveMessageOnPort } from 'node:worker_threads';
import type {
  Backend,
  KvCacheDtype,
  ModelRunner,
  StepBatch,
  StepResult,
} from '../../backend/backend.js';
import type { StepShape } from '../../backend/cost/cost.js';
import { now } from '../../engine/api.js';
import { EngineCore } from '../../engine/engine-core.js';
import { blockBytes, planRunner } from '../../engine/plan-runner.js';
import { samplingParams } from '../../engine/sampling-params.js';
import { readDeltas } from '../../engine/step-output.js';
import type { Program } from '../../model/program.js';
import type { WeightSource } from '../../model/weights.js';

export interface InstrumentedOptions {
  maxModelLen: number;
  maxNumSeqs: number;
  maxNumBatchedTokens: number;
  blockSize: number;
  /** Default `auto`. */
  kvCacheDtype?: KvCacheDtype;
}

/** Seconds of one step by what they went to; their sum is the step's duration. */
export interface Phases {
  schedule: number;
  build: number;
  /** The executor, its sampler included. */
  compute: number;
  /** Taking over the sampled tokens. */
  apply: number;
  /** Handing the step's tokens to the caller's thread. */
  publish: number;
}

export interface StepRecord {
  shape: StepShape;
  /** Tokens computed, and tokens generated. */
  tokens: number;
  generated: number;
  /** Requests that got their first token. */
  firsts: number;
  phases: Phases;
  /**
   * Seconds of each kind of operation, and of `sample` and `batch` (checks, plans, inputs, results);
   * empty if the executor has no profile.
   */
  operations: Record<string, number>;
}

/** Requests all at once, greedy, each `outputTokens` long. */
export interface Batch {
  prompts: readonly Int32Array[];
  outputTokens: number;
}

export class InstrumentedEngine {
  readonly description: string;
  readonly #program: Program;
  readonly #runner: ModelRunner;
  readonly #core: EngineCore;
  readonly #options: InstrumentedOptions;
  readonly #sender: MessagePort;
  readonly #receiver: MessagePort;
  #handles = 0;
  /** Of the steps submitted and not reported. */
  readonly #shapes: StepShape[] = [];
  /** In the executor, waiting for it included, during the current call of the core. */
  #computeMs = 0;

  /** Throws MemoryPlanError if `maxNumSeqs` sequences of `maxModelLen` do not fit into the memory. */
  constructor(
    backend: Backend,
    program: Program,
    weights: WeightSource,
    options: InstrumentedOptions,
  ) {
    const { maxModelLen, maxNumSeqs, maxNumBatchedTokens, blockSize } = options;
    const { kvCacheDtype = 'auto' } = options;
    const model = { program, weights };
    const sizes = { blockSize, maxModelLen, maxNumSeqs, maxNumBatchedTokens, kvCacheDtype };
    const numBlocks = maxNumSeqs * Math.ceil(maxModelLen / blockSize);
    planRunner(backend, model, {
      ...sizes,
      maxModelLenGiven: true,
      kvCacheMemory: numBlocks * blockBytes(backend, model, sizes),
    });
    this.#program = program;
    this.#options = options;
    this.#runner = backend.createRunner(program, weights, {
      ...{ blockSize, numBlocks, maxModelLen, kvCacheDtype },
      maxTokens: maxNumBatchedTokens,
      maxSeqs: maxNumSeqs,
    });
    this.description = this.#runner.description;
    this.#core = new EngineCore(
      {
        memory: this.#runner.memory,
        description: this.#runner.description,
        overlaps: this.#runner.overlaps,
        step: (batch) => this.#runStep(batch),
        submit: (batch) => this.#submit(batch),
        collect: () => this.#timed(() => this.#runner.collect!()),
        close: () => this.#runner.close(),
      },
      {
        ...{ numBlocks, blockSize, maxModelLen, maxNumSeqs, maxNumBatchedTokens },
        // The same prompts come again in every repetition, and must be computed again.
        enablePrefixCaching: false,
        schedulingPolicy: 'fcfs',
        eosTokenIds: [],
      },
    );
    const { port1, port2 } = new MessageChannel();
    this.#sender = port1;
    this.#receiver = port2;
  }

  /** Runs a batch to its end; returns its steps. Throws if a request ends otherwise than by length. */
  run({ prompts, outputTokens }: Batch): StepRecord[] {
    const params = samplingParams(
      { temperature: 0, maxTokens: outputTokens, ignoreEos: true },
      { vocabSize: this.#program.vocabSize, maxNumSeqs: this.#options.maxNumSeqs },
    );
    for (const prompt of prompts) {
      const handle = this.#handles++;
      this.#core.add({ handle, prompt, params, priority: 0, cacheSalt: '', arrival: now() });
    }
    const waiting = new Set(prompts.map((_, i) => this.#handles - prompts.length + i));
    const steps: StepRecord[] = [];
    while (this.#core.hasWork) steps.push(this.#step(waiting));
    return steps;
  }

  close(): void {
    this.#sender.close();
    this.#receiver.close();
    this.#runner.close();
  }

  #step(waiting: Set<number>): StepRecord {
    // Of an executor that overlaps, too, one call of the core collects the one step it reports.
    const before = this.#runner.profile?.() ?? {};
    this.#computeMs = 0;
    const output = this.#core.step();
    const after = this.#runner.profile?.() ?? {};
    // As the engine's thread hands a step out; taking it up is the other thread's work.
    const begin = now();
    this.#sender.postMessage({ type: 'step', output }, [output.deltas.buffer as ArrayBuffer]);
    const publish = (now() - begin) / 1000;
    const { message } = receiveMessageOnPort(this.#receiver)! as {
      message: { output: typeof output };
    };
    let generated = 0;
    let firsts = 0;
    readDeltas(message.output, (handle, { tokens, finish }) => {
      if (finish && finish.reason !== 'length') {
        throw new Error(`A request ended: ${finish.error?.message ?? finish.reason}`);
      }
      generated += tokens.length;
      if (tokens.length > 0 && waiting.delete(handle)) firsts++;
    });
    const { tokens, hostMs, scheduleMs, buildMs } = output.report;
    return {
      shape: this.#shapes.shift() ?? { sequences: [], rows: 0 },
      tokens,
      generated,
      firsts,
      phases: {
        schedule: scheduleMs / 1000,
        build: buildMs / 1000,
        compute: this.#computeMs / 1000,
        apply: (hostMs - scheduleMs - buildMs) / 1000,
        publish,
      },
      operations: Object.fromEntries(
        Object.keys(after).map((kind) => [kind, after[kind].seconds - before[kind].seconds]),
      ),
    };
  }

  #runStep(batch: StepBatch): StepResult {
    this.#shapes.push(shapeOf(batch));
    return this.#timed(() => this.#runner.step(batch));
  }

  #submit(batch: StepBatch): void {
    this.#shapes.push(shapeOf(batch));
    this.#timed(() => this.#runner.submit!(batch));
  }

  #timed<T>(use: () => T): T {
    const start = now();
    const result = use();
    this.#computeMs += now() - start;
    return result;
  }
}

function shapeOf(batch: StepBatch): StepShape {
  return {
    rows: batch.numRows,
    sequences: Array.from({ length: batch.numSeqs }, (_, seq) => ({
      query: batch.queryStart[seq + 1] - batch.queryStart[seq],
      context: batch.contextLens[seq],
    })),
  };
}

/** Duration of a step in seconds. */
export function duration({ phases }: StepRecord): number {
  return Object.values(phases).reduce((sum, seconds) => sum + seconds, 0);
}
