import assert from 'node:assert/strict';
import { test } from 'node:test';
import { bfloat16ToFloat, float16ToFloat, roundTo } from '../../src/model/half.js';
import { loadModel } from '../../src/model/load-model.js';
import { readTensor } from '../../src/model/read-tensor.js';
import { type DummyTensor, dummyValue, hash32 } from '../../src/model/weights.js';
import { temporaryModel, tinyConfig } from '../helpers/tiny-model.js';

test('Every 16-bit float survives reading and rounding', () => {
  for (let bits = 0; bits < 0x10000; bits++) {
    for (const [dtype, read] of [
      ['float16', float16ToFloat],
      ['bfloat16', bfloat16ToFloat],
    ] as const) {
      const value = read(bits);
      if (Number.isNaN(value)) assert.ok(Number.isNaN(roundTo(dtype, value)));
      else if (roundTo(dtype, value) !== value) assert.fail(`${dtype} ${bits}: ${value}`);
    }
  }
});

test('Rounding goes to the nearest, ties to even, overflow to infinity', () => {
  assert.equal(roundTo('bfloat16', 1 + 2 ** -8), 1);
  assert.equal(roundTo('bfloat16', 1 + 3 * 2 ** -8), 1 + 2 ** -6);
  assert.equal(roundTo('bfloat16', 1 + 2 ** -8 + 2 ** -20), 1 + 2 ** -7);
  assert.equal(roundTo('float16', 1 + 2 ** -11), 1);
  assert.equal(roundTo('float16', -(1 + 3 * 2 ** -11)), -(1 + 2 ** -9));
  assert.equal(roundTo('float16', 65519), 65504);
  assert.equal(roundTo('float16', 65520), Infinity);
  assert.equal(roundTo('float16', 3 * 2 ** -25), 2 ** -23);
  assert.equal(float16ToFloat(0x3555), 0.333251953125);
});

test('Dummy values are these very numbers, so that other executors can match them', () => {
  // From the definition of lowbias32, computed apart.
  const hashes = ['0', '688990c0', 'd1132181', '6768824a'];
  assert.deepEqual(
    [0, 1, 2, 0xffffffff].map((word) => hash32(word).toString(16)),
    hashes,
  );
  const tensor: DummyTensor = {
    kind: 'dummy',
    seed: 0,
    mean: 0,
    scale: 1,
    dtype: 'float32',
    shape: [1],
  };
  assert.equal(dummyValue(tensor, 0), -1);
  const values = Float64Array.from({ length: 10000 }, (_, i) => dummyValue(tensor, i));
  assert.ok(values.every((value) => value >= -1 && value < 1));
  const mean = values.reduce((a, b) => a + b) / values.length;
  const variance = values.reduce((a, b) => a + b * b, 0) / values.length;
  assert.ok(Math.abs(mean) < 0.02, `${mean}`);
  assert.ok(Math.abs(variance - 1 / 3) < 0.01, `${variance}`);
});

test('Dummy weights depend on seed and name, and keep their scale', (t) => {
  const directory = temporaryModel(t, { 'config.json': tinyConfig() });
  const read = (name: string, seed: number) =>
    readTensor(loadModel(directory, { loadFormat: 'dummy', seed }).weights.tensor(name));
  const name = 'model.layers.0.mlp.up_proj.weight';
  assert.deepEqual(read(name, 1), read(name, 1));
  assert.notDeepEqual(read(name, 1), read(name, 2));
  assert.notDeepEqual(read(name, 1), read('model.layers.1.mlp.up_proj.weight', 1));
  assert.equal(read(name, 1).length, 48 * 32);
  const norm = read('model.norm.weight', 1);
  assert.ok(norm.every((value) => Math.abs(value - 1) <= 1 / 32));
});
