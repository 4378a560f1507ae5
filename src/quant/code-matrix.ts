/**
 * Floats to integers: rounding to nearest, and GPTQ (Frantar et al. 2022, arXiv 2210.17323,
 * algorithm 1): columns are rounded from left to right, and what each loses is made up for by the
 * columns still to come, in the way that changes the outputs on calibration inputs least.
 */
import { roundTo } from '../model/half.js';
import type { IntegerStorage } from '../model/weights.js';
import { inverseFactor } from './linear-algebra.js';

/** `weight = scales * (codes - zeros)`, codes and zeros signed. */
export interface CodedMatrix {
  /** [out, in]. */
  readonly codes: Int8Array;
  /** [out, groups]. */
  readonly scales: Float32Array;
  /** [out, groups]; absent: 0. */
  readonly zeros?: Int8Array;
}

/**
 * Codes `values` `[rows, width]`. `hessian` `[width, width]`, upper triangle: the sum of `xᵀ x` over
 * calibration inputs, for GPTQ; it is overwritten. Without it codes are rounded to nearest.
 */
export function codeMatrix(
  values: Float32Array,
  rows: number,
  width: number,
  storage: IntegerStorage,
  hessian?: Hessian,
): CodedMatrix {
  const group = storage.group === 0 ? width : storage.group;
  const groups = Math.ceil(width / group);
  const codes = new Int8Array(rows * width);
  const scales = new Float32Array(rows * groups);
  const zeros = storage.symmetric ? undefined : new Int8Array(rows * groups);
  const least = -(2 ** (storage.bits - 1));
  const line = new Float64Array(width);
  for (let row = 0; row < rows; row++) {
    for (let k = 0; k < width; k++) line[k] = values[row * width + k];
    for (let g = 0; g < groups; g++) {
      const from = g * group;
      const to = Math.min(width, from + group);
      const { scale, zero } = chooseGrid(line, from, to, storage, hessian?.importance);
      scales[row * groups + g] = scale;
      if (zeros) zeros[row * groups + g] = zero;
      for (let k = from; k < to; k++) {
        const code = nearestCode(line[k], scale, zero, least);
        codes[row * width + k] = code;
        if (hessian) passOn(line, k, line[k] - scale * (code - zero), hessian.factor, width);
      }
    }
  }
  return { codes, scales, zeros };
}

export interface Hessian {
  /** [width, width] U of `h⁻¹ = Uᵀ U`. */
  readonly factor: Float64Array;
  /** [width] the diagonal of h: how much an error of each column counts. */
  readonly importance: Float64Array;
}

/** Of the mean of the diagonal: added to it, so that the inverse exists (the paper's 1 %). */
const DAMPING = 0.01;

/** Makes ready the sum of `xᵀ x` (upper triangle, overwritten); undefined where it has no inverse. */
export function prepareHessian(sum: Float64Array, n: number): Hessian | undefined {
  let mean = 0;
  for (let k = 0; k < n; k++) mean += sum[k * n + k] / n;
  if (!(mean > 0 && mean < Infinity)) return undefined;
  for (let k = 0; k < n; k++) sum[k * n + k] += DAMPING * mean;
  const importance = Float64Array.from({ length: n }, (_, k) => sum[k * n + k]);
  const factor = inverseFactor(sum, n);
  return factor && { factor, importance };
}

/** Spreads the error of column `k` over the columns after it. */
function passOn(line: Float64Array, k: number, loss: number, factor: Float64Array, width: number) {
  const at = k * width;
  const error = loss / factor[at + k];
  for (let j = k + 1; j < width; j++) line[j] -= error * factor[at + j];
}

/** Shares of the largest weight that may be cut off for a finer grid, tried with calibration. */
const SHRINK = [1, 0.97, 0.94, 0.91, 0.88, 0.85, 0.8, 0.75, 0.7];

/**
 * Scale and zero point of a group. With `importance`, the range is narrowed to where the weighted
 * squared error is least; without, it is the whole range.
 */
function chooseGrid(
  line: Float64Array,
  from: number,
  to: number,
  { bits, symmetric }: IntegerStorage,
  importance?: Float64Array,
): { scale: number; zero: number } {
  let low = 0;
  let high = 0;
  for (let k = from; k < to; k++) {
    low = Math.min(low, line[k]);
    high = Math.max(high, line[k]);
  }
  const least = -(2 ** (bits - 1));
  const steps = symmetric ? -least - 1 : 2 ** bits - 1;
  let best = { scale: 0, zero: 0 };
  let fewest = Infinity;
  for (const shrink of importance && bits === 4 ? SHRINK : [1]) {
    const range = shrink * (symmetric ? Math.max(-low, high) : high - low);
    const scale = storedScale(range / steps, bits);
    if (scale === 0) return best;
    const zero = symmetric ? 0 : clamp(least - Math.round((shrink * low) / scale), least);
    if (!importance) return { scale, zero };
    let error = 0;
    for (let k = from; k < to; k++) {
      const rounded = scale * (nearestCode(line[k], scale, zero, least) - zero);
      error += importance[k] * (line[k] - rounded) ** 2;
    }
    if (error < fewest) {
      fewest = error;
      best = { scale, zero };
    }
  }
  return best;
}

/** Scales of int4 groups are stored as bfloat16: with float32 they would add a bit a weight. */
function storedScale(scale: number, bits: 4 | 8): number {
  return bits === 4 ? roundTo('bfloat16', scale) : Math.fround(scale);
}

function nearestCode(value: number, scale: number, zero: number, least: number): number {
  return scale === 0 ? zero : clamp(Math.round(value / scale) + zero, least);
}

function clamp(code: number, least: number): number {
  return Math.max(least, Math.min(-least - 1, code));
}

/** The floats that codes stand for, `[rows, width]`. */
export function decodeMatrix(
  { codes, scales, zeros }: CodedMatrix,
  rows: number,
  width: number,
  storage: IntegerStorage,
): Float32Array {
  const groups = scales.length / rows;
  const group = storage.group === 0 ? width : storage.group;
  return Float32Array.from(codes, (code, i) => {
    const at = Math.floor(i / width) * groups + Math.floor((i % width) / group);
    return scales[at] * (code - (zeros?.[at] ?? 0));
  });
}
