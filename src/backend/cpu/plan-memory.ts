/**
 * Where each matrix of activations lies in the workspace. Matrices that are never needed at the
 * same time share bytes: a matrix lives from the operation that writes it to the last that reads it.
 */
import { type Lifetime, place } from '../place.js';
import { type LoweredOp, type LoweredProgram, reads } from './lower.js';

export interface Buffer {
  readonly perToken: boolean;
  readonly bf16: boolean;
  /** Elements from one row to the next. */
  readonly stride: number;
  /** Bytes from the start of the workspace. */
  readonly offset: number;
}

export interface MemoryPlan {
  readonly buffers: readonly Buffer[];
  /** Buffer of a value's float32 and bf16 form; undefined where the form is not needed. */
  readonly floats: ReadonlyMap<number, number>;
  readonly halves: ReadonlyMap<number, number>;
  readonly bytes: number;
}

interface Life extends Lifetime {
  readonly value: number;
  readonly bf16: boolean;
  readonly perToken: boolean;
  readonly stride: number;
}

/** Plans for steps of `maxTokens` tokens and tiles of `rowTile` wanted rows. */
export function planMemory(
  program: LoweredProgram,
  logits: number,
  maxTokens: number,
  rowTile: number,
): MemoryPlan {
  const ops: LoweredOp[] = [...program.tokenOps, ...program.rowOps];
  const lives = findLives(program, ops, logits, maxTokens, rowTile);
  const { offsets, bytes } = place(lives);
  const floats = new Map<number, number>();
  const halves = new Map<number, number>();
  const buffers = lives.map((life, id) => {
    (life.bf16 ? halves : floats).set(life.value, id);
    const { perToken, bf16, stride } = life;
    return { perToken, bf16, stride, offset: offsets[id] };
  });
  return { buffers, floats, halves, bytes };
}

function findLives(
  program: LoweredProgram,
  ops: readonly LoweredOp[],
  logits: number,
  maxTokens: number,
  rowTile: number,
): Life[] {
  const first = new Map<number, number>();
  const last = new Map<number, number>();
  const times = executionTimes(ops);
  ops.forEach((op, index) => {
    for (const { value } of [op.out, ...reads(op)]) {
      if (!first.has(value)) first.set(value, times[index]);
      last.set(value, times[index]);
    }
  });
  // The operations on wanted rows run once for each tile of them: what tokens left must stay.
  for (const [value, index] of last) {
    const perToken = program.values[value].rows === 'T';
    if (perToken && index >= program.tokenOps.length) last.set(value, ops.length);
  }
  last.set(logits, ops.length);
  const lives: Life[] = [];
  for (const [value, { rows, width }] of program.values.entries()) {
    const begin = first.get(value);
    if (begin === undefined) continue;
    const perToken = rows === 'T';
    for (const bf16 of [false, true]) {
      if (!(bf16 ? program.halves : program.floats).has(value)) continue;
      const stride = strideOf(width, bf16);
      const size = (perToken ? maxTokens : rowTile) * stride * (bf16 ? 2 : 4);
      lives.push({
        ...{ value, bf16, perToken, stride },
        bytes: size,
        first: begin,
        last: last.get(value) as number,
      });
    }
  }
  return lives;
}

/**
 * The interpreter runs the ropes before an attention in one pass with it, each thread on tokens of
 * its own: they happen at the same time.
 */
function executionTimes(ops: readonly LoweredOp[]): number[] {
  const times = ops.map((_, index) => index);
  for (let i = ops.length - 2; i >= 0; i--) {
    const next = ops[i + 1].kind;
    const together = next === 'attention' || (next === 'rope' && times[i + 1] !== i + 1);
    if (ops[i].kind === 'rope' && together) times[i] = times[i + 1];
  }
  return times;
}

/**
 * Whole cache lines, and never a multiple of 4 KiB: lines at the same place of many rows would
 * compete for the same few places of the L1 cache.
 */
function strideOf(width: number, bf16: boolean): number {
  const lane = bf16 ? 32 : 16;
  const stride = Math.ceil(width / lane) * lane;
  return stride % (lane * 64) === 0 ? stride + lane : stride;
}
