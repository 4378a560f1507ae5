/**
 * A runner without a model. Its "keys and values" are the token and the position of each slot; the
 * next token is a hash of all tokens of the sequence, read back through the block table. So a block
 * that is shared, copied, freed or reused wrongly changes the tokens.
 */
import {
  MAX_LOGPROBS,
  type ModelRunner,
  type RunnerOptions,
  type StepBatch,
  type StepResult,
} from '../../src/backend/backend.js';
import { checkBatch } from '../../src/backend/check-batch.js';
import type { SamplingParams } from '../../src/engine/sampling-params.js';
import { choiceSeed } from '../../src/engine/seed.js';
import type { Program } from '../../src/model/program.js';

export interface FakeRunnerOptions extends Omit<RunnerOptions, 'keepLogits'> {
  vocabSize: number;
  /** A sequence whose newest token is this gives no finite logits. */
  nanToken?: number;
  /** A step with this token throws. */
  throwToken?: number;
}

export class FakeRunner implements ModelRunner {
  readonly memory = { weights: 0, workspace: 0, kvCache: 0 };
  readonly description = 'fake';
  steps = 0;
  /** Most tokens and sequences seen in a step. */
  mostTokens = 0;
  mostSeqs = 0;
  /** Tokens computed in all steps. */
  computedTokens = 0;
  closed = false;
  readonly #options: FakeRunnerOptions;
  readonly #tokens: Int32Array;
  readonly #positions: Int32Array;
  readonly #result: StepResult;

  constructor(options: FakeRunnerOptions) {
    this.#options = options;
    this.#tokens = new Int32Array(options.numBlocks * options.blockSize).fill(-1);
    this.#positions = new Int32Array(options.numBlocks * options.blockSize).fill(-1);
    this.#result = {
      tokens: new Int32Array(options.maxTokens),
      logprobs: new Float32Array(options.maxTokens),
      ranks: new Int32Array(options.maxTokens),
      topTokens: new Int32Array(options.maxTokens * MAX_LOGPROBS),
      topLogprobs: new Float32Array(options.maxTokens * MAX_LOGPROBS),
    };
  }

  /** Throws what `step` does before any work. */
  check(batch: StepBatch, previousRows = 0): void {
    const { vocabSize, throwToken } = this.#options;
    checkBatch({ vocabSize } as Program, this.#options, batch, previousRows);
    const tokens = batch.tokens.subarray(0, batch.numTokens);
    if (throwToken !== undefined && tokens.includes(throwToken)) {
      throw new Error(`token ${throwToken} cannot be computed`);
    }
  }

  step(batch: StepBatch): StepResult {
    this.check(batch);
    this.steps++;
    this.mostTokens = Math.max(this.mostTokens, batch.numTokens);
    this.mostSeqs = Math.max(this.mostSeqs, batch.numSeqs);
    this.computedTokens += batch.numTokens;
    this.#copyBlocks(batch);
    for (let i = 0; i < batch.numTokens; i++) {
      this.#tokens[batch.slots[i]] = batch.tokens[i];
      this.#positions[batch.slots[i]] = batch.positions[i];
    }
    let seq = 0;
    for (let row = 0; row < batch.numRows; row++) {
      while (batch.queryStart[seq + 1] <= batch.rows[row]) seq++;
      this.#result.tokens[row] = this.#sample(batch, seq, row);
    }
    return this.#result;
  }

  close(): void {
    this.closed = true;
  }

  #copyBlocks({ copies, numCopies }: StepBatch): void {
    const { blockSize } = this.#options;
    for (let i = 0; i < numCopies; i++) {
      const from = copies[2 * i] * blockSize;
      const to = copies[2 * i + 1] * blockSize;
      this.#tokens.copyWithin(to, from, from + blockSize);
      this.#positions.copyWithin(to, from, from + blockSize);
    }
  }

  #sample(batch: StepBatch, seq: number, row: number): number {
    const { blockSize, nanToken, vocabSize } = this.#options;
    const { sampling } = batch;
    const last = batch.positions[batch.rows[row]];
    const table = batch.blockTableStart[seq];
    let hash = 1;
    for (let position = 0; position <= last; position++) {
      const block = batch.blockTables[table + Math.floor(position / blockSize)];
      const slot = block * blockSize + (position % blockSize);
      if (this.#positions[slot] !== position) {
        throw new Error(`slot ${slot} holds position ${this.#positions[slot]}, not ${position}`);
      }
      hash = mix(hash, this.#tokens[slot]);
    }
    if (batch.tokens[batch.rows[row]] === nanToken) return -1;
    if (sampling.logprobs[row] >= 0) this.#reportLogprobs(hash, row, sampling.logprobs[row]);
    if (sampling.targets[row] !== -1) return sampling.targets[row];
    if (sampling.temperature[row] > 0) {
      hash = mix(mix(hash, sampling.seed[2 * row]), sampling.seed[2 * row + 1]);
      hash = mix(hash, sampling.draw[row]);
    }
    for (let i = sampling.historyStart[row]; i < sampling.historyStart[row + 1]; i++) {
      // Order-independent: a history is a set.
      hash = (hash + Math.imul(sampling.historyTokens[i] + 1, sampling.historyCounts[i] + 1)) | 0;
    }
    const banned = new Set<number>();
    for (let i = sampling.biasStart[row]; i < sampling.biasStart[row + 1]; i++) {
      if (sampling.biasValues[i] <= -100) banned.add(sampling.biasTokens[i]);
    }
    return choose(hash, vocabSize, banned);
  }

  #reportLogprobs(hash: number, row: number, count: number): void {
    this.#result.logprobs[row] = -(hash >>> 16) / 65536;
    this.#result.ranks[row] = 1 + ((hash >>> 8) & 7);
    for (let i = 0; i < count; i++) {
      this.#result.topTokens[row * MAX_LOGPROBS + i] = (hash + i) & 15;
      this.#result.topLogprobs[row * MAX_LOGPROBS + i] = -i;
    }
  }
}

