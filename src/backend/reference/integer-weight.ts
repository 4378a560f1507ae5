/** Linears whose weights are integers: the arithmetic that kernels are compared with. */
import type { IntegerStorage, QuantizedMatrix } from '../../model/weights.js';
import { roundToEven } from './round.js';

/** A weight kept as integers, all its rows (and experts) one after the other. */
export class IntegerWeight {
  readonly matrix: QuantizedMatrix;
  readonly storage: IntegerStorage;
  /** Input columns. */
  readonly width: number;
  readonly group: number;
  readonly groups: number;

  constructor(matrix: QuantizedMatrix, storage: IntegerStorage, width: number) {
    this.matrix = matrix;
    this.storage = storage;
    this.width = width;
    this.group = storage.group === 0 ? width : storage.group;
    this.groups = Math.ceil(width / this.group);
  }

  /** A row as floats, in the order of the input. */
  row(index: number): Float32Array {
    const { codes, scales, offsets, columns } = this.matrix;
    const out = new Float32Array(this.width);
    for (let i = 0; i < this.width; i++) {
      const g = index * this.groups + Math.floor(i / this.group);
      out[columns?.[i] ?? i] = scales[g] * codes[index * this.width + i] + (offsets?.[g] ?? 0);
    }
    return out;
  }

  byteLength(): number {
    const { codes, scales, offsets, columns } = this.matrix;
    const floats = scales.byteLength + (offsets?.byteLength ?? 0);
    return codes.byteLength + floats + (columns?.byteLength ?? 0);
  }
}

/** A row of activations as int8, in the order of the weight's columns. */
export interface IntegerRow {
  readonly codes: Int8Array;
  /** One a group of the weight. NaN where the group holds a number that is not finite. */
  readonly scales: Float32Array;
}

/** Largest magnitude that counts as 0: its reciprocal would overflow. */
const NOTHING = Math.fround(1e-30);

/**
 * Rounds a row to int8 for a weight, symmetric, one scale for each of its groups: `max|x| / 127`,
 * codes the nearest to `x * (127 / max|x|)`, ties to even, every step in float32.
 */
export function quantizeRow(x: Float32Array, weight: IntegerWeight): IntegerRow {
  const { columns } = weight.matrix;
  const codes = new Int8Array(x.length);
  const scales = new Float32Array(weight.groups);
  for (let g = 0; g < weight.groups; g++) {
    const from = g * weight.group;
    const ordered = Float32Array.from(
      { length: Math.min(weight.group, x.length - from) },
      (_, i) => x[columns?.[from + i] ?? from + i],
    );
    const largest = ordered.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    if (!Number.isFinite(largest)) scales[g] = Number.NaN;
    if (!(largest >= NOTHING && largest < Infinity)) continue;
    scales[g] = largest / 127;
    const inverse = Math.fround(127 / largest);
    ordered.forEach((value, i) => {
      codes[from + i] = roundToEven(Math.fround(value * inverse));
    });
  }
  return { codes, scales };
}

/** The inner product of a row of integers and row `index` of the weight. Sums of codes are exact. */
export function integerDot(x: IntegerRow, weight: IntegerWeight, index: number): number {
  const { codes, scales, offsets } = weight.matrix;
  let result = 0;
  for (let g = 0; g < weight.groups; g++) {
    const end = Math.min((g + 1) * weight.group, weight.width);
    let products = 0;
    let sum = 0;
    for (let i = g * weight.group; i < end; i++) {
      products += x.codes[i] * codes[index * weight.width + i];
      sum += x.codes[i];
    }
    const at = index * weight.groups + g;
    result += x.scales[g] * (scales[at] * products + (offsets?.[at] ?? 0) * sum);
  }
  return result;
}
