/**
 * The steps on their way through the executor, oldest first. With an executor that overlaps there
 * are two: while one runs, the next is made and waits behind it, so that the device is never idle
 * while the host thinks. Any other executor has computed a step when `submit` returns.
 */
import type { ModelRunner, StepBatch, StepResult } from '../backend/backend.js';
import { now } from './api.js';
import type { Share } from './step-share.js';

export interface CollectedStep {
  shares: readonly Share[];
  numTokens: number;
  /** Valid until the next step is collected. */
  result: StepResult;
}

export class StepPipeline {
  /** Milliseconds spent in the executor, waiting for it included, since this was last set to 0. */
  runMs = 0;
  readonly #depth: number;
  readonly #submit: (batch: StepBatch) => void;
  readonly #collect: () => StepResult;
  readonly #inFlight: Omit<CollectedStep, 'result'>[] = [];

  constructor(runner: ModelRunner) {
    if (runner.overlaps) {
      this.#depth = 2;
      this.#submit = (batch) => runner.submit!(batch);
      this.#collect = () => runner.collect!();
    } else {
      let result: StepResult;
      this.#depth = 1;
      this.#submit = (batch) => {
        result = runner.step(batch);
      };
      this.#collect = () => result;
    }
  }

  /** Whether a step is submitted before the result of the one before it is collected. */
  get overlaps(): boolean {
    return this.#depth > 1;
  }

  get isEmpty(): boolean {
    return this.#inFlight.length === 0;
  }

  get isFull(): boolean {
    return this.#inFlight.length === this.#depth;
  }

  /** Throws what the executor throws; then nothing was submitted, and `shareOut` not called. */
  submit(batch: StepBatch, shareOut: () => readonly Share[]): void {
    const start = now();
    try {
      this.#submit(batch);
    } finally {
      this.runMs += now() - start;
    }
    this.#inFlight.push({ shares: shareOut(), numTokens: batch.numTokens });
  }

  /** The oldest step, once it is done. An exception is one of the device, which has lost the step. */
  collect(): CollectedStep {
    const start = now();
    const result = this.#collect();
    this.runMs += now() - start;
    return { ...this.#inFlight.shift()!, result };
  }
}
