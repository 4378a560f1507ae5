/**
 * Writes lowered operations as the list of numbers that native/cuda/program.cpp reads. An operand is
 * three numbers (buffer, column, width), -1 for none; the order of fields is that of the decoder.
 */
import type { View } from '../../model/program.js';
import type { LoweredKind, LoweredOp } from './lower.js';
import type { MemoryPlan } from './plan-memory.js';

/** Index is the operation's code: `OpKind` of native/cuda/program.h. */
export const OP_CODES: readonly LoweredKind[] = [
  'embed',
  'rms_norm',
  'linear',
  'add',
  'qkv_store',
  'attention',
  'silu_mul',
  'moe',
  'gather',
];

export function encode(ops: readonly LoweredOp[], plan: MemoryPlan): Float64Array<ArrayBuffer> {
  return Float64Array.from(ops.flatMap((op) => encodeOp(op, plan)));
}

/** Buffer, column and width of a view. */
export function operand(
  { value, offset, width }: View,
  plan: MemoryPlan,
): [number, number, number] {
  const buffer = plan.bufferOf.get(value);
  if (buffer === undefined) throw new Error(`Value ${value} has no place in memory`);
  return [buffer, offset, width];
}

function encodeOp(op: LoweredOp, plan: MemoryPlan): number[] {
  const at = (view: View) => operand(view, plan);
  const code = OP_CODES.indexOf(op.kind);
  switch (op.kind) {
    case 'embed':
      return [code, op.weight, ...at(op.out)];
    case 'rms_norm':
      return [code, ...at(op.x), op.weight, op.eps, ...at(op.out)];
    case 'linear': {
      const residual = op.residual ? at(op.residual) : [-1, 0, 0];
      return [code, op.weight, op.bias ?? -1, ...at(op.x), ...residual, ...at(op.out)];
    }
    case 'add':
      return [code, ...at(op.a), ...at(op.b), ...at(op.out)];
    case 'qkv_store': {
      const operands = [op.q, op.k, op.v].flatMap(at);
      const norms = [op.qNorm ?? -1, op.kNorm ?? -1, op.eps];
      return [code, op.layer, ...operands, ...norms, op.table ?? -1, op.heads, ...at(op.out)];
    }
    case 'attention':
      return [code, op.layer, ...at(op.q), op.heads, op.window ?? 0, op.scale, ...at(op.out)];
    case 'silu_mul':
      return [code, ...at(op.x), ...at(op.out)];
    case 'moe': {
      const numbers = [op.gateUp, op.down, op.topK, op.normalize ? 1 : 0];
      return [code, ...numbers, ...at(op.x), ...at(op.router), ...at(op.out)];
    }
    case 'gather':
      return [code, ...at(op.x), ...at(op.out)];
  }
}
