/** `silu(x) = x * sigmoid(x)` (arXiv 1702.03118) and its gated form. */
import type { Matrix } from './matrix.js';

export function silu(x: number): number {
  return x / (1 + Math.exp(-x));
}

/** `out = silu(x[:, :w]) * x[:, w:]`. */
export function siluMul(x: Matrix, out: Matrix) {
  for (let t = 0; t < out.rows; t++) {
    const row = x.row(t);
    const result = out.row(t);
    for (let i = 0; i < out.width; i++) result[i] = silu(row[i]) * row[out.width + i];
  }
}
