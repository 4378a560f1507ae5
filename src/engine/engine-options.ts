/** The options of an engine: what the operator chose, and what that means with defaults filled in. */
import { KV_CACHE_DTYPES, type KvCacheDtype } from '../backend/backend.js';
import type { CpuIsa } from '../backend/cpu/native.js';
import { InvalidParameterError } from '../errors.js';
import type { LoadModelOptions } from '../model/load-model.js';
import {
  BATCHINGS,
  type Batching,
  KV_RESERVATIONS,
  type KvReservation,
  SCHEDULING_POLICIES,
  type SchedulingPolicy,
} from './policy.js';

export const DEVICES = ['cpu', 'reference'] as const;

export interface EngineOptions extends LoadModelOptions {
  /** Directory of the checkpoint. */
  model: string;
  /** `reference` is slow plain TypeScript. Default `cpu`. */
  device?: (typeof DEVICES)[number];
  /** Tokens a KV block, a multiple of 16. Default 16. */
  blockSize?: number;
  /** Most sequences in a step. Default 256, or fewer if `maxNumBatchedTokens` is less. */
  maxNumSeqs?: number;
  /** Most tokens in a step; at least `maxNumSeqs`. Default 2048, or more if `maxNumSeqs` is. */
  maxNumBatchedTokens?: number;
  /** Bytes of the KV cache. Default: what is left of half the free memory. */
  kvCacheMemory?: number;
  /** `int8` halves what a cached token takes. Default `auto`: the type of matrices. */
  kvCacheDtype?: KvCacheDtype;
  /** Default true. */
  enablePrefixCaching?: boolean;
  /** Default `fcfs`. */
  schedulingPolicy?: SchedulingPolicy;
  /** Default `continuous`. */
  batching?: Batching;
  /** Compute long prompts in pieces, beside the decodes. Default true. */
  enableChunkedPrefill?: boolean;
  /** Default `by-block`. */
  kvReservation?: KvReservation;
  /** Requests not yet scheduled before further ones are refused. Default: unlimited. */
  maxNumQueuedReqs?: number;
  /** Their prompt tokens. Default: unlimited. */
  maxNumQueuedTokens?: number;
  /** Threads that compute. Default: as many as there are cores. */
  threads?: number;
  /** Default: the best instruction set this machine has. */
  cpuIsa?: CpuIsa;
}

/** Options with the engine's defaults filled in; what the model or the machine decides may be open. */
export type ResolvedOptions = EngineOptions &
  Required<
    Pick<
      EngineOptions,
      | 'device'
      | 'blockSize'
      | 'maxNumSeqs'
      | 'maxNumBatchedTokens'
      | 'kvCacheDtype'
      | 'enablePrefixCaching'
      | 'schedulingPolicy'
      | 'batching'
      | 'enableChunkedPrefill'
      | 'kvReservation'
    >
  >;

/** Fills defaults and checks each option. Throws InvalidParameterError. */
export function resolveOptions(options: EngineOptions): ResolvedOptions {
  const {
    device = 'cpu',
    blockSize = 16,
    maxNumSeqs = Math.min(256, options.maxNumBatchedTokens ?? 256),
    maxNumBatchedTokens = Math.max(2048, maxNumSeqs),
    kvCacheDtype = 'auto',
    enablePrefixCaching = true,
    schedulingPolicy = 'fcfs',
    batching = 'continuous',
    enableChunkedPrefill = true,
    kvReservation = 'by-block',
  } = options;
  if (typeof options.model !== 'string' || options.model === '') {
    throw InvalidParameterError.expected('path of a checkpoint', 'model', options.model);
  }
  oneOf('device', device, DEVICES);
  oneOf('kvCacheDtype', kvCacheDtype, KV_CACHE_DTYPES);
  oneOf('schedulingPolicy', schedulingPolicy, SCHEDULING_POLICIES);
  oneOf('batching', batching, BATCHINGS);
  oneOf('kvReservation', kvReservation, KV_RESERVATIONS);
  if (!Number.isInteger(blockSize) || blockSize < 16 || blockSize > 1024 || blockSize % 16 !== 0) {
    throw InvalidParameterError.expected('multiple of 16 up to 1024', 'blockSize', blockSize);
  }
  integer('maxNumSeqs', maxNumSeqs, 1, 65_536);
  integer('maxNumBatchedTokens', maxNumBatchedTokens, 1, 2 ** 20);
  if (maxNumBatchedTokens < maxNumSeqs) {
    throw InvalidParameterError.expected(
      `at least maxNumSeqs (${maxNumSeqs}), so that every sequence can decode in every step,`,
      'maxNumBatchedTokens',
      maxNumBatchedTokens,
    );
  }
  for (const name of ['kvCacheMemory', 'maxNumQueuedReqs', 'maxNumQueuedTokens'] as const) {
    if (options[name] !== undefined) integer(name, options[name], 1, Number.MAX_SAFE_INTEGER);
  }
  boolean('enablePrefixCaching', enablePrefixCaching);
  boolean('enableChunkedPrefill', enableChunkedPrefill);
  return {
    ...options,
    device,
    blockSize,
    maxNumSeqs,
    maxNumBatchedTokens,
    kvCacheDtype,
    enablePrefixCaching,
    schedulingPolicy,
    batching,
    enableChunkedPrefill,
    kvReservation,
  };
}

function boolean(name: string, value: unknown): void {
  if (typeof value !== 'boolean') throw InvalidParameterError.expected('boolean', name, value);
}

function integer(name: string, value: unknown, min: number, max: number): void {
  if (Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max) return;
  throw InvalidParameterError.expected(`integer between ${min} and ${max}`, name, value);
}

function oneOf(name: string, value: unknown, choices: readonly string[]): void {
  if (choices.includes(value as string)) return;
  throw InvalidParameterError.expected(`one of ${choices.join(', ')}`, name, value);
}
