import assert from 'node:assert/strict';
import { test } from 'node:test';
import { availableIsas, createCpuBackend } from '../../../src/backend/cpu/cpu-backend.js';
import { referenceBackend } from '../../../src/backend/reference/reference.js';
import { dummyWeights } from '../../../src/model/dummy.js';
import type { Program } from '../../../src/model/program.js';
import type { DType } from '../../../src/model/weights.js';
import { randomSource } from '../../helpers/random.js';
import { randomProgram, randomSequences, runSequences } from '../../helpers/random-program.js';

const PROGRAMS = 8;

for (const isa of availableIsas()) {
  for (const dtype of ['float32', 'float16', 'bfloat16'] as const) {
    test(`The ${isa} kernels run random programs as the reference does, with ${dtype} weights`, () => {
      for (let seed = 1; seed <= PROGRAMS; seed++) {
        const random = randomSource(seed);
        // Rounding may turn a router's close decision, and then all that follows it differs.
        const program = randomProgram(random, dtype === 'float32' ? {} : { experts: 0 });
        const weights = dummyWeights(program, dtype, seed);
        const sequences = randomSequences(random, 5, program.vocabSize);
        const chunk = [1, 9, 80][seed % 3];
        const backend = createCpuBackend({ isa, threads: 1 + (seed % 3) });
        const expected = runSequences(referenceBackend, program, weights, sequences, 80);
        const computed = runSequences(backend, program, weights, sequences, chunk);
        const difference = relativeRms(computed.logits, expected.logits);
        const bound = roundingBound(program, dtype);
        assert.ok(difference < bound, `program ${seed}: ${difference}, bound ${bound}`);
      }
    });
  }
}

/** Root of the mean squared difference over that of the expected numbers. */
function relativeRms(computed: Float32Array[], expected: Float32Array[]): number {
  let difference = 0;
  let signal = 0;
  expected.forEach((numbers, n) => {
    numbers.forEach((value, i) => {
      difference += (computed[n][i] - value) ** 2;
      signal += value ** 2;
    });
  });
  return Math.sqrt(difference / signal);
}

/**
 * Both executors start from the same rounded weights. A number rounded to a format with p bits of
 * precision is off by at most the share 2^-p. Each linear rounds its inputs once, each attention
 * its queries, keys, values and weights; the bound is all of them adding up, none cancelling.
 * Float32 rounds each of some hundred sums instead.
 */
function roundingBound(program: Program, dtype: DType): number {
  if (dtype === 'float32') return 1e-5;
  const roundings = program.ops.reduce(
    (sum, { kind }) => sum + (kind === 'attention' ? 4 : kind === 'linear' ? 1 : 0),
    0,
  );
  const precision = dtype === 'bfloat16' ? 8 : 11;
  return roundings * 2 ** -precision;
}
