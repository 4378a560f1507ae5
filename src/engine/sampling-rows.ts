/** Writes the sampling parameters of a step's rows into the arrays an executor reads. */
import type { SamplingBatch } from '../backend/backend.js';
import { choiceSeed } from './seed.js';
import type { Sequence } from './sequence.js';

export class SamplingRows {
  readonly batch: SamplingBatch;
  readonly #eos: ReadonlySet<number>;
  #rows = 0;

  constructor(maxRows: number, eosTokens: ReadonlySet<number>) {
    this.#eos = eosTokens;
    this.batch = {
      temperature: new Float32Array(maxRows),
      topK: new Int32Array(maxRows),
      topP: new Float32Array(maxRows),
      minP: new Float32Array(maxRows),
      seed: new Uint32Array(2 * maxRows),
      draw: new Uint32Array(maxRows),
      repetitionPenalty: new Float32Array(maxRows),
      presencePenalty: new Float32Array(maxRows),
      frequencyPenalty: new Float32Array(maxRows),
      historyStart: new Int32Array(maxRows + 1),
      historyTokens: new Int32Array(0),
      historyCounts: new Int32Array(0),
      biasStart: new Int32Array(maxRows + 1),
      biasTokens: new Int32Array(0),
      biasValues: new Float32Array(0),
      logprobs: new Int32Array(maxRows),
      targets: new Int32Array(maxRows),
    };
  }

  clear(): void {
    this.#rows = 0;
  }

  /** A row that reports the logprob of `token` and of the `logprobs` likeliest. */
  addTarget(token: number, logprobs: number): void {
    const { batch } = this;
    const row = this.#rows++;
    batch.temperature[row] = 0;
    batch.topK[row] = 0;
    batch.topP[row] = 1;
    batch.minP[row] = 0;
    batch.seed[2 * row] = 0;
    batch.seed[2 * row + 1] = 0;
    batch.draw[row] = 0;
    batch.repetitionPenalty[row] = 1;
    batch.presencePenalty[row] = 0;
    batch.frequencyPenalty[row] = 0;
    batch.historyStart[row + 1] = batch.historyStart[row];
    batch.biasStart[row + 1] = batch.biasStart[row];
    batch.logprobs[row] = logprobs;
    batch.targets[row] = token;
  }

  /** A row that draws the next token of choice `choice`, which may not be forked off `sequence` yet. */
  addDraw(sequence: Sequence, choice: number): void {
    const { batch } = this;
    const { params, seed } = sequence.request;
    const row = this.#rows++;
    batch.temperature[row] = params.temperature;
    batch.topK[row] = params.topK;
    batch.topP[row] = params.topP;
    batch.minP[row] = params.minP;
    if (choice === sequence.index) {
      batch.seed[2 * row] = sequence.seedLow;
      batch.seed[2 * row + 1] = sequence.seedHigh;
    } else {
      const own = choiceSeed(seed, choice);
      batch.seed[2 * row] = Number(own & 0xffffffffn);
      batch.seed[2 * row + 1] = Number(own >> 32n);
    }
    batch.draw[row] = sequence.numGenerated;
    batch.repetitionPenalty[row] = params.repetitionPenalty;
    batch.presencePenalty[row] = params.presencePenalty;
    batch.frequencyPenalty[row] = params.frequencyPenalty;
    batch.logprobs[row] = params.logprobs ?? -1;
    batch.targets[row] = -1;
    this.#addHistory(row, sequence);
    this.#addBias(row, sequence);
  }

  #addHistory(row: number, { history }: Sequence): void {
    const { batch } = this;
    const start = batch.historyStart[row];
    const end = start + (history?.length ?? 0);
    batch.historyStart[row + 1] = end;
    if (!history) return;
    batch.historyTokens = withRoom(batch.historyTokens, end);
    batch.historyCounts = withRoom(batch.historyCounts, end);
    for (let i = 0; i < history.length; i++) {
      batch.historyTokens[start + i] = history.tokens[i];
      batch.historyCounts[start + i] = history.counts[i];
    }
  }

  /** logit_bias, and the ban of all that would stop the sequence before min_tokens. */
  #addBias(row: number, sequence: Sequence): void {
    const { params } = sequence.request;
    const banned = sequence.numGenerated < params.minTokens;
    this.batch.biasStart[row + 1] = this.batch.biasStart[row];
    for (const [token, value] of params.logitBias) this.#pushBias(row, token, value);
    if (!banned) return;
    for (const token of params.stopTokenIds) this.#pushBias(row, token, -Infinity);
    if (params.ignoreEos) return;
    for (const token of this.#eos) this.#pushBias(row, token, -Infinity);
  }

  #pushBias(row: number, token: number, value: number): void {
    const { batch } = this;
    const at = batch.biasStart[row + 1]++;
    if (at >= batch.biasTokens.length) {
      batch.biasTokens = withRoom(batch.biasTokens, at + 1);
      const larger = new Float32Array(batch.biasTokens.length);
      larger.set(batch.biasValues);
      batch.biasValues = larger;
    }
    batch.biasTokens[at] = token;
    batch.biasValues[at] = value;
  }
}

function withRoom(array: Int32Array, length: number): Int32Array {
  if (length <= array.length) return array;
  const larger = new Int32Array(Math.max(length, 2 * array.length, 256));
  larger.set(array);
  return larger;
}
