/** A program's weights as the reference executor computes with them. */
import { roundTo } from '../../model/half.js';
import type { Program, Weight } from '../../model/program.js';
import { quantizeRows } from '../../model/quantize-rows.js';
import { readTensor } from '../../model/read-tensor.js';
import type { IntegerStorage, QuantizedMatrix, WeightSource } from '../../model/weights.js';
import { withoutFp8 } from '../fp8.js';
import { IntegerWeight } from './integer-weight.js';

export type ReferenceWeight = Float32Array | IntegerWeight;

/**
 * Reads all weights, by weight id. Matrices kept as floats are rounded to the source's storage type
 * but kept, and computed with, in float32; norms and biases stay as they are in the checkpoint.
 */
export function readWeights(
  program: Program,
  given: WeightSource,
  onProgress?: (share: number) => void,
): ReferenceWeight[] {
  const source = withoutFp8(given);
  return program.weights.map((weight, index) => {
    const storage = source.storage(weight);
    const read =
      storage.kind === 'integer' && weight.shape.length > 1
        ? readIntegers(weight, source, storage)
        : readFloats(weight, source);
    onProgress?.((index + 1) / program.weights.length);
    return read;
  });
}

function readFloats(weight: Weight, source: WeightSource): Float32Array {
  const length = weight.shape.reduce((product, size) => product * size, 1);
  const all = new Float32Array(length);
  let at = 0;
  for (const { tensor } of weight.parts) {
    const ref = source.tensor(tensor);
    const part =
      ref.kind === 'quantized' ? dequantize(ref.read(), ref.storage, ref.shape) : readTensor(ref);
    all.set(part, at);
    at += part.length;
  }
  if (weight.shape.length > 1 && source.dtype !== 'float32') {
    for (let i = 0; i < length; i++) all[i] = roundTo(source.dtype, all[i]);
  }
  return all;
}

function dequantize(
  matrix: QuantizedMatrix,
  storage: IntegerStorage,
  [rows, width]: readonly number[],
): Float32Array {
  const weight = new IntegerWeight(matrix, storage, width);
  const all = new Float32Array(rows * width);
  for (let row = 0; row < rows; row++) all.set(weight.row(row), row * width);
  return all;
}

function readIntegers(
  weight: Weight,
  source: WeightSource,
  storage: IntegerStorage,
): IntegerWeight {
  const width = weight.shape.at(-1)!;
  const parts = weight.parts.map(({ tensor }) => {
    const ref = source.tensor(tensor);
    if (ref.kind === 'quantized') return ref.read();
    const floats = readTensor(ref);
    return quantizeRows(floats, floats.length / width, width, storage);
  });
  const scales = concat(
    Float32Array,
    parts.map((part) => part.scales),
  );
  // Symmetric int4 may leave unsaid that its codes lie around 8.
  const unsaid = storage.bits === 4 ? -8 : 0;
  const offsets = parts.map((part) => part.offsets ?? part.scales.map((scale) => unsaid * scale));
  const codes = concat(
    Int8Array,
    parts.map((part) => part.codes),
  );
  const { columns } = parts[0];
  const matrix = { codes, scales, offsets: concat(Float32Array, offsets), columns };
  return new IntegerWeight(matrix, storage, width);
}

function concat<T extends Float32Array | Int8Array>(
  make: new (length: number) => T,
  arrays: readonly T[],
): T {
  const all = new make(arrays.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const array of arrays) {
    all.set(array, at);
    at += array.length;
  }
  return all;
}
