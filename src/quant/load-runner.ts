/** A model in an executor, outside the engine: for judging models, not for serving them. */
import type { Backend, KvCacheDtype, ModelRunner, RunnerOptions } from '../backend/backend.js';
import { type LoadedModel, type LoadModelOptions, loadModel } from '../model/load-model.js';

export const QUANT_DEVICES = ['cpu', 'reference'] as const;

export interface RunnerChoice {
  readonly device?: (typeof QUANT_DEVICES)[number];
  readonly threads?: number;
}

export interface ModelChoice extends LoadModelOptions {
  readonly path: string;
  readonly kvCacheDtype?: KvCacheDtype;
}

/** Executors are loaded by name, so that one that is not used need not be built. */
export async function loadBackend({ device = 'cpu', threads }: RunnerChoice): Promise<Backend> {
  if (device === 'reference') {
    return (await import('../backend/reference/reference.js')).referenceBackend;
  }
  return (await import('../backend/cpu/cpu-backend.js')).createCpuBackend({ threads });
}

/** Throws as `loadModel` and `createRunner` do. */
export function openModel(choice: ModelChoice): LoadedModel {
  const { path, kvCacheDtype: _, ...options } = choice;
  return loadModel(path, options);
}

export function makeRunner(
  backend: Backend,
  { program, weights }: Pick<LoadedModel, 'program' | 'weights'>,
  options: RunnerOptions,
): ModelRunner {
  return backend.createRunner(program, weights, options);
}
