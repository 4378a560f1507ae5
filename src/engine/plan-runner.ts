/** The memory plan of a model in an executor, from what the executor and the machine say. */
import type { Backend } from '../backend/backend.js';
import { withoutFp8 } from '../backend/fp8.js';
import { checkKvCacheDtype, kvDtypeOf } from '../backend/kv-dtype.js';
import type { LoadedModel } from '../model/load-model.js';
import type { ResolvedOptions } from './engine-options.js';
import { estimateFixedBytes } from './fixed-bytes.js';
import { freeMemory } from './free-memory.js';
import { type MemoryPlan, planMemory } from './memory-plan.js';

/** Of the GPU's memory; the rest is room for what drivers and other programs may still take. */
const GPU_MEMORY_UTILIZATION = 0.92;

export type PlanOptions = Pick<
  ResolvedOptions,
  | 'blockSize'
  | 'maxNumSeqs'
  | 'maxNumBatchedTokens'
  | 'kvCacheDtype'
  | 'kvCacheMemory'
  | 'gpuMemoryUtilization'
> & {
  maxModelLen: number;
  maxModelLenGiven: boolean;
};

/** Throws MemoryPlanError, which says what to change. */
export function planRunner(
  backend: Backend,
  { program, weights }: Pick<LoadedModel, 'program' | 'weights'>,
  options: PlanOptions,
): MemoryPlan {
  const { blockSize, maxModelLen, maxNumSeqs, maxNumBatchedTokens, kvCacheDtype } = options;
  const { gpuMemoryUtilization: utilization = GPU_MEMORY_UTILIZATION } = options;
  const device = backend.memory?.();
  const fixed = backend.fixedBytes?.(program, weights, {
    ...{ blockSize, maxModelLen, kvCacheDtype },
    maxTokens: maxNumBatchedTokens,
    maxSeqs: maxNumSeqs,
  });
  return planMemory({
    memory: device
      ? { kind: 'device', ...device, utilization }
      : { kind: 'machine', free: freeMemory() },
    fixed: fixed ?? estimateFixedBytes(program, withoutFp8(weights), maxNumBatchedTokens),
    kvBytesPerBlock: blockBytes(backend, { program, weights }, options),
    blockSize,
    maxModelLen,
    maxModelLenGiven: options.maxModelLenGiven,
    maxNumSeqs,
    kvCacheMemory: options.kvCacheMemory,
  });
}

/** Bytes of one block of the KV cache. */
export function blockBytes(
  backend: Backend,
  { program, weights }: Pick<LoadedModel, 'program' | 'weights'>,
  { blockSize, kvCacheDtype }: Pick<PlanOptions, 'blockSize' | 'kvCacheDtype'>,
): number {
  checkKvCacheDtype(backend.name, kvCacheDtype);
  // A program without attention keeps nothing, but slots are numbered all the same.
  return Math.max(1, backend.kvBytesPerBlock(program, blockSize, kvDtypeOf(weights, kvCacheDtype)));
}
