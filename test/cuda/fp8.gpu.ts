import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import { createCpuBackend } from '../../src/backend/cpu/cpu-backend.js';
import { type LoadedModel, loadModel } from '../../src/model/load-model.js';
import { changedCheckpoint, oneScale } from '../helpers/changed-checkpoint.js';
import {
  compareLogits,
  type Golden,
  goldenOf,
  heldOutSequences,
  negativeLogLikelihood,
  readGolden,
  STORIES,
  storiesGolden,
} from '../helpers/goldens.js';
import { TEST_DEVICE, testBackend } from '../helpers/gpu.js';

const skip = TEST_DEVICE === 'cuda' ? false : 'fp8 is of device cuda';
const backend = await testBackend();

/**
 * Weights and inputs of a product are each rounded by at most 2^-4 of their size, 2.6 % as a root mean
 * square: 3.7 % of a product together, 10 % over the 8 that lie one behind the other in two layers.
 * Attention and norms may double that. Scales that are another row's or token's err by 100 %.
 */
const BOUND = 0.3;

/** cuBLASLt has products of fp8 with bfloat16 results; others not everywhere, and says so. */
function available(t: TestContext, { program, weights }: LoadedModel): boolean {
  const sizes = { blockSize: 16, numBlocks: 1, maxTokens: 16, maxSeqs: 1, maxModelLen: 16 };
  try {
    backend.createRunner(program, weights, sizes).close();
    return true;
  } catch (error) {
    if (!/no products of fp8/.test((error as Error).message)) throw error;
    t.skip((error as Error).message);
    return false;
  }
}

for (const name of ['llama-tiny', 'llama-bias', 'llama3-rope', 'qwen2-tiny', 'qwen3-tiny']) {
  for (const dtype of ['float16', 'bfloat16'] as const) {
    test(`With weights in fp8 the logits of ${name} in ${dtype} err no more than 3 bits do`, {
      skip,
    }, (t) => {
      const golden = readGolden(name);
      const model = loadModel(golden.path, { dtype, quantization: 'fp8' });
      if (dtype === 'float16' && !available(t, model)) return;
      for (const feeding of [
        { chunk: 1024, together: false },
        { chunk: 7, together: true },
        { chunk: 1, together: true },
      ]) {
        const { relativeRms } = compareLogits(backend, golden, feeding, dtype, model);
        assert.ok(relativeRms < BOUND, `${JSON.stringify(feeding)}: relative ${relativeRms}`);
        // Floats would be much nearer: the weights are in fp8 indeed.
        assert.ok(relativeRms > 0.05, `${relativeRms}`);
      }
    });
  }
}

test('The head in fp8 is one product more', { skip }, (t) => {
  const golden = readGolden('llama-bias');
  const quantizationOverrides = 'lm_head.weight=fp8';
  const model = loadModel(golden.path, { dtype: 'bfloat16', quantizationOverrides });
  if (!available(t, model)) return;
  const feeding = { chunk: 7, together: true };
  const { relativeRms } = compareLogits(backend, golden, feeding, 'bfloat16', model);
  assert.ok(relativeRms < 0.08 && relativeRms > 0.02, `${relativeRms}`);
});

const PUBLISHED = readGolden('quantized/compressed-fp8');
const FEEDINGS = [
  { chunk: 1024, together: false },
  { chunk: 7, together: true },
  { chunk: 1, together: true },
];

/**
 * The weights are those of the golden exactly, so that only activations are rounded. The reference
 * executor with activations rounded in the same way errs by 0.11; floats would by less than 0.06.
 */
const [KEPT_LEAST, KEPT_MOST] = [0.06, 0.18];

function requireKept(golden: Golden, model: LoadedModel): void {
  assert.match(describe(model), /weights in fp8 and bfloat16, KV cache/);
  for (const feeding of FEEDINGS) {
    const { relativeRms } = compareLogits(backend, golden, feeding, 'bfloat16', model);
    const figures = `${JSON.stringify(feeding)}: relative ${relativeRms}`;
    assert.ok(relativeRms < KEPT_MOST && relativeRms > KEPT_LEAST, figures);
  }
}

function describe({ program, weights }: LoadedModel): string {
  const sizes = { blockSize: 16, numBlocks: 1, maxTokens: 16, maxSeqs: 1, maxModelLen: 16 };
  const runner = backend.createRunner(program, weights, sizes);
  runner.close();
  return runner.description;
}

test('A checkpoint in fp8 is computed from its own codes, asked for or not', { skip }, () => {
  for (const quantization of [undefined, 'fp8']) {
    requireKept(PUBLISHED, loadModel(PUBLISHED.path, { dtype: 'bfloat16', quantization }));
  }
});

test('A checkpoint in fp8 with one scale a tensor is computed from its own codes', {
  skip,
}, (t) => {
  const path = changedCheckpoint(t, 'quantized/compressed-fp8', { tensor: oneScale });
  const wide = loadModel(path, { dtype: 'float32' });
  const golden = goldenOf(createCpuBackend(), wide, PUBLISHED);
  requireKept(golden, loadModel(path, { dtype: 'bfloat16' }));
});

test('A checkpoint in fp8 is widened for float16, and the runner says so', { skip }, () => {
  const model = loadModel(PUBLISHED.path, { dtype: 'float16' });
  assert.match(describe(model), /weights in float16, 8 matrices of fp8 widened, KV cache/);
  for (const feeding of FEEDINGS) {
    const { relativeRms } = compareLogits(backend, PUBLISHED, feeding, 'float16', model);
    assert.ok(relativeRms < 30 * 2 ** -12, `${JSON.stringify(feeding)}: relative ${relativeRms}`);
  }
});

test('In fp8 the perplexity of stories-7m rises by less than 2 %', { skip }, async () => {
  const model = loadModel(STORIES, { dtype: 'bfloat16', quantization: 'fp8' });
  const { sum, tokens } = negativeLogLikelihood(backend, model, await heldOutSequences());
  const { perplexity } = storiesGolden();
  assert.equal(tokens, perplexity.tokens);
  const rise = Math.exp(sum / tokens) / perplexity.ppl - 1;
  console.log(`# fp8: perplexity rises by ${(100 * rise).toFixed(2)} %`);
  assert.ok(rise < 0.02 && rise > -0.005, `${rise}`);
});
