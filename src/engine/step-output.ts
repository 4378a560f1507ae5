/**
 * What one step gives to the requests, in the form that crosses from the engine's thread to the
 * caller's: almost everything is one Int32Array, because cloning an object for every token would
 * cost more than the rest of the step's bookkeeping.
 */
import type { Delta, StepReport } from './api.js';

/** A delta takes its handle, index, number of tokens and place in `details` (-1: none), then its tokens. */
const HEADER = 4;

/** What not every delta has. */
export type DeltaDetail = Pick<Delta, 'logprobs' | 'promptLogprobs' | 'firstToken' | 'finish'>;

export interface StepOutput {
  deltas: Int32Array;
  details: DeltaDetail[];
  /** Handles of the requests that were scheduled for the first time. */
  started: number[];
  report: StepReport;
}

/** Collects the deltas of a step. */
export class DeltaWriter {
  #deltas = new Int32Array(1024);
  #length = 0;
  #details: DeltaDetail[] = [];

  get isEmpty(): boolean {
    return this.#length === 0;
  }

  /** Adds a delta of at most one token. */
  add(handle: number, index: number, token: number | undefined, detail?: DeltaDetail): void {
    if (this.#length + HEADER + 1 > this.#deltas.length) {
      const larger = new Int32Array(2 * this.#deltas.length);
      larger.set(this.#deltas);
      this.#deltas = larger;
    }
    let at = this.#length;
    this.#deltas[at++] = handle;
    this.#deltas[at++] = index;
    this.#deltas[at++] = token === undefined ? 0 : 1;
    this.#deltas[at++] = detail === undefined ? -1 : this.#details.push(detail) - 1;
    if (token !== undefined) this.#deltas[at++] = token;
    this.#length = at;
  }

  /** Everything added since the last call. */
  take(): Pick<StepOutput, 'deltas' | 'details'> {
    const taken = { deltas: this.#deltas.slice(0, this.#length), details: this.#details };
    this.#length = 0;
    this.#details = [];
    return taken;
  }
}

/** Calls `onDelta` for each delta of a step, in the order they were written. */
export function readDeltas(
  { deltas, details }: Pick<StepOutput, 'deltas' | 'details'>,
  onDelta: (handle: number, delta: Delta) => void,
): void {
  for (let at = 0; at < deltas.length; ) {
    const count = deltas[at + 2];
    const detail = deltas[at + 3];
    const tokens: number[] = [];
    for (let i = 0; i < count; i++) tokens.push(deltas[at + HEADER + i]);
    const delta: Delta = { index: deltas[at + 1], tokens };
    if (detail !== -1) Object.assign(delta, details[detail]);
    onDelta(deltas[at], delta);
    at += HEADER + count;
  }
}

/** A detail without its empty fields; undefined if nothing is left. */
export function deltaDetail({
  logprobs,
  promptLogprobs,
  firstToken,
  finish,
}: DeltaDetail): DeltaDetail | undefined {
  if (!logprobs && !promptLogprobs && !firstToken && !finish) return undefined;
  const detail: DeltaDetail = {};
  if (logprobs) detail.logprobs = logprobs;
  if (promptLogprobs) detail.promptLogprobs = promptLogprobs;
  if (firstToken) detail.firstToken = firstToken;
  if (finish) detail.finish = finish;
  return detail;
}
