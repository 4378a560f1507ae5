/**
 * Checkpoints of the compressed-tensors library (vllm-project/compressed-tensors, as llm-compressor
 * writes them), for a module of `in` inputs and `out` outputs:
 *
 *     int-quantized    weight I8 [out, in]
 *     pack-quantized   weight_packed I32 [out, ceil(in * bits / 32)], codes + 2^(bits-1), lowest bits first;
 *                      weight_shape I64 [2]
 *     float-quantized  weight F8_E4M3 [out, in]
 *
 * each with `weight_scale` [out, groups] (groups 1 for a row), `weight_zero_point` where not
 * symmetric (int8 [out, groups], or packed along its rows like the codes) and, with act-order,
 * `weight_g_idx` I32 [in]. weight = scale * (code - zero point), codes signed.
 */
import { ModelError } from '../../errors.js';
import { ConfigFields, isJsonObject } from '../config-fields.js';
import type { WeightPart } from '../program.js';
import type { TensorEntry } from '../safetensors.js';
import type { IntegerStorage, QuantizedMatrix, QuantizedTensor } from '../weights.js';
import { type Entries, FLOATS, readBytes, readFloats, readInt32, requireEntry } from './entry.js';
import type { CheckpointFormat } from './format.js';
import { type Block, blockOf, fp8Tensor } from './fp8.js';
import { columnsByGroup, regroup, storedGroup } from './groups.js';
import { orderColumns, unpackRows } from './unpack.js';

interface Scheme {
  readonly where: string;
  readonly targets: readonly string[];
  readonly bits: 4 | 8;
  readonly float: boolean;
  readonly symmetric: boolean;
  /** Infinity: a whole row. */
  readonly groupSize: number;
  /** Of fp8. */
  readonly block?: Block;
}

/** Reads `quantization_config`. Throws `ModelError` naming what is not supported. */
export function compressedTensorsFormat(fields: ConfigFields): CheckpointFormat {
  const name = fields.text('format', 'dense');
  const supported = ['int-quantized', 'pack-quantized', 'float-quantized', 'naive-quantized'];
  if (!supported.includes(name)) throw fields.expected(supported.join(', '), 'format');
  const sparsity = fields.object('sparsity_config');
  if (sparsity && sparsity.text('format', 'dense') !== 'dense') {
    throw sparsity.expected('dense, sparse checkpoints are not supported', 'format');
  }
  const groups = fields.get('config_groups');
  if (!isJsonObject(groups)) throw fields.expected('an object', 'config_groups');
  const schemes = Object.entries(groups).map(([key, group]) => {
    const where = `${fields.where}: config_groups: ${key}`;
    if (!isJsonObject(group)) throw new ModelError(`${where} is not an object`);
    return parseScheme(new ConfigFields(where, group));
  });
  return {
    find(part, entries) {
      const module = part.tensor.replace(/\.weight$/, '');
      if (part.shape.length !== 2 || !entries.has(`${module}.weight_scale`)) return undefined;
      const scheme = schemes.find(({ targets }) => targets.some((t) => matches(t, module)));
      if (scheme === undefined) {
        throw new ModelError(
          `${fields.where}: no group's targets name ${module}, which has scales`,
        );
      }
      const uses = SUFFIXES.map((suffix) => `${module}.${suffix}`);
      if (scheme.float) {
        return { ...fp8Tensor(part, entries, `${module}.weight_scale`, scheme.block), uses };
      }
      return { tensor: integerTensor(scheme, module, part, entries), uses };
    },
  };
}

const SUFFIXES = [
  'weight',
  'weight_packed',
  'weight_scale',
  'weight_zero_point',
  'weight_shape',
  'weight_g_idx',
  // Of static activation scales: activations are scaled on the fly here, which is never coarser.
  'input_scale',
  'input_zero_point',
];

function parseScheme(group: ConfigFields): Scheme {
  const { where } = group;
  const weights = group.object('weights');
  if (weights === undefined) throw group.expected('an object', 'weights');
  const bits = weights.size('num_bits');
  const type = weights.text('type', 'int');
  const float = type === 'float' && bits === 8;
  if (!float && !(type === 'int' && (bits === 4 || bits === 8))) {
    throw new ModelError(
      `${weights.where}: ${bits}-bit ${type} is not supported, supported are int 4, int 8, float 8`,
    );
  }
  const strategy = weights.text('strategy', 'tensor');
  const groupSize = strategy === 'group' ? weights.size('group_size') : Infinity;
  const allowed = float ? ['tensor', 'channel', 'block'] : ['channel', 'group'];
  if (!allowed.includes(strategy)) throw weights.expected(allowed.join(' or '), 'strategy');
  const symmetric = weights.flag('symmetric', true);
  if (float && !symmetric) throw weights.expected('true of 8-bit floats', 'symmetric');
  const block = strategy === 'block' ? blockOf(weights, 'block_structure') : undefined;
  if (strategy === 'block' && !block) throw weights.expected('a pair of sizes', 'block_structure');
  return {
    where,
    targets: group.texts('targets') ?? [],
    bits: bits as 4 | 8,
    float,
    symmetric,
    groupSize,
    block,
  };
}

