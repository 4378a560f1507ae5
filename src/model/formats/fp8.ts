/**
 * Weights in the 8-bit float e4m3. With one scale a row or one for all they are an `Fp8Tensor`, which
 * an executor may keep; scales of blocks have no kernels, so those become floats at load.
 */
import { ModelError } from '../../errors.js';
import type { ConfigFields } from '../config-fields.js';
import { FLOAT_OF_E4M3 } from '../e4m3.js';
import type { WeightPart } from '../program.js';
import type { TensorEntry } from '../safetensors.js';
import type { Fp8Tensor } from '../weights.js';
import { type Entries, FLOATS, readBytes, readFloats, requireEntry } from './entry.js';
import type { CheckpointFormat, FoundTensor } from './format.js';

export type Block = readonly [rows: number, columns: number];

/**
 * `quant_method: fp8`: `weight` F8_E4M3 with `weight_scale_inv` by block, as DeepSeek and Qwen publish,
 * or, without `weight_block_size`, `weight_scale` for all of it, as AutoFP8 writes.
 */
export function fp8Format(fields: ConfigFields): CheckpointFormat {
  const kind = fields.text('fmt', 'e4m3');
  if (kind !== 'e4m3') throw fields.expected('e4m3', 'fmt');
  const block = blockOf(fields, 'weight_block_size');
  return {
    find(part, entries) {
      if (entries.get(part.tensor)?.dtype !== 'F8_E4M3') return undefined;
      const found = fp8Tensor(part, entries, `${part.tensor}_scale${block ? '_inv' : ''}`, block);
      // Of static activation scales: activations are scaled on the fly here, which is never coarser.
      return { ...found, uses: [...found.uses, part.tensor.replace(/weight$/, 'input_scale')] };
    },
  };
}

/** A pair of block sizes; undefined if absent. Throws `ModelError`. */
export function blockOf(fields: ConfigFields, name: string): Block | undefined {
  const value = fields.get(name);
  const isSize = (size: unknown) => Number.isSafeInteger(size) && (size as number) > 0;
  if (value === undefined) return undefined;
  if (Array.isArray(value) && value.length === 2 && value.every(isSize)) {
    return [value[0], value[1]];
  }
  throw fields.expected('a pair of block sizes', name);
}

/**
 * `weight` F8_E4M3 `[out, in]` times the scale of its block. Scales `[ceil(out / block[0]),
 * ceil(in / block[1])]`; without a block one a row `[out, 1]`, or one for all.
 */
export function fp8Tensor(
  { tensor, shape }: WeightPart,
  entries: Entries,
  scaleName: string,
  block?: Block,
): FoundTensor {
  const weight = requireEntry(entries, tensor, ['F8_E4M3'], shape);
  const given = entries.get(scaleName);
  if (given === undefined) throw new ModelError(`${scaleName} is missing`);
  const uses = [tensor, scaleName];
  if (block === undefined) return { tensor: scaledRows(weight, given, entries), uses };
  const [rows, width] = shape;
  const across = Math.ceil(width / block[1]);
  const scale = requireEntry(entries, scaleName, FLOATS, [Math.ceil(rows / block[0]), across]);
  return {
    tensor: { kind: 'computed', shape, read: () => scaledBlocks(weight, scale, block) },
    uses,
    note: 'fp8 weights with a scale for each block become floats at load: no kernel has such blocks',
  };
}

function scaledRows(weight: TensorEntry, given: TensorEntry, entries: Entries): Fp8Tensor {
  const { path, offset, shape } = weight;
  const [rows] = shape;
  const count = given.shape.reduce((product, size) => product * size, 1);
  const expected = count === 1 ? given.shape : given.shape.length === 1 ? [rows] : [rows, 1];
  const scale = requireEntry(entries, given.name, FLOATS, expected);
  const readScales = () => {
    const scales = readFloats(scale);
    return scales.length === rows ? scales : new Float32Array(rows).fill(scales[0]);
  };
  return { kind: 'fp8', shape, path, offset, readScales };
}

function scaledBlocks(weight: TensorEntry, scale: TensorEntry, [high, wide]: Block): Float32Array {
  const [rows, width] = weight.shape;
  const [, across] = scale.shape;
  const bytes = readBytes(weight);
  const scales = readFloats(scale);
  const values = new Float32Array(rows * width);
  for (let row = 0; row < rows; row++) {
    const first = Math.floor(row / high) * across;
    for (let block = 0; block < across; block++) {
      const factor = scales[first + block];
      const end = row * width + Math.min(width, (block + 1) * wide);
      for (let at = row * width + block * wide; at < end; at++) {
        values[at] = FLOAT_OF_E4M3[bytes[at]] * factor;
      }
    }
  }
  return values;
}
