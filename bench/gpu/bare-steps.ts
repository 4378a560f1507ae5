/** Decode steps on the executor alone, submitted as early as it takes them: the engine adds to this. */
import type { Backend, StepBatch } from '../../src/backend/backend.js';
import { now } from '../../src/engine/api.js';
import type { loadModel } from '../../src/model/load-model.js';
import { range, stepBatch } from '../../test/helpers/batch.js';

const BLOCK = 16;

export interface Decodes {
  /** Sequences in a step. */
  batch: number;
  /** Keys of each in the first step, and how many steps there are. */
  first: number;
  count: number;
}

export interface BareDecoder {
  /** Mean ms of a step over all but the first; nothing of it waits for the host's reading. */
  run(): number;
  close(): void;
}

export function bareDecoder(
  backend: Backend,
  { program, weights }: ReturnType<typeof loadModel>,
  { batch, first, count }: Decodes,
): BareDecoder {
  const blocksEach = Math.ceil((first + count) / BLOCK);
  const runner = backend.createRunner(program, weights, {
    ...{ blockSize: BLOCK, numBlocks: batch * blocksEach, maxTokens: 2048, maxSeqs: batch },
    maxModelLen: first + count,
  });
  const seqs = range(0, batch);
  const tables = seqs.map((n) => range(n * blocksEach, blocksEach));
  const at = (position: number, feed: boolean): StepBatch => {
    const chunks = seqs.map((n) => {
      const row = { from: position, to: position + 1, blocks: tables[n], rows: [position] };
      return { ...row, tokens: [] as number[] };
    });
    const made = stepBatch(chunks, BLOCK);
    seqs.forEach((n) => {
      made.tokens[n] = feed ? -1 - n : 1 + n;
    });
    return made;
  };
  const overlaps = runner.overlaps === true;
  const batches = range(first, count).map((position, i) => at(position, overlaps && i > 0));
  const skipped = 20;
  const run = () => {
    let start = 0;
    batches.forEach((each, i) => {
      if (i === skipped) start = now();
      if (!overlaps) runner.step(each);
      else {
        runner.submit!(each);
        if (i > 0) runner.collect!();
      }
    });
    if (overlaps) runner.collect!();
    return (now() - start) / (count - skipped);
  };
  return { run, close: () => runner.close() };
}
