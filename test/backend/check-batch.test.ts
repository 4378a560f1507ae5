import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { StepBatch } from '../../src/backend/backend.js';
import { checkBatch } from '../../src/backend/check-batch.js';
import type { Program } from '../../src/model/program.js';
import { stepBatch } from '../helpers/batch.js';

const OPTIONS = { blockSize: 16, numBlocks: 8, maxTokens: 32, maxSeqs: 4, maxModelLen: 64 };
const PROGRAM = { vocabSize: 100 } as Program;

function valid(): StepBatch {
  const tokens = Array.from({ length: 40 }, (_, i) => i);
  return stepBatch(
    [
      { tokens, from: 17, to: 20, blocks: [3, 5], rows: [18, 19] },
      { tokens, from: 0, to: 9, blocks: [0], rows: [8] },
    ],
    16,
    [{ temperature: 1, history: [[7, 1]], bias: [[9, 2]] }, {}, { logprobs: 3 }],
  );
}

function rejects(message: RegExp, change: (batch: StepBatch) => void): void {
  const batch = valid();
  change(batch);
  assert.throws(() => checkBatch(PROGRAM, OPTIONS, batch), { name: 'RangeError', message });
}

test('A well-formed batch passes', () => {
  checkBatch(PROGRAM, OPTIONS, valid());
});

test('Arrays longer than their meaningful part pass', () => {
  const batch = valid();
  batch.tokens = Int32Array.from([...batch.tokens, -77, 1e9]);
  batch.rows = Int32Array.from([...batch.rows, -1]);
  checkBatch(PROGRAM, OPTIONS, batch);
});

test('A row may stand several times, for several choices', () => {
  const batch = valid();
  batch.rows.set([2, 2, 2]);
  checkBatch(PROGRAM, OPTIONS, batch);
});

test('Tokens drawn in rows of the step before pass where there was such a step', () => {
  const batch = valid();
  batch.tokens[3] = -2;
  checkBatch(PROGRAM, OPTIONS, batch, 2);
  assert.throws(() => checkBatch(PROGRAM, OPTIONS, batch, 1), {
    name: 'RangeError',
    message: /tokens\[3\] is -2, expected -1 to 99/,
  });
});

const BREAKAGES: [RegExp, (batch: StepBatch) => void][] = [
  [
    /numTokens is 33/,
    (b) => {
      b.numTokens = 33;
    },
  ],
  [
    /numSeqs is 0/,
    (b) => {
      b.numSeqs = 0;
    },
  ],
  [
    /numRows is -1/,
    (b) => {
      b.numRows = -1;
    },
  ],
  [
    /tokens\[2\] is 100, expected 0 to 99/,
    (b) => {
      b.tokens[2] = 100;
    },
  ],
  [
    /tokens\[3\] is -1/,
    (b) => {
      b.tokens[3] = -1;
    },
  ],
  [
    /positions\[1\] is 99, expected 18/,
    (b) => {
      b.positions[1] = 99;
    },
  ],
  [
    /slots\[0\] is 0, expected 81/,
    (b) => {
      b.slots[0] = 0;
    },
  ],
  [
    /queryStart\[1\] is 0/,
    (b) => {
      b.queryStart[1] = 0;
    },
  ],
  [
    /queryStart\[2\] is 13/,
    (b) => {
      b.queryStart[2] = 13;
    },
  ],
  [
    /queryStart\[2\] is 11/,
    (b) => {
      b.queryStart[2] = 11;
      b.contextLens[1] = 8;
    },
  ],
  [
    /contextLens\[0\] is 65/,
    (b) => {
      b.contextLens[0] = 65;
    },
  ],
  [
    /contextLens\[0\] is 2/,
    (b) => {
      b.contextLens[0] = 2;
    },
  ],
  [
    /blockTableStart\[1\] is 1/,
    (b) => {
      b.blockTableStart[1] = 1;
    },
  ],
  [
    /blockTableStart\[2\] is 9/,
    (b) => {
      b.blockTableStart[2] = 9;
    },
  ],
  [
    /blockTables\[1\] is 8/,
    (b) => {
      b.blockTables[1] = 8;
    },
  ],
  [
    /rows\[2\] is 12/,
    (b) => {
      b.rows[2] = 12;
    },
  ],
  [
    /rows\[1\] is 0, expected at least 1/,
    (b) => {
      b.rows[1] = 0;
    },
  ],
  [
    /copies has 0 elements/,
    (b) => {
      b.numCopies = 1;
    },
  ],
  [
    /copies\[1\] is 8/,
    (b) => {
      b.numCopies = 1;
      b.copies = Int32Array.of(0, 8);
    },
  ],
  [
    /positions has 3 elements/,
    (b) => {
      b.positions = b.positions.slice(0, 3);
    },
  ],
  [
    /temperature\[1\] is NaN/,
    (b) => {
      b.sampling.temperature[1] = Number.NaN;
    },
  ],
  [
    /repetitionPenalty\[0\] is 0/,
    (b) => {
      b.sampling.repetitionPenalty[0] = 0;
    },
  ],
  [
    /topK\[0\] is -1/,
    (b) => {
      b.sampling.topK[0] = -1;
    },
  ],
  [
    /topP\[0\] is 0/,
    (b) => {
      b.sampling.topP[0] = 0;
    },
  ],
  [
    /minP\[0\] is 2/,
    (b) => {
      b.sampling.minP[0] = 2;
    },
  ],
  [
    /logprobs\[0\] is 21/,
    (b) => {
      b.sampling.logprobs[0] = 21;
    },
  ],
  [
    /targets\[0\] is 100/,
    (b) => {
      b.sampling.targets[0] = 100;
    },
  ],
  [
    /seed has 4 elements/,
    (b) => {
      b.sampling.seed = new Uint32Array(4);
    },
  ],
  [
    /historyTokens\[0\] is -2/,
    (b) => {
      b.sampling.historyTokens[0] = -2;
    },
  ],
  [
    /historyStart\[2\] is 0/,
    (b) => {
      b.sampling.historyStart[2] = 0;
    },
  ],
  [
    /biasTokens\[0\] is 100/,
    (b) => {
      b.sampling.biasTokens[0] = 100;
    },
  ],
  [
    /biasTokens has 1 elements/,
    (b) => {
      b.sampling.biasStart[3] = 2;
    },
  ],
];

test('Every kind of malformed batch is refused with the array and the index', () => {
  for (const [message, change] of BREAKAGES) rejects(message, change);
});
