import assert from 'node:assert/strict';
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { ModelError } from '../../../src/errors.js';
import { loadModel } from '../../../src/model/load-model.js';
import { readTensor } from '../../../src/model/read-tensor.js';
import { quantizedGoldens, readGolden } from '../../helpers/goldens.js';
import { randomSource } from '../../helpers/random.js';
import { temporaryModel } from '../../helpers/tiny-model.js';

/** A golden with another quantization_config, loaded and read. */
function loadWith(
  t: Parameters<typeof temporaryModel>[0],
  name: string,
  change: (quantization: Record<string, never>) => object,
): void {
  const folder = temporaryModel(t, {});
  cpSync(readGolden(`quantized/${name}`).path, folder, { recursive: true });
  const file = join(folder, 'config.json');
  const config = JSON.parse(readFileSync(file, 'utf8'));
  config.quantization_config = change(config.quantization_config);
  writeFileSync(file, JSON.stringify(config));
  readAll(folder);
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
});

test('Parts that are quantized in different ways become floats, and a note says so', () => {
  const golden = readGolden('quantized/gptq-act-order');
  const { program, weights, notes } = loadModel(golden.path);
  assert.deepEqual(notes, []);
  const fused = program.weights.find(({ name }) => name.endsWith('qkv_proj.weight'))!;
  const storage = weights.storage(fused);
  assert.deepEqual(storage, { kind: 'integer', bits: 4, group: 32, symmetric: true });
  const orders = fused.parts.map(({ tensor }) => {
    const found = weights.tensor(tensor);
    assert.equal(found.kind, 'quantized');
    return found.kind === 'quantized' && found.columns?.join();
  });
  assert.ok(orders[0], 'the golden has act-order');
  assert.equal(new Set(orders).size, 1);
});

test('fp8 weights load as floats, with a note', () => {
  const { notes } = loadModel(readGolden('quantized/compressed-fp8').path);
  assert.match(notes.join(), /fp8/);
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
