/** From codes back to floats. */
import type { QuantizedTensor } from './weights.js';

/** All elements of a quantized tensor `[out, in]`, in the order of the input. Throws `ModelError`. */
export function dequantize({ shape, storage, read }: QuantizedTensor): Float32Array {
  const [rows, width] = shape;
  const { codes, scales, offsets, columns } = read();
  const group = storage.group === 0 ? width : storage.group;
  const groups = Math.ceil(width / group);
  const values = new Float32Array(rows * width);
  for (let row = 0; row < rows; row++) {
    for (let k = 0; k < width; k++) {
      const at = row * groups + Math.floor(k / group);
      const value = scales[at] * codes[row * width + k] + (offsets?.[at] ?? 0);
      values[row * width + (columns ? columns[k] : k)] = value;
    }
  }
  return values;
}
