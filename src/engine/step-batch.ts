/**
 * Writes scheduled sequences into the arrays an executor reads. One builder lives as long as its
 * runner; its arrays have their greatest size from the start, those of ragged lists grow to what was
 * needed so far.
 */
import type { RunnerOptions, StepBatch } from '../backend/backend.js';
import { SamplingRows } from './sampling-rows.js';
import type { Sequence } from './sequence.js';

export type BatchLimits = Pick<
  RunnerOptions,
  'blockSize' | 'numBlocks' | 'maxTokens' | 'maxSeqs' | 'maxModelLen'
>;

export class StepBatchBuilder {
  readonly #blockSize: number;
  readonly #sampling: SamplingRows;
  readonly #batch: StepBatch;

  constructor(limits: BatchLimits, stopTokens: ReadonlySet<number>) {
    const { blockSize, maxTokens, maxSeqs, maxModelLen, numBlocks } = limits;
    this.#blockSize = blockSize;
    this.#sampling = new SamplingRows(maxTokens, stopTokens);
    // Shared blocks are listed once a sequence, so there may be more entries than blocks.
    const tableEntries = maxSeqs * Math.min(numBlocks, Math.ceil(maxModelLen / blockSize));
    this.#batch = {
      numTokens: 0,
      numSeqs: 0,
      numRows: 0,
      tokens: new Int32Array(maxTokens),
      positions: new Int32Array(maxTokens),
      slots: new Int32Array(maxTokens),
      queryStart: new Int32Array(maxSeqs + 1),
      contextLens: new Int32Array(maxSeqs),
      blockTables: new Int32Array(tableEntries),
      blockTableStart: new Int32Array(maxSeqs + 1),
      rows: new Int32Array(maxTokens),
      copies: new Int32Array(2 * maxSeqs),
      numCopies: 0,
      sampling: this.#sampling.batch,
    };
  }

  /**
   * The batch of these sequences' scheduled tokens; valid until the next call. Rows come in the
   * order of the sequences: first those of prompt logprobs, then one a choice if the sequence's
   * last token is computed.
   */
  build(sequences: readonly Sequence[], copies: readonly number[]): StepBatch {
    const batch = this.#batch;
    batch.numTokens = 0;
    batch.numSeqs = 0;
    batch.numRows = 0;
    this.#sampling.clear();
    for (const sequence of sequences) {
      this.#addTokens(sequence);
      this.#addRows(sequence);
    }
    for (let i = 0; i < copies.length; i++) batch.copies[i] = copies[i];
    batch.numCopies = copies.length / 2;
    return batch;
  }

  #addTokens(sequence: Sequence): void {
    const batch = this.#batch;
    const blockSize = this.#blockSize;
    const { tokens, blocks, numBlocks, numComputed } = sequence;
    const end = numComputed + sequence.scheduled;
    let at = batch.numTokens;
    for (let position = numComputed; position < end; position++, at++) {
      const block = Math.floor(position / blockSize);
      batch.tokens[at] = tokens[position];
      batch.positions[at] = position;
      batch.slots[at] = blocks[block] * blockSize + (position - block * blockSize);
    }
    const seq = batch.numSeqs++;
    batch.queryStart[seq + 1] = at;
    batch.numTokens = at;
    batch.contextLens[seq] = end;
    const start = batch.blockTableStart[seq];
    // The tables are most of a batch: moved as a whole, they take a third of the time.
    batch.blockTables.set(blocks.subarray(0, numBlocks), start);
    batch.blockTableStart[seq + 1] = start + numBlocks;
  }

  #addRows(sequence: Sequence): void {
    const batch = this.#batch;
    const { request, numComputed, scheduled } = sequence;
    const start = batch.numTokens - scheduled;
    const [from, to] = promptRows(sequence);
    for (let position = from; position < to; position++) {
      batch.rows[batch.numRows++] = start + position - numComputed;
      this.#sampling.addTarget(request.prompt[position + 1], request.params.promptLogprobs!);
    }
    if (scheduled < sequence.remaining) return;
    for (let choice = 0; choice < sequence.seats; choice++) {
      batch.rows[batch.numRows++] = batch.numTokens - 1;
      this.#sampling.addDraw(sequence, sequence.index + choice);
    }
  }
}

/** The positions among a sequence's scheduled tokens whose logits give prompt logprobs still missing. */
export function promptRows(sequence: Sequence): [from: number, to: number] {
  const { request, numComputed, scheduled } = sequence;
  if (request.promptLogprobs === undefined) return [0, 0];
  const from = Math.max(numComputed, request.promptLogprobs.length - 1);
  const to = Math.min(numComputed + scheduled, request.prompt.length - 1);
  return [from, Math.max(from, to)];
}
