/**
 * GPTQ checkpoints, as AutoGPTQ and GPTQModel write them, `quant_method: gptq`. For a module of
 * `in` inputs and `out` outputs, p = 32 / bits codes a word, lowest bits first:
 *
 *     qweight  I32 [in / p, out]      codes of p consecutive inputs in a word
 *     qzeros   I32 [groups, out / p]  zero points of p consecutive outputs, minus 1 in format "gptq"
 *     scales   F16 [groups, out]
 *     g_idx    I32 [in]               the group of each input; not ascending with desc_act
 *
 * weight = scale * (code - zero). AutoAWQ's "gemm" version packs outputs instead and has no g_idx:
 *
 *     qweight  I32 [in, out / 8],  qzeros I32 [groups, out / 8],  scales F16 [groups, out]
 *
 * with the outputs 0 2 4 6 1 3 5 7 of each eight from the lowest bits up.
 */
import { ModelError } from '../../errors.js';
import { type ConfigFields, isJsonObject } from '../config-fields.js';
import type { WeightPart } from '../program.js';
import type { IntegerStorage, QuantizedMatrix, QuantizedTensor } from '../weights.js';
import { type Entries, FLOATS, readFloats, readInt32, requireEntry } from './entry.js';
import type { CheckpointFormat } from './format.js';
import { columnsByGroup, regroup, storedGroup } from './groups.js';
import { AWQ_PLACE, orderColumns, unpackInputs, unpackOutputs } from './unpack.js';

interface Packing {
  readonly where: string;
  readonly bits: 4 | 8;
  readonly groupSize: number;
  readonly symmetric: boolean;
  /** Added to stored zero points. */
  readonly zeroShift: 0 | 1;
  readonly awq: boolean;
}

/** Reads `quantization_config` of a GPTQ checkpoint. Throws `ModelError` for what it cannot be. */
export function gptqFormat(fields: ConfigFields): CheckpointFormat {
  const version = fields.text('checkpoint_format', 'gptq');
  if (version !== 'gptq' && version !== 'gptq_v2') {
    throw fields.expected('gptq or gptq_v2', 'checkpoint_format');
  }
  if (fields.flag('is_marlin_format', false)) throw fields.expected('false', 'is_marlin_format');
  // Other bits or groups for some modules; "-:" only leaves modules as floats.
  const dynamic = fields.get('dynamic') ?? {};
  if (!isJsonObject(dynamic) || Object.keys(dynamic).some((key) => !key.startsWith('-:'))) {
    throw fields.expected('"-:" entries only: all modules quantized alike', 'dynamic');
  }
  return format({
    where: fields.where,
    bits: bitsOf(fields, [4, 8]),
    groupSize: groupSizeOf(fields),
    symmetric: fields.flag('sym', true),
    zeroShift: version === 'gptq' ? 1 : 0,
    awq: false,
  });
}

/** Reads `quantization_config` of an AWQ checkpoint. Throws `ModelError` for what it cannot be. */
export function awqFormat(fields: ConfigFields): CheckpointFormat {
  const version = fields.text('version', 'gemm').toLowerCase();
  if (version !== 'gemm') throw fields.expected('gemm', 'version');
  return format({
    where: fields.where,
    bits: bitsOf(fields, [4]),
    groupSize: groupSizeOf(fields),
    symmetric: !fields.flag('zero_point', true),
    zeroShift: 0,
    awq: true,
  });
}

function bitsOf(fields: ConfigFields, allowed: readonly number[]): 4 | 8 {
  const name = fields.has('w_bit') ? 'w_bit' : 'bits';
  const bits = fields.size(name);
  if (!allowed.includes(bits)) throw fields.expected(allowed.join(' or '), name);
  return bits as 4 | 8;
}

/** -1 is a whole row. */
function groupSizeOf(fields: ConfigFields): number {
  const name = fields.has('q_group_size') ? 'q_group_size' : 'group_size';
  const size = fields.number(name, 128);
  if (size === -1) return Infinity;
  return fields.size(name, 128);
}

function format(packing: Packing): CheckpointFormat {
  return {
    find({ tensor, shape }, entries) {
      const module = tensor.replace(/\.weight$/, '');
      if (shape.length !== 2 || !entries.has(`${module}.qweight`)) return undefined;
      const names = ['qweight', 'qzeros', 'scales', 'g_idx'].map((name) => `${module}.${name}`);
      return { tensor: packedTensor(packing, module, { tensor, shape }, entries), uses: names };
    },
  };
}

function packedTensor(
  packing: Packing,
  module: string,
  { shape }: WeightPart,
  entries: Entries,
): QuantizedTensor {
  const [rows, width] = shape;
  const { bits, awq, where } = packing;
  const groupSize = Math.min(packing.groupSize, width);
  const perWord = 32 / bits;
  const groups = Math.ceil(width / groupSize);
  if (width % perWord !== 0 || rows % perWord !== 0) {
    throw new ModelError(`${module} is [${shape.join(', ')}], expected multiples of ${perWord}`);
  }
  const weight = requireEntry(
    entries,
    `${module}.qweight`,
    ['I32'],
    awq ? [width, rows / perWord] : [width / perWord, rows],
  );
  const zeros = requireEntry(entries, `${module}.qzeros`, ['I32'], [groups, rows / perWord]);
  const scales = requireEntry(entries, `${module}.scales`, FLOATS, [groups, rows]);
  const order = awq ? undefined : entries.get(`${module}.g_idx`);
  if (order) requireEntry(entries, order.name, ['I32'], [width]);
  const columns = order && columnsByGroup(order.name, readInt32(order), groupSize);
  const group = storedGroup(where, bits, groupSize, width);
  const storage: IntegerStorage = { kind: 'integer', bits, group, symmetric: packing.symmetric };
  const mask = 2 ** bits - 1;
  const read = (): QuantizedMatrix => {
    const words = readInt32(weight);
    const codes = awq ? unpackOutputs(words, rows, width) : unpackInputs(words, rows, width, bits);
    if (columns) orderColumns(codes, columns);
    // int8 codes are kept around 0, int4 codes from 0.
    const centre = bits === 8 ? 128 : 0;
    const scale = transpose(readFloats(scales), groups, rows);
    const zeroWords = readInt32(zeros);
    const offset = new Float32Array(rows * groups);
    const middle = 2 ** (bits - 1);
    for (let row = 0; row < rows; row++) {
      const shift = awq ? AWQ_PLACE[row % 8] * 4 : bits * (row % perWord);
      for (let g = 0; g < groups; g++) {
        const word = zeroWords[g * (rows / perWord) + Math.floor(row / perWord)] >>> shift;
        // AutoGPTQ lets the sum wrap: a stored 15 of 4 bits is a zero point of 0.
        const zero = (word + packing.zeroShift) & mask;
        if (packing.symmetric && zero !== middle) {
          throw new ModelError(
            `${zeros.path}: ${zeros.name} has zero point ${zero}, but ${where} says it is symmetric`,
          );
        }
        offset[row * groups + g] = scale[row * groups + g] * (centre - zero);
      }
    }
    const fit = (values: Float32Array) => regroup(values, rows, width, groupSize, group);
    const offsets = bits === 8 && packing.symmetric ? undefined : fit(offset);
    return { codes, scales: fit(scale), offsets, columns };
  };
  return { kind: 'quantized', shape, storage, read, columns };
}

function transpose(values: Float32Array, rows: number, columns: number): Float32Array {
  const out = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    for (let k = 0; k < columns; k++) out[k * rows + row] = values[row * columns + k];
  }
  return out;
}
