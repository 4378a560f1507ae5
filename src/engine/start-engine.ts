/** Starts the engine in a thread of its own. */
import { Worker } from 'node:worker_threads';
import type { Engine, EngineInfo } from './api.js';
import { checkOptionNames, type EngineOptions, resolveOptions } from './engine-options.js';
import { deserializeError, type Report } from './engine-protocol.js';
import { type RequestLimits, ThreadedEngine } from './threaded-engine.js';

export interface StartHooks {
  /** Called with the share of the weights that is loaded, 0 to 1. */
  onProgress?: (share: number) => void;
}

/**
 * Loads a model and starts serving it. Rejects with ModelError, MemoryPlanError, NativeError or
 * InvalidParameterError.
 *
 * @example
 * const engine = await startEngine({ model: 'models/stories-7m' });
 * const params = samplingParams({ maxTokens: 16 }, engine.info);
 * engine.generate({ id: '1', prompt: [1, 2, 3], params }, (delta) => console.log(delta));
 */
export async function startEngine(
  options: EngineOptions,
  { onProgress }: StartHooks = {},
): Promise<Engine> {
  checkOptionNames(options);
  resolveOptions(options);
  const worker = new Worker(new URL('./engine-worker.js', import.meta.url), {
    workerData: options,
    name: 'millrace engine',
  });
  return await connectEngine(worker, options, onProgress);
}

/** Waits until an engine thread is ready. The thread speaks `Report` and `serveEngine`'s commands. */
export async function connectEngine(
  worker: Worker,
  limits: RequestLimits = {},
  onProgress?: (share: number) => void,
): Promise<Engine> {
  const info = await new Promise<EngineInfo>((resolve, reject) => {
    const onMessage = (report: Report): void => {
      if (report.type === 'progress') onProgress?.(report.share);
      else if (report.type === 'ready') settle(() => resolve(report.info));
      else if (report.type === 'refused') settle(() => reject(deserializeError(report.error)));
    };
    const onError = (error: Error): void => settle(() => reject(error));
    const onExit = (code: number): void =>
      settle(() => reject(new Error(`The engine's thread ended with code ${code} at start`)));
    const settle = (result: () => void): void => {
      worker.off('message', onMessage).off('error', onError).off('exit', onExit);
      result();
    };
    worker.on('message', onMessage).on('error', onError).on('exit', onExit);
  });
  return new ThreadedEngine(worker, info, limits);
}
