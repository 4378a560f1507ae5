import assert from 'node:assert/strict';
import { test } from 'node:test';
import { referenceBackend } from '../../src/backend/reference/reference.js';
import { dummyWeights } from '../../src/model/dummy.js';
import { testBackend } from '../helpers/gpu.js';
import { randomSource } from '../helpers/random.js';
import { randomProgram, randomSequences, runSequences } from '../helpers/random-program.js';
import { relativeRms, roundingBound } from '../helpers/rounding.js';

const PROGRAMS = 8;
const backend = await testBackend();

for (const dtype of ['float32', 'float16', 'bfloat16'] as const) {
  for (let seed = 1; seed <= PROGRAMS; seed++) {
    test(`The GPU runs random program ${seed} as the reference does, with ${dtype} weights`, () => {
      const random = randomSource(seed);
      // Rounding may turn a router's close decision, and then all that follows it differs.
      const program = randomProgram(random, dtype === 'float32' ? {} : { experts: 0 });
      const weights = dummyWeights(program, dtype, seed);
      const sequences = randomSequences(random, 5, program.vocabSize);
      const chunk = [1, 9, 80][seed % 3];
      const expected = runSequences(referenceBackend, program, weights, sequences, 80);
      const computed = runSequences(backend, program, weights, sequences, chunk);
      const difference = relativeRms(computed.logits, expected.logits);
      // Unlike the reference and the CPU, 16 bits are kept after each operation, not before the
      // products only: at most as many roundings again.
      const bound = (dtype === 'float32' ? 1 : 2) * roundingBound(program, dtype);
      assert.ok(difference < bound, `${difference}, bound ${bound}`);
    });
  }
}
