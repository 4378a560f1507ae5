/**
 * The cost executor: it does not run a program, it counts what each operation of a step computes
 * and moves. Scheduler, tuner and planner predict with it.
 *
 * Counted are the multiplications and additions of the mathematics (a fused multiply-add is two)
 * and the bytes that must move at least once: weights from memory, the KV cache, activations in
 * and out in float32. Exponentials and the like count as one FLOP an element.
 */
import type { MoeOp, Op, Program, View } from '../../model/program.js';
import { BYTES, type DType, storedBytes, type WeightSource } from '../../model/weights.js';
import type { KvCacheDtype } from '../backend.js';

/** What a step computes, as far as its cost goes. */
export interface StepShape {
  /** Tokens computed and context (keys, those tokens included) of each sequence. */
  readonly sequences: readonly { readonly query: number; readonly context: number }[];
  /** Rows whose logits are wanted. */
  readonly rows: number;
}

export interface Cost {
  readonly flops: number;
  readonly weightBytes: number;
  readonly activationBytes: number;
  readonly kvBytes: number;
}

export interface OpCost extends Cost {
  readonly op: Op;
}

/** What the machine can do at best; measured, not believed. */
export interface Machine {
  readonly flopsPerSecond: number;
  readonly bytesPerSecond: number;
}

/** What matrices and the KV cache (default: as floats of `dtype`) are kept in. */
export interface Stored extends Pick<WeightSource, 'dtype' | 'storage'> {
  readonly kvCacheDtype?: KvCacheDtype;
}

/** The cost of each operation, in the order of the program. A dtype is that of everything stored. */
export function costOfStep(program: Program, stored: DType | Stored, step: StepShape): OpCost[] {
  const all: Stored =
    typeof stored === 'string' ? { dtype: stored, storage: () => ({ kind: 'float' }) } : stored;
  return program.ops.map((op) => ({ op, ...costOfOp(program, op, all, step) }));
}

export function totalCost(costs: readonly Cost[]): Cost {
  const sum = (count: (cost: Cost) => number) => costs.reduce((total, c) => total + count(c), 0);
  return {
    flops: sum((cost) => cost.flops),
    weightBytes: sum((cost) => cost.weightBytes),
    activationBytes: sum((cost) => cost.activationBytes),
    kvBytes: sum((cost) => cost.kvBytes),
  };
}

/**
 * Seconds the operations take one after the other when each is bound by arithmetic or by memory,
 * whichever is slower (the roofline: Williams, Waterman, Patterson, CACM 52(4), 2009). Activations
 * are left out: in a step they stay in the caches.
 */
export function rooflineSeconds(costs: readonly Cost[], machine: Machine): number {
  return costs.reduce(
    (seconds, { flops, weightBytes, kvBytes }) =>
      seconds +
      Math.max(flops / machine.flopsPerSecond, (weightBytes + kvBytes) / machine.bytesPerSecond),
    0,
  );
}

function costOfOp(program: Program, op: Op, stored: Stored, step: StepShape): Cost {
  const rowsOf = (view: View) =>
    program.values[view.value].rows === 'T' ? tokensOf(step) : step.rows;
  const elements = (...views: View[]) =>
    views.reduce((sum, view) => sum + rowsOf(view) * view.width, 0);
  const matrixBytes = (id: number, rows: number) => {
    const weight = program.weights[id];
    const width = weight.shape.at(-1)!;
    return storedBytes(stored.storage(weight), stored.dtype, rows * width, width);
  };
  const sizeOf = (weight: number) => program.weights[weight].shape.reduce((a, b) => a * b, 1);
  const rows = rowsOf(op.out);
  const out = elements(op.out);
  const cost = (flops: number, reads: View[], weightBytes = 0, kvBytes = 0): Cost => ({
    flops,
    // Without rows there is nothing to compute and nothing to read.
    weightBytes: rows === 0 ? 0 : weightBytes,
    activationBytes: BYTES.float32 * (elements(...reads) + out),
    kvBytes,
  });
  switch (op.kind) {
    case 'embed': {
      const vocab = program.weights[op.weight].shape[0];
      return cost(0, [], matrixBytes(op.weight, Math.min(rows, vocab)));
    }
    case 'rms_norm':
      return cost(4 * out, [op.x], sizeOf(op.weight) * BYTES.float32);
    case 'linear': {
      const biased = op.bias === undefined ? 0 : 1;
      const weightBytes =
        matrixBytes(op.weight, op.out.width) + biased * op.out.width * BYTES.float32;
      return cost(out * (2 * op.x.width + biased), [op.x], weightBytes);
    }
    case 'add':
      return cost(out, [op.a, op.b]);
    case 'rope':
      return cost(3 * out, [op.x]);
    case 'attention': {
      let pairs = 0;
      let keys = 0;
      for (const { query, context } of step.sequences) {
        pairs += attendedPairs(query, context, op.window);
        keys += Math.min(context, query - 1 + (op.window ?? context));
      }
      // Of int8 each head has a float32 scale.
      const headBytes =
        stored.kvCacheDtype === 'int8'
          ? op.headDim + BYTES.float32
          : op.headDim * (stored.kvCacheDtype === 'fp8' ? 1 : BYTES[stored.dtype]);
      // q·k, softmax, and the weighted sum of v, each query with each key it sees; the step's own
      // keys are written, then all that are seen are read.
      return cost(
        pairs * op.heads * (4 * op.headDim + 3),
        [op.q, op.k, op.v],
        0,
        (tokensOf(step) + keys) * 2 * op.kvHeads * headBytes,
      );
    }
    case 'silu_mul':
      return cost(4 * out, [op.x]);
    case 'moe':
      return cost(moeFlops(op, rows), [op.x, op.router], moeWeightBytes(op, rows, matrixBytes));
    case 'gather':
      return { flops: 0, weightBytes: 0, activationBytes: 2 * BYTES.float32 * out, kvBytes: 0 };
  }
}

function tokensOf({ sequences }: StepShape): number {
  return sequences.reduce((sum, { query }) => sum + query, 0);
}

/** Pairs (query, key) of the last `query` of `context` tokens under a causal mask with a window. */
export function attendedPairs(query: number, context: number, window = context): number {
  // The token at position p sees min(p + 1, window) keys; the sum over all p below n:
  const upTo = (n: number) => {
    const growing = Math.min(n, window);
    return (growing * (growing + 1)) / 2 + (n - growing) * window;
  };
  return upTo(context) - upTo(context - query);
}

function moeFlops({ inner, topK, experts, out }: MoeOp, rows: number): number {
  const expert = 2 * 3 * inner * out.width + 4 * inner + 2 * out.width;
  return rows * (topK * expert + 3 * experts);
}

/** Bytes of the experts that some token is routed to, if every expert is as likely as another. */
function moeWeightBytes(
  { inner, topK, experts, out, gateUp, down }: MoeOp,
  rows: number,
  matrixBytes: (weight: number, rows: number) => number,
): number {
  const used = experts * (1 - (1 - topK / experts) ** rows);
  return used * (matrixBytes(gateUp, 2 * inner) + matrixBytes(down, out.width));
}
