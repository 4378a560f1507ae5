/** Reads tensors of a checkpoint as numbers, and checks that they are what a format says. */
import { ModelError } from '../../errors.js';
import { halvesToFloats } from '../half.js';
import { readRange } from '../read-tensor.js';
import type { TensorEntry } from '../safetensors.js';

export type Entries = ReadonlyMap<string, TensorEntry>;

/** The tensor `name`, checked. Throws `ModelError`. */
export function requireEntry(
  entries: Entries,
  name: string,
  dtypes: readonly string[],
  shape: readonly number[],
): TensorEntry {
  const entry = entries.get(name);
  if (entry === undefined) {
    throw new ModelError(
      `${name} is missing, expected ${dtypes.join(' or ')} [${shape.join(', ')}]`,
    );
  }
  if (!dtypes.includes(entry.dtype) || entry.shape.join() !== shape.join()) {
    throw new ModelError(
      `${entry.path}: ${name} is ${entry.dtype} [${entry.shape.join(', ')}], ` +
        `expected ${dtypes.join(' or ')} [${shape.join(', ')}]`,
    );
  }
  return entry;
}

export const FLOATS = ['F32', 'F16', 'BF16'] as const;

/** Elements of an F32, F16 or BF16 tensor. */
export function readFloats(entry: TensorEntry): Float32Array {
  const { dtype } = entry;
  const bytes = readAll(entry, dtype === 'F32' ? 4 : 2);
  if (dtype === 'F32') return new Float32Array(bytes.buffer);
  return halvesToFloats(new Uint16Array(bytes.buffer), dtype === 'F16' ? 'float16' : 'bfloat16');
}

/** Elements of an I32 tensor. */
export function readInt32(entry: TensorEntry): Int32Array {
  return new Int32Array(readAll(entry, 4).buffer);
}

/** Elements of an I8, U8 or FP8 tensor, as bytes. */
export function readBytes(entry: TensorEntry): Uint8Array {
  return readAll(entry, 1);
}

function readAll({ path, offset, shape }: TensorEntry, size: number): Uint8Array {
  return readRange(path, offset, size * shape.reduce((product, n) => product * n, 1));
}
