import assert from 'node:assert/strict';
import { test } from 'node:test';
import { availableIsas, createCpuBackend } from '../../../src/backend/cpu/cpu-backend.js';
import { loadModel } from '../../../src/model/load-model.js';
import { compareGreedy, compareLogits, goldens } from '../../helpers/goldens.js';

/** Rounding of float32 in another order: the checkpoints' logits are of order 1. */
const FLOAT32_BOUND = 1e-3;

for (const isa of availableIsas()) {
  for (const golden of goldens()) {
    test(`The ${isa} kernels compute the logits of ${golden.name} in float32`, () => {
      const backend = createCpuBackend({ isa, threads: 2 });
      for (const feeding of [
        { chunk: 1024, together: false },
        { chunk: 7, together: true },
        { chunk: 1, together: true },
      ]) {
        const { max } = compareLogits(backend, golden, feeding);
        assert.ok(max < FLOAT32_BOUND, `logits differ by ${max} with ${JSON.stringify(feeding)}`);
      }
    });

    test(`The ${isa} kernels continue the prompts of ${golden.name} greedily`, () => {
      const model = loadModel(golden.path, { dtype: 'float32' });
      const backend = createCpuBackend({ isa, threads: 2 });
      const compared = compareGreedy(backend, model, golden.greedy, FLOAT32_BOUND);
      assert.ok(compared > 32, `only ${compared} tokens could be compared`);
    });
  }
}
