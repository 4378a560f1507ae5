/** From options to an engine core on a loaded model. Slow: reads and packs the weights. */
import { randomInt } from 'node:crypto';
import type { ModelRunner } from '../backend/backend.js';
import { deviceWarnings, loadBackend } from '../backend/load-backend.js';
import { loadModel } from '../model/load-model.js';
import type { EngineInfo } from './api.js';
import { EngineCore } from './engine-core.js';
import { type EngineOptions, resolveOptions } from './engine-options.js';
import { planRunner } from './plan-runner.js';

export interface CreatedCore {
  core: EngineCore;
  runner: ModelRunner;
  info: EngineInfo;
}

/**
 * Throws ModelError, MemoryPlanError, NativeError or InvalidParameterError. `onProgress` is called
 * with the share of the weights that is loaded, 0 to 1.
 */
export async function createCore(
  given: EngineOptions,
  onProgress?: (share: number) => void,
): Promise<CreatedCore> {
  const options = resolveOptions(given);
  const { blockSize, maxNumSeqs, maxNumBatchedTokens, kvCacheDtype } = options;
  const model = loadModel(options.model, options);
  const { program, weights, config, eosTokenIds, notes } = model;
  const backend = await loadBackend(options);
  const plan = planRunner(backend, model, {
    ...options,
    maxModelLen: config.maxModelLen,
    maxModelLenGiven: options.maxModelLen !== undefined,
  });
  const { numBlocks, maxModelLen } = plan;
  const runner = backend.createRunner(
    program,
    weights,
    {
      ...{ blockSize, numBlocks, maxTokens: maxNumBatchedTokens, maxSeqs: maxNumSeqs, maxModelLen },
      kvCacheDtype,
    },
    onProgress,
  );
  const core = new EngineCore(runner, {
    ...options,
    numBlocks,
    maxModelLen,
    eosTokenIds,
    hashSeed: randomInt(2 ** 32),
  });
  const info: EngineInfo = {
    model: options.model,
    backend: backend.name,
    maxModelLen,
    vocabSize: config.vocabSize,
    blockSize,
    numBlocks,
    maxNumSeqs,
    maxNumBatchedTokens,
    enablePrefixCaching: options.enablePrefixCaching,
    kvCacheBytes: plan.kvCacheBytes,
    dtype: weights.dtype,
    plan: [...plan.lines, ...notes, ...deviceWarnings(options), runner.description],
  };
  return { core, runner, info };
}
