/** Step batches without an engine: sequences with blocks of their own, greedy sampling, no history. */
import type { StepBatch } from '../backend/backend.js';

/** Tokens `from .. to` of a sequence, computed in one step. */
export interface Piece {
  readonly tokens: readonly number[];
  readonly from: number;
  readonly to: number;
  readonly blocks: readonly number[];
  /** Logits of every token of the piece, or of the last one only. */
  readonly rows: 'all' | 'last';
}

export function greedyBatch(pieces: readonly Piece[], blockSize: number): StepBatch {
  const tokens: number[] = [];
  const positions: number[] = [];
  const slots: number[] = [];
  const queryStart = [0];
  const blockTableStart = [0];
  const blockTables: number[] = [];
  const rows: number[] = [];
  for (const piece of pieces) {
    for (let p = piece.from; p < piece.to; p++) {
      if (piece.rows === 'all' || p === piece.to - 1) rows.push(tokens.length);
      tokens.push(piece.tokens[p]);
      positions.push(p);
      slots.push(piece.blocks[Math.floor(p / blockSize)] * blockSize + (p % blockSize));
    }
    queryStart.push(tokens.length);
    blockTables.push(...piece.blocks);
    blockTableStart.push(blockTables.length);
  }
  const count = rows.length;
  const floats = (value: number) => new Float32Array(count).fill(value);
  return {
    numTokens: tokens.length,
    numSeqs: pieces.length,
    numRows: count,
    tokens: Int32Array.from(tokens),
    positions: Int32Array.from(positions),
    slots: Int32Array.from(slots),
    queryStart: Int32Array.from(queryStart),
    contextLens: Int32Array.from(pieces, ({ to }) => to),
    blockTables: Int32Array.from(blockTables),
    blockTableStart: Int32Array.from(blockTableStart),
    rows: Int32Array.from(rows),
    copies: new Int32Array(0),
    numCopies: 0,
    sampling: {
      temperature: floats(0),
      topK: new Int32Array(count),
      topP: floats(1),
      minP: floats(0),
      seed: new Uint32Array(2 * count),
      draw: new Uint32Array(count),
      repetitionPenalty: floats(1),
      presencePenalty: floats(0),
      frequencyPenalty: floats(0),
      historyStart: new Int32Array(count + 1),
      historyTokens: new Int32Array(0),
      historyCounts: new Int32Array(0),
      biasStart: new Int32Array(count + 1),
      biasTokens: new Int32Array(0),
      biasValues: new Float32Array(0),
      logprobs: new Int32Array(count).fill(-1),
      targets: new Int32Array(count).fill(-1),
    },
  };
}
