import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createCpuBackend } from '../../src/backend/cpu/cpu-backend.js';
import { kvBytesPerBlock } from '../../src/backend/cuda/cuda-backend.js';
import { checkKvCacheDtype, kvDtypeOf } from '../../src/backend/kv-dtype.js';
import { referenceBackend } from '../../src/backend/reference/reference.js';
import { blockBytes } from '../../src/engine/plan-runner.js';
import { InvalidParameterError } from '../../src/errors.js';
import { loadModel } from '../../src/model/load-model.js';
import { STORIES } from '../helpers/goldens.js';

const model = loadModel(STORIES, { dtype: 'bfloat16' });

test('What keys and values are kept in is refused by name where a device does not have it', () => {
  for (const device of ['cpu', 'cuda', 'reference']) checkKvCacheDtype(device, 'auto');
  checkKvCacheDtype('cuda', 'fp8');
  for (const [device, kvCacheDtype] of [
    ['cuda', 'int8'],
    ['cpu', 'fp8'],
    ['reference', 'fp8'],
  ] as const) {
    assert.throws(
      () => checkKvCacheDtype(device, kvCacheDtype),
      (error) =>
        error instanceof InvalidParameterError &&
        error.message.includes(`kvCacheDtype ${kvCacheDtype} is there with`) &&
        error.message.endsWith(`the device is ${device}`),
    );
  }
});

test('Executors without fp8 refuse it when memory is planned and when a runner is made', () => {
  for (const backend of [referenceBackend, createCpuBackend()]) {
    const options = { blockSize: 16, kvCacheDtype: 'fp8' } as const;
    const refusal = { message: new RegExp(`with device cuda; the device is ${backend.name}`) };
    assert.throws(() => blockBytes(backend, model, options), refusal);
    const sizes = { numBlocks: 4, maxTokens: 16, maxSeqs: 1, maxModelLen: 64 };
    const { program, weights } = model;
    assert.throws(() => backend.createRunner(program, weights, { ...options, ...sizes }), refusal);
  }
});

test('On the GPU a block in fp8 takes half of one in 16 bits', () => {
  const fp8 = kvBytesPerBlock(model.program, 16, kvDtypeOf(model.weights, 'fp8'));
  assert.equal(2 * fp8, kvBytesPerBlock(model.program, 16, kvDtypeOf(model.weights)));
  assert.equal(kvDtypeOf(model.weights), 'bfloat16');
});
