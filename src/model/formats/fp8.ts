/**
 * Weights in the 8-bit float e4m3 (OCP "8-bit Floating Point Specification", 2023): 1 sign, 4
 * exponent, 3 fraction bits, bias 7, no infinities. No CPU computes in it, so they become the
 * model's float type at load.
 */
import { ModelError } from '../../errors.js';
import type { ConfigFields } from '../config-fields.js';
import type { WeightPart } from '../program.js';
import { type Entries, FLOATS, readBytes, readFloats, requireEntry } from './entry.js';
import type { CheckpointFormat, FoundTensor } from './format.js';

const FLOAT_OF_BYTE: Float32Array = Float32Array.from({ length: 256 }, (_, byte) => {
  const sign = byte & 0x80 ? -1 : 1;
  const exponent = (byte >> 3) & 15;
  const fraction = byte & 7;
  if (exponent === 15 && fraction === 7) return Number.NaN;
  if (exponent === 0) return sign * fraction * 2 ** -9;
  return sign * (8 + fraction) * 2 ** (exponent - 10);
});

/** `quant_method: fp8`, as DeepSeek and Qwen publish: `weight` F8_E4M3, `weight_scale_inv` by block. */
export function fp8Format(fields: ConfigFields): CheckpointFormat {
  const kind = fields.text('fmt', 'e4m3');
  if (kind !== 'e4m3') throw fields.expected('e4m3', 'fmt');
  const block = fields.get('weight_block_size');
  if (!isBlock(block)) throw fields.expected('a pair of block sizes', 'weight_block_size');
  return {
    find: (part, entries) =>
      entries.get(part.tensor)?.dtype === 'F8_E4M3'
        ? fp8Tensor(part, entries, `${part.tensor}_scale_inv`, block)
        : undefined,
  };
}

/**
 * `weight` F8_E4M3 `[out, in]` times the scale of its block. Scales `[ceil(out / block[0]),
 * ceil(in / block[1])]`; without a block one a row `[out, 1]`, or one for all.
 */
export function fp8Tensor(
  { tensor, shape }: WeightPart,
  entries: Entries,
  scaleName: string,
  block?: readonly [number, number],
): FoundTensor {
  const [rows, width] = shape;
  const weight = requireEntry(entries, tensor, ['F8_E4M3'], shape);
  const given = entries.get(scaleName);
  if (given === undefined) throw new ModelError(`${scaleName} is missing`);
  const count = given.shape.reduce((product, size) => product * size, 1);
  const [high, wide] = block ?? (count === 1 ? [rows, width] : [1, width]);
  const across = Math.ceil(width / wide);
  const expected =
    block === undefined && count === 1 ? given.shape : [Math.ceil(rows / high), across];
  const scale = requireEntry(entries, scaleName, FLOATS, expected);
  const read = () => {
    const bytes = readBytes(weight);
    const scales = readFloats(scale);
    const values = new Float32Array(rows * width);
    for (let row = 0; row < rows; row++) {
      const first = Math.floor(row / high) * across;
      for (let k = 0; k < width; k++) {
        const at = row * width + k;
        values[at] = FLOAT_OF_BYTE[bytes[at]] * scales[first + Math.floor(k / wide)];
      }
    }
    return values;
  };
  return {
    tensor: { kind: 'computed', shape, read },
    uses: [tensor, scaleName],
    note: 'fp8 weights become floats at load: the CPU has no fp8 arithmetic',
  };
}

function isBlock(value: unknown): value is [number, number] {
  return (
    Array.isArray(value) &&
    value.length === 2 &&
    value.every((size) => Number.isSafeInteger(size) && size > 0)
  );
}
