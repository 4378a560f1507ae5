import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Backend } from '../../src/backend/backend.js';
import { referenceBackend } from '../../src/backend/reference/reference.js';
import { dummyWeights } from '../../src/model/dummy.js';
import { testBackend } from '../helpers/gpu.js';
import { randomSource } from '../helpers/random.js';
import { randomProgram, randomSequences, runSequences } from '../helpers/random-program.js';
import { relativeRms, roundingBound } from '../helpers/rounding.js';

const PROGRAMS = 8;
const backend = await testBackend();

/** A few rows of most prompts; chunks of 9 tokens often have none, those of 80 more than a tile. */
const wanted = (position: number) => position % 16 > 9;

for (const dtype of ['float32', 'float16', 'bfloat16'] as const) {
  for (let seed = 1; seed <= PROGRAMS; seed++) {
    test(`The GPU runs random program ${seed} as the reference does, with ${dtype} weights`, () => {
      const random = randomSource(seed);
      // Rounding may turn a router's close decision, and then all that follows it differs.
      const program = randomProgram(random, dtype === 'float32' ? {} : { experts: 0 });
      const weights = dummyWeights(program, dtype, seed);
      const sequences = randomSequences(random, 5, program.vocabSize);
      const chunk = [1, 9, 80][seed % 3];
      // Unlike the reference and the CPU, 16 bits are kept after each operation, not before the
      // products only: at most as many roundings again.
      const bound = (dtype === 'float32' ? 1 : 2) * roundingBound(program, dtype);
      for (const options of [{}, { wanted }]) {
        const run = (on: Backend, tokens: number) =>
          runSequences(on, program, weights, sequences, tokens, options);
        const difference = relativeRms(
          run(backend, chunk).logits,
          run(referenceBackend, 80).logits,
        );
        assert.ok(difference < bound, `${difference}, bound ${bound}`);
      }
    });
  }
}