/** A class name (every linear is `Linear`), a module's name, or `re:` and a regular expression. */
function matches(target: string, module: string): boolean {
  if (!target.startsWith('re:')) return target === 'Linear' || target === module;
  try {
    return new RegExp(`^(?:${target.slice(3)})`).test(module);
  } catch {
    throw new ModelError(`config_groups: ${target} is not a regular expression`);
  }
}

function integerTensor(
  scheme: Scheme,
  module: string,
  { shape }: WeightPart,
  entries: Entries,
): QuantizedTensor {
  const { bits, symmetric, where } = scheme;
  const [rows, width] = shape;
  const groupSize = Math.min(scheme.groupSize, width);
  const groups = Math.ceil(width / groupSize);
  const perWord = 32 / bits;
  const packed = entries.has(`${module}.weight_packed`);
  const words = Math.ceil(width / perWord);
  const weight = packed
    ? requireEntry(entries, `${module}.weight_packed`, ['I32'], [rows, words])
    : requireEntry(entries, `${module}.weight`, ['I8'], shape);
  const scale = requireEntry(entries, `${module}.weight_scale`, FLOATS, [rows, groups]);
  const zeroName = `${module}.weight_zero_point`;
  const zeroPacked = entries.get(zeroName)?.dtype === 'I32';
  const zero = symmetric
    ? undefined
    : zeroPacked
      ? requireEntry(entries, zeroName, ['I32'], [Math.ceil(rows / perWord), groups])
      : requireEntry(entries, zeroName, ['I8'], [rows, groups]);
  const order = entries.get(`${module}.weight_g_idx`);
  if (order) requireEntry(entries, order.name, ['I32'], [width]);
  const columns = order && columnsByGroup(order.name, readInt32(order), groupSize);
  const group = storedGroup(where, bits, groupSize, width);
  const storage: IntegerStorage = { kind: 'integer', bits, group, symmetric };
  const middle = 2 ** (bits - 1);
  const mask = 2 ** bits - 1;
  // int8 codes are kept around 0, int4 codes from 0.
  const shift = bits === 8 ? 0 : middle;
  const read = (): QuantizedMatrix => {
    const codes = packed
      ? unpackRows(readInt32(weight), rows, width, bits)
      : readCodes(weight, bits, shift);
    if (columns) orderColumns(codes, columns);
    const scales = readFloats(scale);
    const offset = new Float32Array(rows * groups);
    const zeros = zero && (zeroPacked ? readInt32(zero) : new Int8Array(readBytes(zero).buffer));
    for (let row = 0; row < rows; row++) {
      for (let g = 0; g < groups; g++) {
        const at = row * groups + g;
        let point = 0;
        if (zeros && zeroPacked) {
          const word = zeros[Math.floor(row / perWord) * groups + g];
          point = ((word >>> (bits * (row % perWord))) & mask) - middle;
        } else if (zeros) point = zeros[at];
        offset[at] = -scales[at] * (point + shift);
      }
    }
    const fit = (values: Float32Array) => regroup(values, rows, width, groupSize, group);
    const offsets = bits === 8 && symmetric ? undefined : fit(offset);
    return { codes, scales: fit(scales), offsets, columns };
  };
  return { kind: 'quantized', shape, storage, read, columns };
}

/** Codes a byte each; of 4 bits are counted from 0, not from -8. */
function readCodes(weight: TensorEntry, bits: 4 | 8, shift: number): Int8Array {
  const codes = new Int8Array(readBytes(weight).buffer);
  if (bits === 8) return codes;
  for (let i = 0; i < codes.length; i++) {
    if (codes[i] < -8 || codes[i] > 7) {
      throw new ModelError(`${weight.path}: ${weight.name} has code ${codes[i]} of 4 bits`);
    }
    codes[i] += shift;
  }
  return codes;
}
