import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createCpuBackend } from '../../src/backend/cpu/cpu-backend.js';
import { InvalidParameterError } from '../../src/errors.js';
import { loadModel } from '../../src/model/load-model.js';
import type { Weight } from '../../src/model/program.js';
import type { QuantizationOptions } from '../../src/model/quantization.js';
import { compareLogits, readGolden } from '../helpers/goldens.js';

const INT8 = { kind: 'integer', bits: 8, group: 0, symmetric: true } as const;
const SIZES = { blockSize: 16, numBlocks: 4, maxTokens: 16, maxSeqs: 1, maxModelLen: 32 };

/** The storage of each matrix whose name ends so. */
function storages(golden: string, ending: string, options: QuantizationOptions) {
  const { program, weights } = loadModel(readGolden(golden).path, options);
  const found = program.weights.filter(({ name }: Weight) => name.endsWith(ending));
  assert.ok(found.length > 0, ending);
  return found.map((weight) => weights.storage(weight));
}

test('The head becomes int8 with every integer scheme, which nobody asked for by name', () => {
  const [byRule] = storages('llama-bias', 'lm_head.weight', { quantization: 'int4' });
  assert.deepEqual(byRule, { ...INT8, unasked: true });
  const quantizationOverrides = 'lm_head*=int8';
  const options = { quantization: 'int4', quantizationOverrides };
  assert.deepEqual(storages('llama-bias', 'lm_head.weight', options)[0], INT8);
  // Of a tied model the head is the embedding.
  const tied = { quantization: 'int4', quantizationOverrides: 'lm_head=int4-g64' };
  const [embedding] = storages('llama-tiny', 'embed_tokens.weight', tied);
  assert.ok(embedding.kind === 'integer' && embedding.group === 64);
});

test('What the checkpoint has as integers stays so, and a note says so', () => {
  const { path } = readGolden('quantized/gptq-int4-asym');
  const { notes } = loadModel(path, { quantization: 'int8' });
  assert.match(notes.join('\n'), /^8 matrices stay int4-g32-asym, as the checkpoint has them$/m);
  const options = { quantization: 'int8' };
  const [kept] = storages('quantized/gptq-int4-asym', '1.mlp.down_proj.weight', options);
  assert.ok(kept.kind === 'integer' && kept.bits === 4);
  const [head] = storages('quantized/gptq-int4-asym', 'lm_head.weight', options);
  assert.ok(head.kind === 'integer' && head.bits === 8);
});

test('A scheme that would change nothing is refused', () => {
  const refused = (golden: string, quantization: string, message: RegExp) =>
    assert.throws(
      () => loadModel(readGolden(golden).path, { quantization }),
      (error) =>
        error instanceof InvalidParameterError &&
        error.param === 'quantization' &&
        message.test(error.message),
    );
  refused('quantized/awq', 'fp8', /quantization fp8 changes nothing: .* int4-g32-asym/);
});

test('An override also changes what the checkpoint has quantized', () => {
  const golden = readGolden('quantized/awq');
  const override = (quantizationOverrides: string) =>
    loadModel(golden.path, { dtype: 'float32', quantizationOverrides });
  const backend = createCpuBackend();
  const feeding = { chunk: 1024, together: false };
  const float = override('*=float');
  // Floats of the same values: no activation is rounded.
  const { relativeRms } = compareLogits(backend, golden, feeding, 'float32', float);
  assert.ok(relativeRms < 1e-4, `${relativeRms}`);
  const mixed = override('*.mlp.down_proj=int8');
  const runner = backend.createRunner(mixed.program, mixed.weights, SIZES);
  assert.match(runner.description, /int4-g32-asym and .*int8/);
  runner.close();
  const close = compareLogits(backend, golden, feeding, 'float32', mixed);
  assert.ok(close.relativeRms < 0.1, `${close.relativeRms}`);
});

test('An fp8 checkpoint is floats on the CPU, which says so, or what an option asks for', () => {
  const { path } = readGolden('quantized/compressed-fp8');
  const describe = (options: QuantizationOptions) => {
    const { program, weights } = loadModel(path, { dtype: 'bfloat16', ...options });
    const runner = createCpuBackend().createRunner(program, weights, SIZES);
    runner.close();
    return runner.description;
  };
  assert.match(describe({}), /in bfloat16, 8 matrices of fp8 widened\)$/);
  const asked = describe({ quantization: 'int8' });
  assert.match(asked, /weights in int8 and bfloat16/);
  assert.doesNotMatch(asked, /widened/);
  assert.throws(() => describe({ quantization: 'fp8' }), /fp8: 8-bit floats are of device cuda/);
});

test('With fp8 a note says that experts stay floats', () => {
  const { notes } = loadModel(readGolden('mixtral-tiny').path, { quantization: 'fp8' });
  assert.match(notes.join(), /experts are not in fp8/);
});

test('A pattern that fits nothing and a scheme that is none are refused by name', () => {
  const refused = (quantizationOverrides: string, message: RegExp) =>
    assert.throws(() => loadModel(readGolden('llama-bias').path, { quantizationOverrides }), {
      name: 'InvalidParameterError',
      param: 'quantizationOverrides',
      message,
    });
  refused('*.norm.weight=int8', /pattern of a linear/);
  refused('*=int3', /int8 or int4.*quantizationOverrides.*int3/);
  refused('lm_head', /PATTERN=SCHEME/);
  refused('proj=int8', /pattern of a linear/);
  refused('a=b=c', /PATTERN=SCHEME/);
});
