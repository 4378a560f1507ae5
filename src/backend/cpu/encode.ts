/**
 * Writes lowered operations as the list of numbers that native/cpu/program.cpp reads. An operand is
 * three numbers (buffer, column, width), -1 for none; the order of fields is that of the decoder.
 */
import type { View } from '../../model/program.js';
import type { LoweredKind, LoweredOp, LoweredProgram, Product } from './lower.js';
import type { MemoryPlan } from './plan-memory.js';

/** Index is the operation's code: `OpKind` of native/cpu/program.h. */
export const OP_CODES: readonly LoweredKind[] = [
  'embed',
  'rms_norm',
  'linear',
  'add',
  'rope',
  'attention',
  'silu_mul',
  'moe',
  'gather',
  'to_bf16',
];

export function encode(
  ops: readonly LoweredOp[],
  program: LoweredProgram,
  plan: MemoryPlan,
): Float64Array<ArrayBuffer> {
  return Float64Array.from(ops.flatMap((op) => encodeOp(op, program, plan)));
}

/** Buffer, column and width of a view in float32. */
export function floatOperand(view: View, plan: MemoryPlan): [number, number, number] {
  const buffer = plan.floats.get(view.value);
  if (buffer === undefined) throw new Error(`Value ${view.value} has no float32 form`);
  return [buffer, view.offset, view.width];
}

function encodeOp(op: LoweredOp, program: LoweredProgram, plan: MemoryPlan): number[] {
  const none = [-1, 0, 0];
  const floats = (view: View) => floatOperand(view, plan);
  const halves = ({ value, offset, width }: View) => [plan.halves.get(value) ?? -1, offset, width];
  const input = (op: Product) => (program.bf16Input(op) ? halves(op.x) : floats(op.x));
  const outputs = (view: View) => [
    ...(plan.floats.has(view.value) ? floats(view) : none),
    ...(plan.halves.has(view.value) ? halves(view) : none),
  ];
  const code = OP_CODES.indexOf(op.kind);
  switch (op.kind) {
    case 'embed':
      return [code, op.weight, ...floats(op.out)];
    case 'rms_norm':
      return [code, ...floats(op.x), op.weight, op.eps, ...outputs(op.out)];
    case 'linear': {
      const residual = op.residual ? floats(op.residual) : none;
      const weights = [op.gateUp ? 1 : 0, op.weight, op.bias ?? -1];
      return [code, ...weights, ...input(op), ...residual, ...outputs(op.out)];
    }
    case 'add':
      return [code, ...floats(op.a), ...floats(op.b), ...floats(op.out)];
    case 'rope':
      return [code, ...floats(op.x), op.headDim, op.table, ...floats(op.out)];
    case 'attention': {
      const { layer, heads, kvHeads, headDim, scale, window = 0 } = op;
      const shape = [heads, kvHeads, headDim, window, scale];
      const operands = [op.q, op.k, op.v].flatMap(floats);
      return [code, layer, ...operands, ...shape, ...floats(op.out)];
    }
    case 'silu_mul':
      return [code, ...floats(op.x), ...outputs(op.out)];
    case 'moe': {
      const numbers = [op.gateUp, op.down, op.topK, op.normalize ? 1 : 0];
      return [code, ...numbers, ...input(op), ...floats(op.router), ...floats(op.out)];
    }
    case 'gather':
      return [code, ...floats(op.x), ...floats(op.out)];
    case 'to_bf16':
      return [code, ...floats(op.x), ...halves(op.out)];
  }
}
