/** From options to an engine core on a loaded model. Slow: reads and packs the weights. */
import { randomInt } from 'node:crypto';
import type { Backend, ModelRunner } from '../backend/backend.js';
import { loadModel } from '../model/load-model.js';
import type { EngineInfo } from './api.js';
import { EngineCore } from './engine-core.js';
import { type EngineOptions, type ResolvedOptions, resolveOptions } from './engine-options.js';
import { freeMemory } from './free-memory.js';
import { planMemory } from './memory-plan.js';

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
  const { program, weights, config, eosTokenIds, notes } = loadModel(options.model, options);
  const backend = await loadBackend(options);
  const kvDtype = kvCacheDtype === 'int8' ? kvCacheDtype : weights.dtype;
  const plan = planMemory({
    program,
    weights,
    freeMemory: freeMemory(),
    kvBytesPerBlock: backend.kvBytesPerBlock(program, blockSize, kvDtype),
    blockSize,
    maxModelLen: config.maxModelLen,
    maxModelLenGiven: options.maxModelLen !== undefined,
    maxNumSeqs,
    maxNumBatchedTokens,
    kvCacheMemory: options.kvCacheMemory,
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
    plan: [...plan.lines, ...notes, runner.description],
  };
  return { core, runner, info };
}

/** Executors are loaded by name, so that one that is not used need not be built. */
async function loadBackend({ device, threads, cpuIsa }: ResolvedOptions): Promise<Backend> {
  if (device === 'reference') {
    const { referenceBackend } = await import('../backend/reference/reference.js');
    return referenceBackend;
  }
  const { createCpuBackend } = await import('../backend/cpu/cpu-backend.js');
  return createCpuBackend({ threads, isa: cpuIsa });
}
