/** Root-mean-square norm (arXiv 1910.07467). */
import type { Matrix } from './matrix.js';

/** `x / sqrt(mean(x^2) + eps) * weight` over each run of `group` columns; weight `[group]`. */
export function rmsNorm(x: Matrix, weight: Float32Array, eps: number, group: number, out: Matrix) {
  for (let t = 0; t < out.rows; t++) {
    const row = x.row(t);
    const result = out.row(t);
    for (let start = 0; start < out.width; start += group) {
      let squares = 0;
      for (let i = 0; i < group; i++) squares += row[start + i] ** 2;
      const scale = 1 / Math.sqrt(squares / group + eps);
      for (let i = 0; i < group; i++) result[start + i] = row[start + i] * scale * weight[i];
    }
  }
}
