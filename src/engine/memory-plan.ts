/**
 * How many KV blocks fit. Decided once, before anything is allocated, from the model, the options
 * and the free memory; a pure function, so that every case can be tested.
 */
import { MemoryPlanError } from '../errors.js';
import type { Program, View } from '../model/program.js';
import { BYTES, storedBytes, type WeightSource } from '../model/weights.js';

/** Of the free memory, what weights, workspace and a KV cache of unstated size may take together. */
export const MEMORY_SHARE = 0.5;

export interface MemoryPlanInput {
  program: Program;
  weights: Pick<WeightSource, 'dtype' | 'storage'>;
  /** Bytes that can be had. */
  freeMemory: number;
  kvBytesPerBlock: number;
  blockSize: number;
  /** The longest context to serve, and whether the operator asked for it. */
  maxModelLen: number;
  maxModelLenGiven: boolean;
  maxNumSeqs: number;
  maxNumBatchedTokens: number;
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
  const { program, blockSize, kvBytesPerBlock, maxNumSeqs, freeMemory } = input;
  const weights = weightBytes(program, input.weights);
  const workspace = workspaceBytes(program, input.maxNumBatchedTokens);
  const fixed = weights + workspace;
  const useful = maxNumSeqs * Math.ceil(input.maxModelLen / blockSize);
  // Slots are 32-bit integers.
  const addressable = Math.floor((2 ** 31 - 1) / blockSize);
  const given = input.kvCacheMemory;
  if (given !== undefined && fixed + given > freeMemory) {
    throw new MemoryPlanError(
      `Weights (${mebibytes(weights)}), workspace (${mebibytes(workspace)}) and a KV cache of ` +
        `${mebibytes(given)} need more than the ${mebibytes(freeMemory)} that are free. ` +
        'Lower the KV cache memory, or free some',
    );
  }
  const budget = given ?? Math.floor(freeMemory * MEMORY_SHARE) - fixed;
  if (budget < kvBytesPerBlock) {
    throw new MemoryPlanError(
      given === undefined
        ? `Weights (${mebibytes(weights)}) and workspace (${mebibytes(workspace)}) leave no room for ` +
            `a KV cache within ${percent(MEMORY_SHARE)} of the ${mebibytes(freeMemory)} that are free. ` +
            'Set the KV cache memory yourself, lower the batched tokens, or take a smaller model or dtype'
        : `A KV cache of ${given} bytes holds no block of ${blockSize} tokens: ` +
            `that takes ${kvBytesPerBlock} bytes. Raise the KV cache memory`,
    );
  }
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
    `weights ${mebibytes(weights)}, workspace ${mebibytes(workspace)}, of ${mebibytes(freeMemory)} free`,
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

/** Matrices as the source wants them; norms and biases in float32, as every executor keeps them. */
function weightBytes(program: Program, source: MemoryPlanInput['weights']): number {
  return program.weights.reduce((sum, weight) => {
    const { shape } = weight;
    const elements = shape.reduce((product, size) => product * size, 1);
    if (shape.length === 1) return sum + elements * BYTES.float32;
    return sum + storedBytes(source.storage(weight), source.dtype, elements, shape.at(-1)!);
  }, 0);
}

/** Rows of logits an executor holds at once. */
const LOGIT_ROWS = 64;

/**
 * An upper estimate of what the activations take: the most values that live at the same time, in
 * float32 and half as much again for the executor's own forms of them.
 */
function workspaceBytes(program: Program, maxTokens: number): number {
  const last = new Map<number, number>();
  program.ops.forEach((op, index) => {
    for (const view of Object.values(op) as (View | undefined)[]) {
      if (typeof view === 'object') last.set(view.value, index);
    }
  });
  let live = 0;
  let most = 0;
  const begun = new Set<number>();
  program.ops.forEach((op, index) => {
    const { id, rows, width } = program.values[op.out.value];
    if (rows === 'T' && !begun.has(id)) live += width;
    begun.add(id);
    most = Math.max(most, live);
    for (const value of begun) {
      if (last.get(value) !== index) continue;
      if (program.values[value].rows === 'T') live -= program.values[value].width;
      begun.delete(value);
    }
  });
  const logits = program.vocabSize * Math.min(LOGIT_ROWS, maxTokens);
  return Math.ceil(most * maxTokens * 4 * 1.5) + 2 * logits * 4;
}

function mebibytes(bytes: number): string {
  const mebi = bytes / 2 ** 20;
  return mebi >= 1024
    ? `${(mebi / 1024).toFixed(1)} GiB`
    : `${mebi.toFixed(mebi < 10 ? 1 : 0)} MiB`;
}

function percent(share: number): string {
  return `${share * 100}%`;
}
