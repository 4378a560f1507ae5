/** Tensors as float32 arrays: for the reference executor and tests, not for speed. */
import { closeSync, openSync, readSync } from 'node:fs';
import { ModelError } from '../errors.js';
import { dequantize } from './dequantize.js';
import { FLOAT_OF_E4M3 } from './e4m3.js';
import { halvesToFloats } from './half.js';
import { BYTES, dummyValue, type Fp8Tensor, type TensorRef } from './weights.js';

/** All elements of a tensor, row-major. Throws `ModelError` if the file cannot be read. */
export function readTensor(tensor: TensorRef): Float32Array {
  const length = tensor.shape.reduce((product, size) => product * size, 1);
  if (tensor.kind === 'dummy')
    return Float32Array.from({ length }, (_, i) => dummyValue(tensor, i));
  if (tensor.kind === 'computed') return tensor.read();
  if (tensor.kind === 'quantized') return dequantize(tensor);
  if (tensor.kind === 'fp8') return widen(tensor);
  const bytes = readRange(tensor.path, tensor.offset, length * BYTES[tensor.dtype]);
  if (tensor.dtype === 'float32') return new Float32Array(bytes.buffer);
  return halvesToFloats(new Uint16Array(bytes.buffer), tensor.dtype);
}

function widen({ path, offset, shape, readScales }: Fp8Tensor): Float32Array {
  const [rows, width] = shape;
  const codes = readRange(path, offset, rows * width);
  const values = new Float32Array(rows * width);
  readScales().forEach((scale, row) => {
    const end = (row + 1) * width;
    for (let at = row * width; at < end; at++) values[at] = scale * FLOAT_OF_E4M3[codes[at]];
  });
  return values;
}

/** `length` bytes of a file from `offset`. Throws `ModelError`. */
export function readRange(path: string, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let file: number | undefined;
  try {
    file = openSync(path, 'r');
    let done = 0;
    while (done < length) {
      const count = readSync(file, bytes, done, length - done, offset + done);
      if (count === 0) throw new Error(`it ends ${length - done} bytes too early`);
      done += count;
    }
    return bytes;
  } catch (error) {
    throw new ModelError(`${path}: cannot be read: ${(error as Error).message}`, { cause: error });
  } finally {
    if (file !== undefined) closeSync(file);
  }
}
