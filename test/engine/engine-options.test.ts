import assert from 'node:assert/strict';
import { test } from 'node:test';
import { deviceWarnings } from '../../src/backend/load-backend.js';
import { type EngineOptions, resolveOptions } from '../../src/engine/engine-options.js';

const refused = (options: Partial<EngineOptions>, param: string, message: RegExp): void => {
  assert.throws(() => resolveOptions({ model: 'm', ...options }), {
    code: 'invalid_parameter',
    param,
    message,
  });
};

test('A GPU has larger steps by default, a smaller choice of the operator goes through', () => {
  const cpu = resolveOptions({ model: 'm' });
  assert.deepEqual([cpu.maxNumSeqs, cpu.maxNumBatchedTokens], [256, 2048]);
  const cuda = resolveOptions({ model: 'm', device: 'cuda' });
  assert.deepEqual([cuda.maxNumSeqs, cuda.maxNumBatchedTokens], [512, 8192]);
  const small = resolveOptions({ model: 'm', device: 'cuda', maxNumBatchedTokens: 100 });
  assert.deepEqual([small.maxNumSeqs, small.maxNumBatchedTokens], [100, 100]);
});

test('An option of one device is refused with another, because it would do nothing', () => {
  refused(
    { gpuMemoryUtilization: 0.5 },
    'gpuMemoryUtilization',
    /option of device cuda; .* is cpu/,
  );
  refused({ enforceEager: true }, 'enforceEager', /option of device cuda; the device is cpu/);
  refused({ device: 'cuda', threads: 2 }, 'threads', /option of device cpu; the device is cuda/);
  refused({ device: 'cuda', cpuIsa: 'avx2' }, 'cpuIsa', /option of device cpu; the device is cuda/);
  refused({ device: 'reference', threads: 2 }, 'threads', /the device is reference/);
  refused(
    { device: 'cuda', kvCacheDtype: 'int8' },
    'kvCacheDtype',
    /int8 is there with device cpu and reference; the device is cuda/,
  );
  refused({ kvCacheDtype: 'fp8' }, 'kvCacheDtype', /fp8 is there with device cuda; .* is cpu/);
  resolveOptions({ model: 'm', device: 'cuda', kvCacheDtype: 'fp8' });
  resolveOptions({ model: 'm', enforceEager: false });
});

test('The share of GPU memory is a number above 0 and up to 1', () => {
  for (const gpuMemoryUtilization of [0, 1.1, Number.NaN, '0.5' as unknown as number]) {
    refused(
      { device: 'cuda', gpuMemoryUtilization },
      'gpuMemoryUtilization',
      /above 0 and up to 1/,
    );
  }
  resolveOptions({ model: 'm', device: 'cuda', gpuMemoryUtilization: 1 });
  refused({ device: 'gpu' as 'cuda' }, 'device', /one of cpu, cuda, reference/);
});

test('More threads than cores are allowed, with a warning', () => {
  assert.deepEqual(deviceWarnings({ threads: 4 }, 4), []);
  assert.deepEqual(deviceWarnings({}, 1), []);
  const [warning, ...others] = deviceWarnings({ threads: 5 }, 4);
  assert.match(warning, /^warning: 5 threads share 4 cores/);
  assert.deepEqual(others, []);
});
