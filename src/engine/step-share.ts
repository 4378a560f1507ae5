/** What a submitted step computes for one sequence, noted for the time when its result is there. */
import type { Sequence } from './sequence.js';
import { promptRows } from './step-batch.js';

export interface Share {
  readonly sequence: Sequence;
  /** How often it had been preempted. If that is more by now, its blocks are others'. */
  readonly preemptions: number;
  /** Positions before this one are computed by the end of the step. */
  readonly end: number;
  /** Its rows: those of prompt logprobs, then one a choice if tokens are drawn. */
  readonly firstRow: number;
  readonly firstDraw: number;
  readonly endRow: number;
}

/**
 * Notes the share of each scheduled sequence, in the order of the batch's rows, and moves the
 * sequences past the step: from here on they count as computed, with placeholders for the tokens
 * to be drawn.
 */
export function shareOut(sequences: readonly Sequence[]): Share[] {
  let row = 0;
  return sequences.map((sequence) => {
    const firstRow = row;
    const [from, to] = promptRows(sequence);
    const firstDraw = firstRow + to - from;
    const drawn = sequence.scheduled === sequence.remaining;
    row = firstDraw + (drawn ? sequence.seats : 0);
    sequence.numComputed += sequence.scheduled;
    sequence.scheduled = 0;
    if (drawn) sequence.expect(firstDraw);
    const { preemptions, numComputed } = sequence;
    return { sequence, preemptions, end: numComputed, firstRow, firstDraw, endRow: row };
  });
}
