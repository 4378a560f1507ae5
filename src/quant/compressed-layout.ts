/** The tensors and the config of a checkpoint in the compressed-tensors layout (see model/formats). */

import { roundTo } from '../model/half.js';
import type { PlannedTensor } from '../model/safetensors-writer.js';
import type { IntegerStorage } from '../model/weights.js';
import type { CodedMatrix } from './code-matrix.js';

/** The tensors that stand for the matrix `module.weight` `[rows, width]`. */
export function plannedTensors(
  module: string,
  [rows, width]: readonly number[],
  { bits, group, symmetric }: IntegerStorage,
): PlannedTensor[] {
  const groups = group === 0 ? 1 : Math.ceil(width / group);
  const perWord = 32 / bits;
  if (bits === 8) {
    return [
      { name: `${module}.weight`, dtype: 'I8', shape: [rows, width] },
      { name: `${module}.weight_scale`, dtype: 'F32', shape: [rows, 1] },
    ];
  }
  return [
    { name: `${module}.weight_packed`, dtype: 'I32', shape: [rows, Math.ceil(width / perWord)] },
    { name: `${module}.weight_scale`, dtype: 'BF16', shape: [rows, groups] },
    { name: `${module}.weight_shape`, dtype: 'I64', shape: [2] },
    ...(symmetric
      ? []
      : [
          {
            name: `${module}.weight_zero_point`,
            dtype: 'I32' as const,
            shape: [Math.ceil(rows / perWord), groups],
          },
        ]),
  ];
}

/** The data of `plannedTensors`, in their order. */
export function tensorData(
  [rows, width]: readonly number[],
  { bits, symmetric }: IntegerStorage,
  { codes, scales, zeros }: CodedMatrix,
): NodeJS.TypedArray[] {
  if (bits === 8) return [codes, scales];
  const groups = scales.length / rows;
  return [
    pack(codes, rows, width),
    toBfloat16(scales),
    BigInt64Array.of(BigInt(rows), BigInt(width)),
    ...(symmetric
      ? []
      : [
          transposed(
            pack(transposed(zeros as Int8Array, rows, groups), groups, rows),
            groups,
            Math.ceil(rows / 8),
          ),
        ]),
  ];
}

/** Eight signed codes of 4 bits in a word, plus 8, lowest bits first; rows are padded with zeros. */
function pack(codes: Int8Array, rows: number, width: number): Int32Array {
  const words = Math.ceil(width / 8);
  const packed = new Int32Array(rows * words);
  for (let row = 0; row < rows; row++) {
    for (let k = 0; k < width; k++) {
      packed[row * words + (k >> 3)] |= (codes[row * width + k] + 8) << (4 * (k & 7));
    }
  }
  return packed;
}

function transposed<T extends Int8Array | Int32Array>(values: T, rows: number, width: number): T {
  const out = values.slice() as T;
  for (let row = 0; row < rows; row++) {
    for (let k = 0; k < width; k++) out[k * rows + row] = values[row * width + k];
  }
  return out;
}

/** Floats that bfloat16 holds exactly, as it stores them. */
export function toBfloat16(values: Float32Array): Uint16Array {
  const rounded = values.map((value) => roundTo('bfloat16', value));
  return Uint16Array.from(new Uint32Array(rounded.buffer), (word) => word >>> 16);
}

/** `quantization_config` of config.json; `ignored` are the linears that stay float. */
export function quantizationConfig(storage: IntegerStorage, ignored: readonly string[]): object {
  const { bits, group, symmetric } = storage;
  const common = { type: 'int', num_bits: bits, symmetric, dynamic: false, actorder: null };
  const weights =
    group === 0
      ? { ...common, strategy: 'channel', group_size: null }
      : { ...common, strategy: 'group', group_size: group };
  const activations = {
    type: 'int',
    num_bits: 8,
    symmetric: true,
    strategy: 'token',
    dynamic: true,
  };
  return {
    quant_method: 'compressed-tensors',
    format: bits === 8 ? 'int-quantized' : 'pack-quantized',
    quantization_status: 'compressed',
    ignore: ignored,
    config_groups: {
      group_0: {
        targets: ['Linear'],
        weights,
        input_activations: bits === 8 ? activations : null,
        output_activations: null,
      },
    },
    kv_cache_scheme: null,
  };
}
