/** The options of an engine: what the operator chose, and what that means with defaults filled in. */
import { KV_CACHE_DTYPES, type KvCacheDtype } from '../backend/backend.js';
import { checkKvCacheDtype } from '../backend/kv-dtype.js';
import { checkDeviceOptions, type DeviceOptions, onlyWith } from '../backend/load-backend.js';
import { InvalidParameterError } from '../errors.js';
import type { LoadModelOptions } from '../model/load-model.js';
import { nearest } from '../nearest.js';
import {
  BATCHINGS,
  type Batching,
  KV_RESERVATIONS,
  type KvReservation,
  SCHEDULING_POLICIES,
  type SchedulingPolicy,
} from './policy.js';

/**
 * Steps of a GPU are large: at 512 sequences products of matrices are past the ridge of the roofline
 * (some 200 tokens on an H200), and prompts in pieces of 8192 keep it there without a step that
 * holds up the decodes for much longer than 100 ms.
 */
const CUDA_STEP = { maxNumSeqs: 512, maxNumBatchedTokens: 8192 };
const CPU_STEP = { maxNumSeqs: 256, maxNumBatchedTokens: 2048 };

export interface EngineOptions extends LoadModelOptions, DeviceOptions {
  /** Directory of the checkpoint. */
  model: string;
  /** Tokens a KV block, a multiple of 16. Default 16. */
  blockSize?: number;
  /** Most sequences in a step. Default 256 (cuda: 512), or fewer if `maxNumBatchedTokens` is less. */
  maxNumSeqs?: number;
  /** Most tokens in a step; at least `maxNumSeqs`. Default 2048 (cuda: 8192), or more if `maxNumSeqs` is. */
  maxNumBatchedTokens?: number;
  /** Bytes of the KV cache. Default: what is left of half the free memory, or of the GPU's share. */
  kvCacheMemory?: number;
  /** Only with `cuda`: share of the GPU's memory that all programs on it may take. Default 0.92. */
  gpuMemoryUtilization?: number;
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

const NAMES = Object.keys({
  model: true,
  dtype: true,
  quantization: true,
  quantizationOverrides: true,
  loadFormat: true,
  seed: true,
  maxModelLen: true,
  device: true,
  threads: true,
  cpuIsa: true,
  enforceEager: true,
  gpuMemoryUtilization: true,
  blockSize: true,
  maxNumSeqs: true,
  maxNumBatchedTokens: true,
  kvCacheMemory: true,
  kvCacheDtype: true,
  enablePrefixCaching: true,
  schedulingPolicy: true,
  batching: true,
  enableChunkedPrefill: true,
  kvReservation: true,
  maxNumQueuedReqs: true,
  maxNumQueuedTokens: true,
} satisfies Record<keyof EngineOptions, true>);

/** For callers without types: throws InvalidParameterError for a name that no option has. */
export function checkOptionNames(options: object): void {
  const unknown = Object.keys(options).find((name) => !NAMES.includes(name));
  if (unknown === undefined) return;
  const close = nearest(unknown, NAMES);
  throw new InvalidParameterError(
    `Unknown option ${unknown}${close ? `; did you mean ${close}?` : ''}`,
    { param: unknown },
  );
}

/** Fills defaults and checks each option. Throws InvalidParameterError. */
export function resolveOptions(options: EngineOptions): ResolvedOptions {
  checkDeviceOptions(options);
  const { device = 'cpu' } = options;
  const step = device === 'cuda' ? CUDA_STEP : CPU_STEP;
  const {
    blockSize = 16,
    maxNumSeqs = Math.min(step.maxNumSeqs, options.maxNumBatchedTokens ?? step.maxNumSeqs),
    maxNumBatchedTokens = Math.max(step.maxNumBatchedTokens, maxNumSeqs),
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
  share('gpuMemoryUtilization', options.gpuMemoryUtilization);
  onlyWith('cuda', device, 'gpuMemoryUtilization', options.gpuMemoryUtilization);
  checkKvCacheDtype(device, kvCacheDtype);
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

function share(name: string, value: unknown): void {
  if (value === undefined || (typeof value === 'number' && value > 0 && value <= 1)) return;
  throw InvalidParameterError.expected('number above 0 and up to 1', name, value);
}

function oneOf(name: string, value: unknown, choices: readonly string[]): void {
  if (choices.includes(value as string)) return;
  throw InvalidParameterError.expected(`one of ${choices.join(', ')}`, name, value);
}
