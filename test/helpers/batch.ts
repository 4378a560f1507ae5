/** Builds step batches by hand, so that executors can be tested without the engine. */
import type { SamplingBatch, StepBatch } from '../../src/backend/backend.js';

/** A stretch of one sequence to compute in a step. */
export interface Chunk {
  /** Tokens of the whole sequence so far, or at least up to `to`. */
  readonly tokens: readonly number[];
  readonly from: number;
  readonly to: number;
  readonly blocks: readonly number[];
  /** Positions whose logits are wanted, ascending, within `from .. to`. */
  readonly rows: readonly number[];
}

/** Overrides of a row's sampling; the default is greedy without logprobs. */
export interface RowSampling {
  temperature?: number;
  topK?: number;
  topP?: number;
  minP?: number;
  seed?: readonly [number, number];
  draw?: number;
  repetitionPenalty?: number;
  presencePenalty?: number;
  frequencyPenalty?: number;
  history?: readonly (readonly [token: number, count: number])[];
  bias?: readonly (readonly [token: number, value: number])[];
  logprobs?: number;
  target?: number;
}

export function stepBatch(
  chunks: readonly Chunk[],
  blockSize: number,
  sampling: readonly RowSampling[] = [],
): StepBatch {
  const tokens: number[] = [];
  const positions: number[] = [];
  const slots: number[] = [];
  const queryStart = [0];
  const blockTableStart = [0];
  const rows: number[] = [];
  for (const chunk of chunks) {
    rows.push(...chunk.rows.map((position) => tokens.length + position - chunk.from));
    for (let p = chunk.from; p < chunk.to; p++) {
      tokens.push(chunk.tokens[p]);
      positions.push(p);
      slots.push(chunk.blocks[Math.floor(p / blockSize)] * blockSize + (p % blockSize));
    }
    queryStart.push(tokens.length);
    blockTableStart.push(blockTableStart.at(-1)! + chunk.blocks.length);
  }
  return {
    numTokens: tokens.length,
    numSeqs: chunks.length,
    numRows: rows.length,
    tokens: Int32Array.from(tokens),
    positions: Int32Array.from(positions),
    slots: Int32Array.from(slots),
    queryStart: Int32Array.from(queryStart),
    contextLens: Int32Array.from(chunks, ({ to }) => to),
    blockTables: Int32Array.from(chunks.flatMap(({ blocks }) => blocks)),
    blockTableStart: Int32Array.from(blockTableStart),
    rows: Int32Array.from(rows),
    copies: new Int32Array(0),
    numCopies: 0,
    sampling: samplingBatch(Array.from(rows, (_, r) => sampling[r] ?? {})),
  };
}

export function samplingBatch(rows: readonly RowSampling[]): SamplingBatch {
  const starts = (lists: (readonly unknown[] | undefined)[]) => {
    const start = [0];
    for (const list of lists) start.push(start.at(-1)! + (list?.length ?? 0));
    return Int32Array.from(start);
  };
  const history = rows.flatMap((row) => row.history ?? []);
  const bias = rows.flatMap((row) => row.bias ?? []);
  return {
    temperature: Float32Array.from(rows, (row) => row.temperature ?? 0),
    topK: Int32Array.from(rows, (row) => row.topK ?? 0),
    topP: Float32Array.from(rows, (row) => row.topP ?? 1),
    minP: Float32Array.from(rows, (row) => row.minP ?? 0),
    seed: Uint32Array.from(rows.flatMap((row) => row.seed ?? [0, 0])),
    draw: Uint32Array.from(rows, (row) => row.draw ?? 0),
    repetitionPenalty: Float32Array.from(rows, (row) => row.repetitionPenalty ?? 1),
    presencePenalty: Float32Array.from(rows, (row) => row.presencePenalty ?? 0),
    frequencyPenalty: Float32Array.from(rows, (row) => row.frequencyPenalty ?? 0),
    historyStart: starts(rows.map((row) => row.history)),
    historyTokens: Int32Array.from(history, ([token]) => token),
    historyCounts: Int32Array.from(history, ([, count]) => count),
    biasStart: starts(rows.map((row) => row.bias)),
    biasTokens: Int32Array.from(bias, ([token]) => token),
    biasValues: Float32Array.from(bias, ([, value]) => value),
    logprobs: Int32Array.from(rows, (row) => row.logprobs ?? -1),
    targets: Int32Array.from(rows, (row) => row.target ?? -1),
  };
}

/** `count` consecutive block ids. */
export function range(first: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => first + i);
}
