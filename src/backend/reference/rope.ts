/** Rotary position embedding, half-split layout (arXiv 2104.09864). */
import type { RopeTable } from '../../model/program.js';
import type { Matrix } from './matrix.js';

/** Turns pair `(i, i + headDim / 2)` of each head by `position * invFreq[i]`, scaled by `table.scale`. */
export function rope(
  x: Matrix,
  positions: Int32Array,
  headDim: number,
  { invFreq, scale }: RopeTable,
  out: Matrix,
) {
  const half = headDim / 2;
  for (let t = 0; t < out.rows; t++) {
    const row = x.row(t);
    const result = out.row(t);
    for (let i = 0; i < half; i++) {
      const angle = positions[t] * invFreq[i];
      const cos = Math.cos(angle) * scale;
      const sin = Math.sin(angle) * scale;
      for (let head = 0; head < out.width; head += headDim) {
        const a = row[head + i];
        const b = row[head + i + half];
        result[head + i] = a * cos - b * sin;
        result[head + i + half] = b * cos + a * sin;
      }
    }
  }
}
