import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { createCpuBackend } from '../../../src/backend/cpu/cpu-backend.js';
import { referenceBackend } from '../../../src/backend/reference/reference.js';
import { loadModel } from '../../../src/model/load-model.js';
import { loadTokenizer } from '../../../src/tokenizer/load-tokenizer.js';
import { asFloats } from '../../helpers/as-floats.js';
import { compareLogits, quantizedGoldens } from '../../helpers/goldens.js';

const cpu = createCpuBackend({ threads: 1 });
const FEEDING = { chunk: 1024, together: false };

/**
 * Largest difference of a logit, of order 1. Formats that come over exactly differ by float32
 * rounding; Q6_K is rounded to 8 bits in groups of 32.
 */
const BOUNDS: Readonly<Record<string, number>> = { 'quantized/gguf-llama': 0.1 };

for (const golden of quantizedGoldens()) {
  test(`The weights of ${golden.name} are those that its format describes`, () => {
    const model = asFloats(loadModel(golden.path, { dtype: 'float32' }));
    const { max } = compareLogits(referenceBackend, golden, FEEDING, 'float32', model);
    const bound = BOUNDS[golden.name] ?? 1e-3;
    assert.ok(max < bound, `logits differ by ${max}`);
  });

  test(`${golden.name} runs on its integers, with activations rounded to 8 bits`, () => {
    const reference = compareLogits(referenceBackend, golden, FEEDING).relativeRms;
    assert.ok(reference < 0.05, `logits differ by ${reference} of their spread`);
    // Integer products are exact, so both executors are off by the same roundings.
    const native = compareLogits(cpu, golden, FEEDING).relativeRms;
    assert.ok(
      Math.abs(native - reference) < 2e-3,
      `${native} on the CPU, ${reference} by reference`,
    );
  });
}

for (const { name, path } of quantizedGoldens().filter(({ name }) => name.includes('gguf'))) {
  test(`The tokenizer inside ${name} makes the tokens that its library makes`, async () => {
    const { texts } = JSON.parse(readFileSync(join(path, 'golden.json'), 'utf8'));
    const tokenizer = await loadTokenizer(path);
    assert.ok(texts.length > 2);
    for (const { text, ids } of texts) {
      assert.deepEqual(tokenizer.encode(text), ids, text);
      assert.equal(tokenizer.decode(ids.slice(1)), text);
    }
    const direct = await loadTokenizer(join(path, 'model.gguf'));
    assert.deepEqual(direct.encode('Once'), tokenizer.encode('Once'));
  });
}
