/** Linears and the operations that only move or add rows. */
import { IntegerWeight, integerDot, quantizeRow } from './integer-weight.js';
import type { Matrix } from './matrix.js';
import type { ReferenceWeight } from './weights.js';

/** `out = x · weightᵀ (+ bias)`; weight `[out.width, x.width]`. Sums in float64. */
export function linear(
  x: Matrix,
  weight: ReferenceWeight,
  bias: Float32Array | undefined,
  out: Matrix,
) {
  for (let t = 0; t < out.rows; t++) {
    const product = productsOf(x.row(t), weight);
    const result = out.row(t);
    for (let o = 0; o < out.width; o++) result[o] = product(o) + (bias?.[o] ?? 0);
  }
}

/** The products of `x` with each row of `weight`. */
export function productsOf(x: Float32Array, weight: ReferenceWeight): (row: number) => number {
  if (!(weight instanceof IntegerWeight)) return (row) => dot(x, weight, row * x.length);
  const integers = quantizeRow(x, weight);
  return (row) => integerDot(integers, weight, row);
}

/** The inner product of `x` and `x.length` elements of `weight` from `offset`. */
function dot(x: Float32Array, weight: Float32Array, offset: number): number {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i] * weight[offset + i];
  return sum;
}

/** `out[t] = weight[ids[t]]`. */
export function embed(ids: Int32Array, weight: ReferenceWeight, out: Matrix) {
  for (let t = 0; t < out.rows; t++) {
    const row =
      weight instanceof IntegerWeight
        ? weight.row(ids[t])
        : weight.subarray(ids[t] * out.width, (ids[t] + 1) * out.width);
    out.row(t).set(row);
  }
}

/** `out[r] = x[rows[r]]`. */
export function gather(x: Matrix, rows: Int32Array, out: Matrix) {
  for (let r = 0; r < out.rows; r++) out.row(r).set(x.row(rows[r]));
}

export function add(a: Matrix, b: Matrix, out: Matrix) {
  for (let t = 0; t < out.rows; t++) {
    const [left, right, sum] = [a.row(t), b.row(t), out.row(t)];
    for (let i = 0; i < out.width; i++) sum[i] = left[i] + right[i];
  }
}
