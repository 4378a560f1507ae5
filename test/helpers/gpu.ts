/**
 * What the tests in test/cuda run on: the GPU, or with TEST_DEVICE=cpu this machine's cores, which
 * tries the tests themselves where there is no GPU.
 */
import type { Backend, KvCacheDtype } from '../../src/backend/backend.js';
import { type Device, type DeviceOptions, loadBackend } from '../../src/backend/load-backend.js';
import type { EngineOptions } from '../../src/engine/engine-options.js';
import { STORIES } from './goldens.js';

export const TEST_DEVICE = (process.env.TEST_DEVICE ?? 'cuda') as Device;

export function testBackend(options: Omit<DeviceOptions, 'device'> = {}): Promise<Backend> {
  return loadBackend({ device: TEST_DEVICE, ...options });
}

/** The executor with its runners' keys and values in another type. */
export function keeping(backend: Backend, kvCacheDtype: KvCacheDtype): Backend {
  return {
    ...backend,
    createRunner: (program, weights, options, onProgress) =>
      backend.createRunner(program, weights, { ...options, kvCacheDtype }, onProgress),
  };
}

/** An engine of stories-7m that leaves room for the tests beside it. */
export function storiesEngine(options: Partial<EngineOptions> = {}): EngineOptions {
  return { model: STORIES, device: TEST_DEVICE, kvCacheMemory: 64 * 2 ** 20, ...options };
}
