/** Where each matrix of activations lies in the GPU's workspace. */
import type { DType } from '../../model/weights.js';
import { BYTES } from '../../model/weights.js';
import { type Lifetime, place } from '../place.js';
import { type LoweredOp, type LoweredProgram, reads } from './lower.js';

export interface Buffer {
  readonly perToken: boolean;
  /** In float32 whatever the storage type. */
  readonly floats: boolean;
  /** Elements from one row to the next. */
  readonly stride: number;
  /** Bytes from the start of the activations. */
  readonly offset: number;
}

export interface MemoryPlan {
  readonly buffers: readonly Buffer[];
  /** Buffer of each value that is used. */
  readonly bufferOf: ReadonlyMap<number, number>;
  readonly bytes: number;
}

interface Life extends Lifetime, Omit<Buffer, 'offset'> {
  readonly value: number;
}

/** Elements: rows begin on cache lines. */
const STRIDE = 64;
/** Bytes between places: what libraries ask of the matrices they get. */
const ALIGNMENT = 256;

/** Plans for steps of `maxTokens` tokens and tiles of `rowTile` wanted rows. */
export function planMemory(
  program: LoweredProgram,
  dtype: DType,
  maxTokens: number,
  rowTile: number,
): MemoryPlan {
  const lives = findLives(program, dtype, maxTokens, rowTile);
  const { offsets, bytes } = place(lives);
  return {
    buffers: lives.map(({ perToken, floats, stride }, id) => ({
      ...{ perToken, floats, stride },
      offset: offsets[id],
    })),
    bufferOf: new Map(lives.map(({ value }, id) => [value, id])),
    bytes,
  };
}

function findLives(
  program: LoweredProgram,
  dtype: DType,
  maxTokens: number,
  rowTile: number,
): Life[] {
  const ops: readonly LoweredOp[] = [...program.tokenOps, ...program.rowOps];
  const first = new Map<number, number>();
  const last = new Map<number, number>();
  ops.forEach((op, index) => {
    for (const { value } of [op.out, ...reads(op)]) {
      if (!first.has(value)) first.set(value, index);
      last.set(value, index);
    }
    // In a step of decodes the attention that follows does it, and reads what it does while it writes.
    if (op.kind === 'qkv_store') for (const { value } of reads(op)) last.set(value, index + 1);
  });
  // The operations on wanted rows run once for each tile of them: what tokens left must stay.
  for (const [value, index] of last) {
    const perToken = program.values[value].rows === 'T';
    if (perToken && index >= program.tokenOps.length) last.set(value, ops.length);
  }
  last.set(program.logits, ops.length);
  return [...first].map(([value, begin]) => {
    const { rows, width } = program.values[value];
    const perToken = rows === 'T';
    const floats = value === program.logits;
    const stride = roundUp(width, STRIDE);
    const bytes = (perToken ? maxTokens : rowTile) * stride * (floats ? 4 : BYTES[dtype]);
    return {
      ...{ value, perToken, floats, stride },
      bytes: roundUp(bytes, ALIGNMENT),
      first: begin,
      last: last.get(value) as number,
    };
  });
}

function roundUp(n: number, multiple: number): number {
  return Math.ceil(n / multiple) * multiple;
}
