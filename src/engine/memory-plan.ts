/**
 * How many KV blocks fit. Decided once, before anything is allocated, from the model, the options
 * and the free memory; a pure function, so that every case can be tested.
 */
import { MemoryPlanError } from '../errors.js';

/** Of the free memory, what weights, workspace and a KV cache of unstated size may take together. */
export const MEMORY_SHARE = 0.5;

/** What an executor allocates besides the KV cache; `reserve` is what its libraries take on top. */
export interface FixedBytes {
  weights: number;
  workspace: number;
  reserve: number;
}

/** Where everything goes: the machine's memory, or that of a device with its own. */
export type Memory =
  | { kind: 'machine'; free: number }
  | {
      kind: 'device';
      total: number;
      free: number;
      /** Share of `total` that all programs on the device may take together. */
      utilization: number;
    };

export interface MemoryPlanInput {
  memory: Memory;
  fixed: FixedBytes;
  kvBytesPerBlock: number;
  blockSize: number;
  /** The longest context to serve, and whether the operator asked for it. */
  maxModelLen: number;
  maxModelLenGiven: boolean;
  maxNumSeqs: number;
  /** Bytes, if the operator said how many. */
  kvCacheMemory?: number;
}

export interface MemoryPlan {
  numBlocks: number;
  kvCacheBytes: number;
  maxModelLen: number;
  /** For the log. */
  lines: string[];
}

/** Throws MemoryPlanError, which says what to change. */
export function planMemory(input: MemoryPlanInput): MemoryPlan {
  const { memory, blockSize, kvBytesPerBlock, kvCacheMemory: given } = input;
  const fixed = input.fixed.weights + input.fixed.workspace + input.fixed.reserve;
  const limit = mayTake(memory, given !== undefined);
  if (given !== undefined && fixed + given > limit) {
    throw new MemoryPlanError(
      `${describe(input.fixed)} and a KV cache of ${mebibytes(given)} need more than ` +
        `${describeLimit(memory, limit)}. Lower the KV cache memory, or ${moreRoom(memory)}`,
    );
  }
  const budget = given ?? limit - fixed;
  if (budget < kvBytesPerBlock) {
    throw new MemoryPlanError(
      given === undefined
        ? `${describe(input.fixed)} leave no room for a KV cache within ` +
            `${describeLimit(memory, limit)}. ${roomForCache(memory)}`
        : `A KV cache of ${given} bytes holds no block of ${blockSize} tokens: ` +
            `that takes ${kvBytesPerBlock} bytes. Raise the KV cache memory`,
    );
  }
  const useful = input.maxNumSeqs * Math.ceil(input.maxModelLen / blockSize);
  // Slots are 32-bit integers.
  const addressable = Math.floor((2 ** 31 - 1) / blockSize);
  const affordable = Math.floor(budget / kvBytesPerBlock);
  const numBlocks = Math.min(affordable, addressable, given === undefined ? useful : Infinity);
  const capacity = numBlocks * blockSize;
  if (input.maxModelLenGiven && capacity < input.maxModelLen) {
    const needed = Math.ceil(input.maxModelLen / blockSize) * kvBytesPerBlock;
    throw new MemoryPlanError(
      `The KV cache holds ${capacity} tokens, fewer than one sequence of max-model-len ` +
        `${input.maxModelLen}. Lower max-model-len to ${capacity}, or give the KV cache at least ` +
        `${needed} bytes (${mebibytes(needed)})`,
    );
  }
  const maxModelLen = Math.min(input.maxModelLen, capacity);
  const kvCacheBytes = numBlocks * kvBytesPerBlock;
  const lines = [
    ...memoryLines(input),
    `KV cache ${mebibytes(kvCacheBytes)}: ${numBlocks} blocks of ${blockSize} tokens, ` +
      `${capacity} tokens, ${(capacity / maxModelLen).toFixed(1)} sequences of ${maxModelLen}`,
  ];
  if (maxModelLen < input.maxModelLen) {
    lines.push(
      `max-model-len lowered from ${input.maxModelLen} to ${maxModelLen}: the KV cache holds no more`,
    );
  }
  return { numBlocks, kvCacheBytes, maxModelLen, lines };
}

/**
 * Bytes that we may take altogether. The machine's memory is shared with all that may still start,
 * so a KV cache of unstated size leaves half of it; a device is there for this.
 */
function mayTake(memory: Memory, kvCacheGiven: boolean): number {
  if (memory.kind === 'machine') {
    return kvCacheGiven ? memory.free : Math.floor(memory.free * MEMORY_SHARE);
  }
  return Math.floor(memory.total * memory.utilization) - inUse(memory);
}

function inUse({ total, free }: { total: number; free: number }): number {
  return total - free;
}

function describe({ weights, workspace, reserve }: FixedBytes): string {
  return reserve === 0
    ? `Weights (${mebibytes(weights)}), workspace (${mebibytes(workspace)})`
    : `Weights (${mebibytes(weights)}), workspace (${mebibytes(workspace)}), ` +
        `the device's libraries (${mebibytes(reserve)})`;
}

function describeLimit(memory: Memory, limit: number): string {
  if (memory.kind === 'machine') {
    return limit < memory.free
      ? `${percent(MEMORY_SHARE)} of the ${mebibytes(memory.free)} that are free`
      : `the ${mebibytes(memory.free)} that are free`;
  }
  return (
    `the ${mebibytes(Math.max(0, limit))} that are ours: ${percent(memory.utilization)} of the GPU's ` +
    `${mebibytes(memory.total)}, less ${mebibytes(inUse(memory))} already in use`
  );
}

function moreRoom(memory: Memory): string {
  return memory.kind === 'machine'
    ? 'free some'
    : 'raise gpu-memory-utilization, or end other programs on the GPU';
}

function roomForCache(memory: Memory): string {
  return memory.kind === 'machine'
    ? 'Set the KV cache memory yourself, lower the batched tokens, or take a smaller model or dtype'
    : 'Raise gpu-memory-utilization, end other programs on the GPU, lower max-num-batched-tokens, ' +
        'or take a smaller model or dtype';
}

function memoryLines({ memory, fixed }: MemoryPlanInput): string[] {
  const { weights, workspace, reserve } = fixed;
  const parts = `weights ${mebibytes(weights)}, workspace ${mebibytes(workspace)}`;
  if (memory.kind === 'machine') return [`${parts}, of ${mebibytes(memory.free)} free`];
  const { total, utilization } = memory;
  return [
    `GPU memory ${mebibytes(total)}, of which ${percent(utilization)} may be taken and ` +
      `${mebibytes(inUse(memory))} are already in use`,
    `${parts}, reserve ${mebibytes(reserve)}`,
  ];
}

function mebibytes(bytes: number): string {
  const mebi = bytes / 2 ** 20;
  return mebi >= 1024
    ? `${(mebi / 1024).toFixed(1)} GiB`
    : `${mebi.toFixed(mebi < 10 ? 1 : 0)} MiB`;
}

function percent(share: number): string {
  return `${Math.round(share * 1000) / 10}%`;
}
