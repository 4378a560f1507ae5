/** Runs whole sequences through an executor, many in a step. */
import type { ModelRunner, RunnerOptions, StepResult } from '../backend/backend.js';
import { greedyBatch, type Piece } from './greedy-batch.js';

export const BLOCK_SIZE = 16;

/** What a runner needs for sequences of at most `longest` tokens, `maxTokens` of them in a step. */
export function runnerOptions(maxTokens: number, longest: number): RunnerOptions {
  const maxSeqs = Math.min(maxTokens, MAX_SEQS);
  // Sequences of a step are whole but for the first and the last, which may go on over many steps.
  const numBlocks =
    Math.ceil(maxTokens / BLOCK_SIZE) + maxSeqs + 2 * Math.ceil(longest / BLOCK_SIZE);
  return { blockSize: BLOCK_SIZE, numBlocks, maxTokens, maxSeqs, maxModelLen: longest };
}

const MAX_SEQS = 256;

export interface Rows {
  readonly result: StepResult;
  /** Sequence and position of each row of the result, in order. */
  readonly rows: readonly { readonly sequence: number; readonly position: number }[];
}

/**
 * Yields the result of each step, every token of every sequence a row, sequence after sequence.
 * `options` are those of the runner. The order depends on them and the sequences alone, so two
 * runners can be compared step by step.
 */
export function* runSequences(
  runner: ModelRunner,
  sequences: readonly (readonly number[])[],
  { maxTokens, maxSeqs, numBlocks }: RunnerOptions,
): Generator<Rows> {
  const free = Array.from({ length: numBlocks }, (_, block) => block);
  let sequence = 0;
  let from = 0;
  let blocks: number[] = [];
  while (sequence < sequences.length) {
    const pieces: Piece[] = [];
    const rows: { sequence: number; position: number }[] = [];
    const done: number[] = [];
    let room = maxTokens;
    while (room > 0 && sequence < sequences.length && pieces.length < maxSeqs) {
      const tokens = sequences[sequence];
      if (from === 0) blocks = free.splice(0, Math.ceil(tokens.length / BLOCK_SIZE));
      const to = Math.min(tokens.length, from + room);
      pieces.push({ tokens, from, to, blocks, rows: 'all' });
      for (let position = from; position < to; position++) rows.push({ sequence, position });
      room -= to - from;
      from = to;
      if (to < tokens.length) continue;
      done.push(...blocks);
      sequence++;
      from = 0;
    }
    yield { result: runner.step(greedyBatch(pieces, BLOCK_SIZE)), rows };
    free.push(...done);
  }
}

/** Greedy continuations of `length` tokens of prompts, all in one batch. */
export function continueGreedily(
  runner: ModelRunner,
  prompts: readonly (readonly number[])[],
  length: number,
): number[][] {
  let next = 0;
  const sequences = prompts.map((prompt) => {
    const count = Math.ceil((prompt.length + length) / BLOCK_SIZE);
    const blocks = Array.from({ length: count }, () => next++);
    return { tokens: [...prompt], blocks };
  });
  for (let step = 0; step < length; step++) {
    const pieces = sequences.map(({ tokens, blocks }): Piece => {
      const from = step === 0 ? 0 : tokens.length - 1;
      return { tokens, from, to: tokens.length, blocks, rows: 'last' };
    });
    const { tokens } = runner.step(greedyBatch(pieces, BLOCK_SIZE));
    sequences.forEach((sequence, n) => {
      sequence.tokens.push(tokens[n]);
    });
  }
  return sequences.map(({ tokens }, n) => tokens.slice(prompts[n].length));
}