/** What choice `index` must generate, computed without engine, blocks or batches. */
export function expectedTokens(
  prompt: readonly number[],
  params: SamplingParams,
  index: number,
  options: { vocabSize: number; maxModelLen: number; eosTokenIds?: readonly number[] },
): number[] {
  const eos = params.ignoreEos ? [] : (options.eosTokenIds ?? []);
  const stops = new Set([...eos, ...params.stopTokenIds]);
  const tokens = [...prompt];
  const counts = new Map<number, number>(prompt.map((token) => [token, 0]));
  const most = Math.min(params.maxTokens ?? Infinity, options.maxModelLen - prompt.length);
  const seed = choiceSeed(BigInt.asUintN(64, BigInt(params.seed ?? 0)), index);
  const penalised =
    params.repetitionPenalty !== 1 || params.presencePenalty !== 0 || params.frequencyPenalty !== 0;
  const generated: number[] = [];
  while (generated.length < most) {
    let hash = tokens.reduce(mix, 1);
    if (params.temperature > 0) {
      hash = mix(mix(hash, Number(seed & 0xffffffffn)), Number(seed >> 32n));
      hash = mix(hash, generated.length);
    }
    if (penalised) {
      for (const [token, count] of counts) hash = (hash + Math.imul(token + 1, count + 1)) | 0;
    }
    const banned = generated.length < params.minTokens ? stops : new Set<number>();
    const token = choose(hash, options.vocabSize, banned);
    generated.push(token);
    tokens.push(token);
    counts.set(token, (counts.get(token) ?? 0) + 1);
    if (stops.has(token)) break;
  }
  return generated;
}

function choose(hash: number, vocabSize: number, banned: ReadonlySet<number>): number {
  let token = ((hash ^ (hash >>> 15)) >>> 0) % vocabSize;
  while (banned.has(token)) token = (token + 1) % vocabSize;
  return token;
}

function mix(hash: number, value: number): number {
  const k = Math.imul(hash ^ value, 0x9e3779b1);
  return (k ^ (k >>> 15)) | 0;
}
