import assert from 'node:assert/strict';
import { cpSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { ModelError } from '../../../src/errors.js';
import { loadModel } from '../../../src/model/load-model.js';
import { readTensor } from '../../../src/model/read-tensor.js';
import { readSafetensors } from '../../../src/model/safetensors.js';
import type { TensorRef } from '../../../src/model/weights.js';
import {
  changedCheckpoint,
  oneScale,
  type StoredTensor,
} from '../../helpers/changed-checkpoint.js';
import { quantizedGoldens, readGolden } from '../../helpers/goldens.js';
import { randomSource } from '../../helpers/random.js';
import { safetensorsBytes, temporaryModel } from '../../helpers/tiny-model.js';

/** A golden with another quantization_config, loaded and read. */
function loadWith(
  t: TestContext,
  name: string,
  quantization: (quantization: Record<string, never>) => object,
): void {
  readAll(changedCheckpoint(t, `quantized/${name}`, { quantization }));
}

function readAll(path: string): void {
  const { program, weights } = loadModel(path);
  for (const { tensor } of program.weights.flatMap(({ parts }) => parts)) {
    readTensor(weights.tensor(tensor));
  }
}

test('Schemes that are not supported are refused by name', (t) => {
  const refuses = (name: string, changes: object, expected: RegExp) =>
    assert.throws(
      () => loadWith(t, name, (quantization) => ({ ...quantization, ...changes })),
      (error) => error instanceof ModelError && expected.test(error.message),
      String(expected),
    );
  refuses('awq', { quant_method: 'bitsandbytes' }, /"bitsandbytes" is not supported/);
  refuses('awq', { quant_method: 'toString' }, /"toString" is not supported/);
  refuses('awq', { version: 'gemv' }, /version is "gemv"/);
  refuses('gptq-int4-asym', { bits: 3 }, /bits is 3, expected 4 or 8/);
  refuses('gptq-int4-asym', { checkpoint_format: 'marlin' }, /checkpoint_format is "marlin"/);
  refuses('gptq-int4-asym', { group_size: 48 }, /qzeros|group_size/);
  refuses('gptq-int4-asym', { sym: true }, /symmetric/);
  refuses(
    'compressed-int8',
    { format: 'nvfp4-pack-quantized' },
    /format is "nvfp4-pack-quantized"/,
  );
  refuses('compressed-int8', { sparsity_config: { format: 'sparse-24-bitmask' } }, /sparse/);
  refuses('compressed-int8', { config_groups: {} }, /no group's targets name/);
  refuses('gptq-int4-asym', { is_marlin_format: true }, /marlin/);
  refuses('gptq-int4-asym', { dynamic: { '+:.*down.*': { bits: 8 } } }, /dynamic/);
  const weights = { num_bits: 8, type: 'float', strategy: 'channel' };
  const group = (changes: object) => ({
    config_groups: { a: { targets: ['Linear'], weights: { ...weights, ...changes } } },
  });
  refuses('compressed-fp8', group({ symmetric: false }), /symmetric is false/);
  refuses('compressed-fp8', group({ strategy: 'block' }), /block_structure/);
  refuses('compressed-fp8', group({ strategy: 'group', group_size: 32 }), /strategy is "group"/);
});

test('Parts that are quantized in different ways become floats, and a note says so', () => {
  const golden = readGolden('quantized/gptq-act-order');
  const { program, weights, notes } = loadModel(golden.path);
  assert.deepEqual(notes, []);
  const fused = program.weights.find(({ name }) => name.endsWith('qkv_proj.weight'))!;
  const storage = weights.storage(fused);
  assert.deepEqual(storage, {
    ...{ kind: 'integer', bits: 4, group: 32, symmetric: true },
    unasked: true,
  });
  const orders = fused.parts.map(({ tensor }) => {
    const found = weights.tensor(tensor);
    assert.equal(found.kind, 'quantized');
    return found.kind === 'quantized' && found.columns?.join();
  });
  assert.ok(orders[0], 'the golden has act-order');
  assert.equal(new Set(orders).size, 1);
});

/** All tensors of the linears of a checkpoint, by name. */
function linears(path: string): Map<string, TensorRef> {
  const { program, weights } = loadModel(path);
  const parts = program.weights.flatMap((weight) => weight.parts);
  const names = parts.map(({ tensor }) => tensor).filter((name) => name.endsWith('_proj.weight'));
  return new Map(names.map((name) => [name, weights.tensor(name)]));
}

test('fp8 weights with a scale for each row, or for all, stay codes until an executor reads them', (t) => {
  const { path } = readGolden('quantized/compressed-fp8');
  const whole = linears(changedCheckpoint(t, 'quantized/compressed-fp8', { tensor: oneScale }));
  const auto = linears(
    changedCheckpoint(t, 'quantized/compressed-fp8', {
      tensor: oneScale,
      quantization: () => ({ quant_method: 'fp8', activation_scheme: 'static' }),
    }),
  );
  const { program, weights, notes } = loadModel(path);
  assert.deepEqual(notes, []);
  const fused = program.weights.find(({ name }) => name.endsWith('qkv_proj.weight'))!;
  assert.deepEqual(weights.storage(fused), { kind: 'fp8', unasked: true });
  for (const [name, tensor] of linears(path)) {
    const one = whole.get(name)!;
    assert.ok(tensor.kind === 'fp8' && one.kind === 'fp8' && auto.get(name)?.kind === 'fp8', name);
    const [scales, repeated] = [tensor.readScales(), one.readScales()];
    assert.equal(scales.length, tensor.shape[0]);
    assert.deepEqual(repeated, new Float32Array(tensor.shape[0]).fill(scales[0]));
    const [values, others] = [readTensor(tensor), readTensor(one)];
    const width = tensor.shape[1];
    const last = (scales.length - 1) * width;
    assert.ok(values.subarray(last).some((value) => value !== 0));
    for (let k = 0; k < width; k++) {
      assert.equal(values[k], others[k]);
      const ratio = scales[scales.length - 1] / scales[0];
      const expected = others[last + k] * ratio;
      assert.ok(Math.abs(values[last + k] - expected) <= 1e-6 * Math.abs(expected), name);
    }
  }
});

test('fp8 weights with scales of blocks are floats, and a note says so', (t) => {
  const rename = ({ name, ...rest }: StoredTensor) => ({
    ...rest,
    name: name.replace(/weight_scale$/, 'weight_scale_inv'),
  });
  // A block that is one row: the values are those of the original.
  const quantization = () => ({ quant_method: 'fp8', weight_block_size: [1, 4096] });
  const path = changedCheckpoint(t, 'quantized/compressed-fp8', { quantization, tensor: rename });
  assert.match(loadModel(path).notes.join(), /fp8 weights with a scale for each block/);
  const originals = linears(readGolden('quantized/compressed-fp8').path);
  for (const [name, tensor] of linears(path)) {
    assert.equal(tensor.kind, 'computed');
    assert.deepEqual(readTensor(tensor), readTensor(originals.get(name)!), name);
  }
});

test('Scales of an 8-bit KV cache in a checkpoint are not used, and a note says so', (t) => {
  const golden = 'quantized/compressed-fp8';
  const path = changedCheckpoint(t, golden, {});
  const file = join(path, 'extra.safetensors');
  const scale = join(path, 'model.safetensors');
  const names = readSafetensors(scale).map(({ name }) => name);
  const name = 'model.layers.0.self_attn.k_scale';
  writeFileSync(
    file,
    safetensorsBytes({ [name]: { dtype: 'F32', shape: [1], data_offsets: [0, 4] } }, 4),
  );
  renameSync(scale, join(path, 'first.safetensors'));
  const map = Object.fromEntries(names.map((each) => [each, 'first.safetensors']));
  writeFileSync(
    join(path, 'model.safetensors.index.json'),
    JSON.stringify({ weight_map: { ...map, [name]: 'extra.safetensors' } }),
  );
  assert.match(loadModel(path).notes.join(), /KV cache.*not used/);
});

for (const { name, path } of quantizedGoldens().filter(({ name }) => !name.includes('gguf'))) {
  test(`A damaged ${name} loads or fails with a ModelError`, (t) => {
    const folder = temporaryModel(t, {});
    cpSync(path, folder, { recursive: true });
    const files = ['config.json', 'model.safetensors'].map((file) => join(folder, file));
    const whole = files.map((file) => readFileSync(file));
    const header = 8 + Number(whole[1].readBigUInt64LE());
    const random = randomSource(9);
    let refused = 0;
    for (let round = 0; round < 120; round++) {
      const which = round % 2;
      const bytes = Buffer.from(whole[which]);
      const span = which === 0 ? bytes.length : header;
      const at = Math.floor(random() * span);
      // Digits and letters change meaning without breaking the JSON.
      const digit = bytes[at] >= 48 && bytes[at] <= 57;
      bytes[at] = digit ? 48 + Math.floor(random() * 10) : Math.floor(random() * 128);
      writeFileSync(files[0], whole[0]);
      writeFileSync(files[1], whole[1]);
      writeFileSync(files[which], bytes);
      try {
        readAll(folder);
      } catch (error) {
        assert.ok(error instanceof ModelError, `round ${round}: ${(error as Error).stack}`);
        refused++;
      }
    }
    assert.ok(refused > 20, `only ${refused} were refused`);
  });
}
