/** A model in an executor, outside the engine: for judging models, not for serving them. */
import type { Backend, KvCacheDtype, ModelRunner, RunnerOptions } from '../backend/backend.js';
import { type LoadedModel, type LoadModelOptions, loadModel } from '../model/load-model.js';

export interface ModelChoice extends LoadModelOptions {
  readonly path: string;
  readonly kvCacheDtype?: KvCacheDtype;
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
