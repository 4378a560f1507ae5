import assert from 'node:assert/strict';
import { test } from 'node:test';
import { loadModel } from '../../src/model/load-model.js';
import type { DType } from '../../src/model/weights.js';
import { compareGreedy, compareLogits, goldens } from '../helpers/goldens.js';
import { keeping, TEST_DEVICE, testBackend } from '../helpers/gpu.js';

/**
 * Root mean square of the difference over that of the logits. Float32: sums in another order, and
 * the logits are of order 1, so the largest difference is bounded as well. The others round the
 * weights, the inputs and output of each of some 20 products and the residual stream between them,
 * each by at most 2^-9 (bfloat16) or 2^-12 (float16) of its size: 60 roundings that do not cancel,
 * half as large on average.
 */
const BOUNDS: Record<DType, number> = {
  float32: 1e-4,
  float16: 30 * 2 ** -12,
  bfloat16: 30 * 2 ** -9,
};
const FLOAT32_MOST = 1e-3;
/**
 * A margin of logits below this may fall to either side: three standard deviations of the difference
 * of two logits of order 1, each as far off as the bound allows.
 */
const NOISE: Record<DType, number> = {
  float32: FLOAT32_MOST,
  float16: 3 * Math.SQRT2 * BOUNDS.float16,
  bfloat16: 3 * Math.SQRT2 * BOUNDS.bfloat16,
};

/**
 * Rounding may turn a router's close decision, which changes what all later tokens see, by as much
 * in one 16-bit type as in the other: of a mixture of experts in 16 bits no token is compared, and
 * the logits only as far as rules out that experts or their weights are mixed up.
 */
const ROUTED = 6 * BOUNDS.bfloat16;

/**
 * Of keys and values in fp8, which rounds each by up to 2^-4 of its size. Rounding alone, tried
 * in the reference executor, gave 0.05 to 0.14 for these models, whose random weights make single
 * keys matter; columns, heads or tokens mixed up give more than 1.
 */
const FP8 = 0.25;

const FEEDINGS = [
  { chunk: 1024, together: false },
  { chunk: 7, together: true },
  { chunk: 1, together: true },
];

const backend = await testBackend();

for (const golden of goldens()) {
  for (const dtype of ['float32', 'float16', 'bfloat16'] as const) {
    const model = loadModel(golden.path, { dtype });
    const routed = dtype !== 'float32' && model.program.ops.some(({ kind }) => kind === 'moe');
    const bound = routed ? ROUTED : BOUNDS[dtype];

    test(`The GPU computes the logits of ${golden.name} in ${dtype}`, () => {
      for (const feeding of FEEDINGS) {
        const { max, relativeRms } = compareLogits(backend, golden, feeding, dtype, model);
        const what = `${JSON.stringify(feeding)}: relative ${relativeRms}, largest ${max}`;
        assert.ok(relativeRms < bound, what);
        if (dtype === 'float32') assert.ok(max < FLOAT32_MOST, what);
      }
    });

    // A router's decision may turn.
    const mixture = model.program.ops.some(({ kind }) => kind === 'moe');
    const fp8 = TEST_DEVICE === 'cuda' && !mixture ? test : test.skip;
    fp8(
      `The GPU computes the logits of ${golden.name} in ${dtype} with keys and values in fp8`,
      () => {
        for (const feeding of FEEDINGS) {
          const compared = compareLogits(keeping(backend, 'fp8'), golden, feeding, dtype, model);
          const what = `${JSON.stringify(feeding)}: relative ${compared.relativeRms}`;
          assert.ok(compared.relativeRms < FP8 + bound, what);
          assert.ok(compared.relativeRms > 0.02, `${what}: nothing was rounded`);
        }
      },
    );

    if (routed) continue;
    test(`The GPU continues the prompts of ${golden.name} greedily in ${dtype}`, () => {
      const compared = compareGreedy(backend, model, golden.greedy, NOISE[dtype]);
      const least = dtype === 'float32' ? 32 : 4;
      assert.ok(compared > least, `only ${compared} tokens could be compared`);
    });
  }
}
