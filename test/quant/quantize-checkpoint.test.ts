import assert from 'node:assert/strict';
import { existsSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { referenceBackend } from '../../src/backend/reference/reference.js';
import { InvalidParameterError, ModelError } from '../../src/errors.js';
import { loadModel } from '../../src/model/load-model.js';
import { parseScheme } from '../../src/model/quantization.js';
import { readTensor } from '../../src/model/read-tensor.js';
import { evaluate } from '../../src/quant/evaluate.js';
import { quantizeCheckpoint } from '../../src/quant/quantize-checkpoint.js';
import { readGolden, STORIES } from '../helpers/goldens.js';
import { randomSource } from '../helpers/random.js';
import { temporaryModel } from '../helpers/tiny-model.js';

const source = readGolden('llama-bf16').path;
const random = randomSource(11);
const sequences = Array.from({ length: 12 }, () =>
  Array.from({ length: 40 }, () => Math.floor(random() * 160)),
);

for (const [scheme, bound] of [
  ['int8', 0.012],
  ['int4-g32', 0.15],
  ['int4-g32-asym', 0.15],
  ['int4-g128', 0.2],
] as const) {
  test(`A checkpoint written as ${scheme} loads, with the values that were chosen`, (t) => {
    const target = join(temporaryModel(t, {}), 'out');
    const shares: number[] = [];
    const storage = parseScheme(scheme);
    const { quantized, bytesBefore, bytesAfter } = quantizeCheckpoint({
      source,
      target,
      storage,
      ignore: ['*.layers.0.mlp.down_proj'],
      onProgress: (share) => shares.push(share),
    });
    assert.equal(quantized, 13);
    assert.ok(bytesAfter < bytesBefore);
    assert.equal(shares.at(-1), 1);
    const [before, after] = [loadModel(source), loadModel(target)];
    let compared = 0;
    for (const weight of before.program.weights) {
      for (const { tensor, shape } of weight.parts) {
        const [old, now] = [before, after].map(({ weights }) => readTensor(weights.tensor(tensor)));
        const kind = after.weights.tensor(tensor).kind;
        const skipped = /norm|embed|lm_head|layers\.0\.mlp\.down/.test(tensor);
        assert.equal(kind, skipped ? 'file' : 'quantized', tensor);
        const errors = old.map((value, i) => (value - now[i]) ** 2);
        const relative = Math.sqrt(
          errors.reduce((a, b) => a + b) / old.reduce((a, b) => a + b * b, 0),
        );
        assert.ok(
          skipped ? relative === 0 : relative > 0 && relative < bound,
          `${tensor} ${relative}`,
        );
        if (!skipped) compared += shape.length;
      }
    }
    assert.equal(compared, 26);
    const weight = after.program.weights.find(({ name }) =>
      name.endsWith('0.self_attn.qkv_proj.weight'),
    )!;
    // Of 64 inputs no group can have more.
    const group = scheme === 'int4-g128' ? 64 : storage.group;
    assert.deepEqual(after.weights.storage(weight), { ...storage, group, unasked: true });
    const { ignore } = JSON.parse(
      readFileSync(join(target, 'config.json'), 'utf8'),
    ).quantization_config;
    assert.ok(ignore.includes('lm_head') && ignore.includes('model.layers.0.mlp.down_proj'));
    assert.ok(existsSync(join(target, 'generation_config.json')));
    assert.ok(statSync(join(target, 'model.safetensors')).size >= bytesAfter);
  });
}

test('GPTQ loses less than rounding to nearest on text like that of the calibration', (t) => {
  const storage = parseScheme('int4-g32');
  const folder = temporaryModel(t, {});
  const judge = (name: string, calibrated: boolean) => {
    const target = join(folder, name);
    const calibration = calibrated ? { backend: referenceBackend, sequences } : undefined;
    quantizeCheckpoint({ source, target, storage, calibration });
    return evaluate({
      backend: referenceBackend,
      model: loadModel(target),
      base: loadModel(source),
      sequences: sequences.slice(0, 4),
    });
  };
  const [gptq, rounded] = [judge('gptq', true), judge('rtn', false)];
  assert.equal(gptq.tokens, 4 * 39);
  assert.ok(rounded.klMean.value > 0);
  assert.ok(
    gptq.klMean.value < 0.8 * rounded.klMean.value,
    `${gptq.klMean.value} against ${rounded.klMean.value}`,
  );
  const { interval } = gptq.klMean;
  assert.ok(interval[0] <= gptq.klMean.value && gptq.klMean.value <= interval[1]);
});

test('A model has lost nothing against itself', () => {
  const model = loadModel(source);
  const result = evaluate({
    backend: referenceBackend,
    model,
    base: model,
    sequences: sequences.slice(0, 3),
  });
  assert.equal(result.klMean.value, 0);
  assert.equal(result.perplexityIncrease.value, 0);
  assert.equal(result.top1Agreement.value, 1);
  assert.equal(result.greedyAgreement.value, result.greedyLength);
});

test('Texts shorter than a prompt are continued from what they have', () => {
  const model = loadModel(source);
  const result = evaluate({
    backend: referenceBackend,
    model,
    base: model,
    sequences: [[1, 5], sequences[0].slice(0, 7)],
  });
  assert.equal(result.tokens, 7);
  assert.equal(result.greedyAgreement.value, result.greedyLength);
});

test('Models with other vocabularies cannot be compared', () => {
  const [model, base] = [loadModel(source), loadModel(STORIES)];
  assert.throws(
    () => evaluate({ backend: referenceBackend, model, base, sequences }),
    /vocabulary of 160 tokens.* for against but received 4096/,
  );
});

test('What cannot be quantized is refused', (t) => {
  const storage = parseScheme('int8');
  const folder = temporaryModel(t, { 'something.txt': 'here' });
  const refuses = (
    options: object,
    expected: RegExp,
    kind: typeof ModelError | typeof InvalidParameterError,
  ) =>
    assert.throws(
      () => quantizeCheckpoint({ source, target: join(folder, 'out'), storage, ...options }),
      (error) => error instanceof kind && expected.test(error.message),
    );
  refuses({ target: folder }, /empty/, InvalidParameterError);
  const calibration = { backend: referenceBackend, sequences: [] };
  refuses({ calibration }, /calibration text has no two tokens/, InvalidParameterError);
  refuses({ source: folder }, /config\.json/, ModelError);
  refuses({ ignore: ['nothing*'] }, /nothing\*/, InvalidParameterError);
  refuses({ source: readGolden('quantized/awq').path }, /quantized already/, ModelError);
  assert.equal(existsSync(join(folder, 'out')), false);
});
