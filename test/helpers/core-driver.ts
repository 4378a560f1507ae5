/** An engine core on a fake runner, with what every request got. */
import type { Delta, Finish } from '../../src/engine/api.js';
import { EngineCore, type EngineCoreOptions } from '../../src/engine/engine-core.js';
import { type SamplingParams, samplingParams } from '../../src/engine/sampling-params.js';
import { readDeltas, type StepOutput } from '../../src/engine/step-output.js';
import { FakeRunner, type FakeRunnerOptions } from './fake-runner.js';
import { OverlappingRunner } from './overlapping-runner.js';

export interface Choice {
  tokens: number[];
  deltas: Delta[];
  finish?: Finish;
  /** Step of the first token, counted from the driver's start. */
  firstStep: number;
}

export const VOCAB = 64;

export type DriverOptions = Partial<EngineCoreOptions> &
  Pick<FakeRunnerOptions, 'nanToken' | 'throwToken'> & {
    /** The runner overlaps. Default false. */
    overlap?: boolean;
  };

export class CoreDriver {
  readonly options: EngineCoreOptions;
  readonly runner: FakeRunner;
  /** What the core runs, if it overlaps. */
  readonly overlapping?: OverlappingRunner;
  readonly core: EngineCore;
  readonly choices = new Map<string, Choice>();
  steps = 0;
  last?: StepOutput;
  #handles = 0;

  constructor({ nanToken, throwToken, overlap, ...given }: DriverOptions = {}) {
    this.options = {
      numBlocks: 64,
      blockSize: 16,
      maxModelLen: 256,
      maxNumSeqs: 8,
      maxNumBatchedTokens: 64,
      enablePrefixCaching: true,
      schedulingPolicy: 'fcfs',
      eosTokenIds: [],
      ...given,
    };
    this.runner = new FakeRunner({
      ...this.options,
      maxTokens: this.options.maxNumBatchedTokens,
      maxSeqs: this.options.maxNumSeqs,
      vocabSize: VOCAB,
      nanToken,
      throwToken,
    });
    if (overlap) {
      this.overlapping = new OverlappingRunner(this.runner, (batch, previousRows) =>
        this.runner.check(batch, previousRows),
      );
    }
    this.core = new EngineCore(this.overlapping ?? this.runner, this.options);
  }

  /** Adds a request, greedy unless said otherwise; returns its handle. */
  add(
    prompt: readonly number[],
    params: Partial<SamplingParams> = {},
    { priority = 0, cacheSalt = '' } = {},
  ): number {
    const handle = this.#handles++;
    const complete = samplingParams(
      { temperature: 0, ...params },
      { vocabSize: VOCAB, maxNumSeqs: this.options.maxNumSeqs },
    );
    for (let index = 0; index < complete.n; index++) {
      this.choices.set(`${handle}.${index}`, { tokens: [], deltas: [], firstStep: 0 });
    }
    this.core.add({
      handle,
      prompt: Int32Array.from(prompt),
      params: complete,
      priority,
      cacheSalt,
      arrival: 1,
    });
    return handle;
  }

  choice(handle: number, index = 0): Choice {
    return this.choices.get(`${handle}.${index}`)!;
  }

  /** One step, with its invariants checked. */
  step(): StepOutput {
    const output = this.core.step();
    this.last = output;
    this.steps++;
    this.core.verify();
    readDeltas(output, (handle, delta) => {
      const choice = this.choice(handle, delta.index);
      if (choice.finish) throw new Error(`delta after the finish of ${handle}.${delta.index}`);
      if (choice.tokens.length === 0) choice.firstStep = this.steps;
      choice.tokens.push(...delta.tokens);
      choice.deltas.push(delta);
      choice.finish = delta.finish;
    });
    return output;
  }

  /** Steps until nothing is left to do. Batches that can only be incomplete are started as such. */
  run(most = 100_000): void {
    for (let i = 0; this.core.hasWork || this.core.isGathering; i++) {
      if (i === most) throw new Error(`not done after ${most} steps`);
      this.core.startIncompleteBatch();
      this.step();
    }
  }
}
