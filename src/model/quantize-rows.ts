/** Round-to-nearest quantization of a matrix: what `--quantization` does to float weights at load. */
import type { IntegerStorage, QuantizedMatrix } from './weights.js';

/**
 * Quantizes `[rows, columns]` floats. Symmetric: `scale = max|w| / 127` (int8) or `/ 7` (int4, codes
 * 1 .. 15 around 8). Asymmetric: the group's range, widened to contain 0, on all 16 or 256 codes.
 * Codes are rounded to nearest even. An all-zero group has scale 0. The last group of a row may be
 * shorter.
 */
export function quantizeRows(
  values: Float32Array,
  rows: number,
  columns: number,
  storage: IntegerStorage,
): QuantizedMatrix {
  const { bits, symmetric } = storage;
  const group = storage.group === 0 ? columns : storage.group;
  const groups = Math.ceil(columns / group);
  const codes = new Int8Array(rows * columns);
  const scales = new Float32Array(rows * groups);
  const offsets = bits === 4 || !symmetric ? new Float32Array(rows * groups) : undefined;
  for (let row = 0; row < rows; row++) {
    for (let g = 0; g < groups; g++) {
      const from = row * columns + g * group;
      const to = Math.min(from + group, (row + 1) * columns);
      let low = 0;
      let high = 0;
      for (let i = from; i < to; i++) {
        const value = values[i];
        if (value < low) low = value;
        if (value > high) high = value;
      }
      // Codes lie between `least` and `most`; `zero` is the code of 0.
      const least = bits === 8 ? -128 : 0;
      const most = bits === 8 ? 127 : 15;
      const steps = symmetric ? (bits === 8 ? 127 : 7) : most - least;
      const scale = Math.fround((symmetric ? Math.max(-low, high) : high - low) / steps);
      const zero = symmetric ? (bits === 8 ? 0 : 8) : least - roundToEven(low / (scale || 1));
      // Of a group of zeros all codes are those of 0, whatever they are divided by.
      const divisor = scale || 1;
      for (let i = from; i < to; i++) {
        const code = roundToEven(values[i] / divisor) + zero;
        codes[i] = code < least ? least : code > most ? most : code;
      }
      scales[row * groups + g] = scale;
      if (offsets) offsets[row * groups + g] = -scale * zero;
    }
  }
  return { codes, scales, offsets };
}

/** Added to a number less than 2^51 and taken away again, this leaves no bits after the point. */
const WHOLE = 1.5 * 2 ** 52;

function roundToEven(x: number): number {
  return x + WHOLE - WHOLE;
}
