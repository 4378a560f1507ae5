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
    const first = row * width;
    for (let g = 0; g < groups; g++) {
      const scale = scales[row * groups + g];
      const offset = offsets ? offsets[row * groups + g] : 0;
      const end = Math.min(width, (g + 1) * group);
      for (let k = g * group; k < end; k++) {
        values[first + (columns ? columns[k] : k)] = scale * codes[first + k] + offset;
      }
    }
  }
  return values;
}
