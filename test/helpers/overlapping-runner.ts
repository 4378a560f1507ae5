/**
 * A runner that overlaps, made of one that does not. It is as late as the contract allows: a step is
 * computed when it is collected, after the next one was submitted, and every result is destroyed
 * when the next is asked for. Steps run in the order they were submitted, as on a device's stream.
 */
import type { ModelRunner, StepBatch, StepResult } from '../../src/backend/backend.js';

export class OverlappingRunner implements ModelRunner {
  readonly overlaps = true;
  /** Steps that were submitted while another was uncollected, and rows they took tokens from. */
  overlapped = 0;
  references = 0;
  readonly #inner: ModelRunner;
  readonly #check: (batch: StepBatch, previousRows: number) => void;
  readonly #queue: StepBatch[] = [];
  #previousRows = 0;
  /** The tokens of the step collected last: that before the oldest in the queue. */
  #drawn = new Int32Array(0);
  #handedOut?: StepResult;

  /** `check` is called by `submit`, which throws what it throws. */
  constructor(
    inner: ModelRunner,
    check: (batch: StepBatch, previousRows: number) => void = () => {},
  ) {
    this.#inner = inner;
    this.#check = check;
  }

  get memory(): ModelRunner['memory'] {
    return this.#inner.memory;
  }

  get description(): string {
    return `${this.#inner.description}, overlapping`;
  }

  submit(batch: StepBatch): void {
    if (this.#queue.length === 2) throw new Error('two steps are uncollected already');
    this.#check(batch, this.#previousRows);
    if (this.#queue.length === 1) this.overlapped++;
    for (let i = 0; i < batch.numTokens; i++) if (batch.tokens[i] < 0) this.references++;
    this.#previousRows = batch.numRows;
    this.#queue.push(copyOf(batch));
  }

  collect(): StepResult {
    const batch = this.#queue.shift();
    if (!batch) throw new Error('no step is uncollected');
    for (let i = 0; i < batch.numTokens; i++) {
      if (batch.tokens[i] < 0) batch.tokens[i] = Math.max(0, this.#drawn[-1 - batch.tokens[i]]);
    }
    const result = this.#inner.step(batch);
    this.#drawn = result.tokens.slice(0, batch.numRows);
    if (this.#handedOut) destroy(this.#handedOut);
    this.#handedOut = copyOf(result);
    return this.#handedOut;
  }

  step(): StepResult {
    throw new Error('a runner that overlaps is asked for whole steps');
  }

  close(): void {
    if (this.#queue.length > 0) throw new Error('closed with uncollected steps');
    this.#inner.close();
  }
}

function copyOf<T extends object>(value: T): T {
  return Object.fromEntries(
    Object.entries(value).map(([key, each]) => {
      if (ArrayBuffer.isView(each)) return [key, (each as Int32Array).slice()];
      return [key, typeof each === 'object' ? copyOf(each) : each];
    }),
  ) as T;
}

function destroy(result: StepResult): void {
  for (const array of Object.values(result)) (array as Int32Array | undefined)?.fill(-99);
}
