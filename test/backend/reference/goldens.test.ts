import assert from 'node:assert/strict';
import { test } from 'node:test';
import { referenceBackend } from '../../../src/backend/reference/reference.js';
import { loadModel } from '../../../src/model/load-model.js';
import { compareGreedy, compareLogits, goldens } from '../../helpers/goldens.js';

/** Rounding of float32 in another order: the checkpoints' logits are of order 1. */
const FLOAT32_BOUND = 1e-3;

for (const golden of goldens()) {
  test(`The reference executor computes the logits of ${golden.name}`, () => {
    for (const feeding of [
      { chunk: 1024, together: false },
      { chunk: 7, together: true },
    ]) {
      const { max } = compareLogits(referenceBackend, golden, feeding);
      assert.ok(max < FLOAT32_BOUND, `logits differ by ${max} with ${JSON.stringify(feeding)}`);
    }
  });

  test(`The reference executor continues the prompts of ${golden.name} greedily`, () => {
    const model = loadModel(golden.path, { dtype: 'float32' });
    const compared = compareGreedy(referenceBackend, model, golden.greedy, FLOAT32_BOUND);
    assert.ok(compared > 32, `only ${compared} tokens could be compared`);
  });
}
