/**
 * Where the bytes of a program's weights come from. A source describes; the executor reads, packs
 * and keeps, so that each maps or copies in its own way and nothing is held twice.
 */

import type { Weight } from './program.js';

export type DType = 'float32' | 'float16' | 'bfloat16';

export const BYTES: Readonly<Record<DType, number>> = { float32: 4, float16: 2, bfloat16: 2 };

/** A tensor of a checkpoint: a checked range of a file. */
export interface FileTensor {
  readonly kind: 'file';
  readonly path: string;
  /** Bytes from the start of the file. */
  readonly offset: number;
  readonly dtype: DType;
  readonly shape: readonly number[];
}

/**
 * A tensor made up from its name: element i is `mean + scale * u(i)`, u uniform in [-1, 1) from a
 * counter-based hash of (seed, i), so that every executor makes the same numbers: `dummyValue`
 * below is the specification.
 */
export interface DummyTensor {
  readonly kind: 'dummy';
  /** 32 bits, unsigned. */
  readonly seed: number;
  readonly mean: number;
  /** A power of two. */
  readonly scale: number;
  readonly dtype: DType;
  readonly shape: readonly number[];
}

/**
 * A matrix that the checkpoint has quantized already. The formats of the hub pack in many ways;
 * `read` gives them all in one plain form, at load, one tensor at a time.
 */
export interface QuantizedTensor {
  readonly kind: 'quantized';
  /** [out, in]. */
  readonly shape: readonly number[];
  readonly storage: IntegerStorage;
  /** Act-order, the `columns` that `read` gives. All parts of one weight have the same. */
  readonly columns?: Int32Array;
  /** Throws `ModelError`. */
  read(): QuantizedMatrix;
}

/** A matrix that the checkpoint has in 8-bit floats (e4m3) with one scale a row. */
export interface Fp8Tensor {
  readonly kind: 'fp8';
  /** [out, in]. */
  readonly shape: readonly number[];
  /** The codes, row-major, one a byte: a checked range of a file from byte `offset` on. */
  readonly path: string;
  readonly offset: number;
  /** [out]: `weight[n][k] = scales[n] * code[n][k]`. Throws `ModelError`. */
  readScales(): Float32Array;
}

/** `weight[n][k] = scales[n][g] * codes[n][k] + offsets[n][g]`, g = the group of k. */
export interface QuantizedMatrix {
  /** [out, in], one code a byte: two's complement int8, or 0 .. 15 (int4; symmetric ones too, with offset -8 * scale). */
  readonly codes: Int8Array;
  /** [out, groups]. */
  readonly scales: Float32Array;
  /** [out, groups]; absent: 0. */
  readonly offsets?: Float32Array;
  /**
   * [in] act-order (GPTQ): stored column k multiplies input column `columns[k]`, so that groups are
   * runs of stored columns. Absent: the order of the input.
   */
  readonly columns?: Int32Array;
}

/**
 * Floats that are nowhere in the file as such: decoded from a format that no executor computes with,
 * or with rows in another order.
 */
export interface ComputedTensor {
  readonly kind: 'computed';
  readonly shape: readonly number[];
  /** All elements, row-major; made anew by each call. Throws `ModelError`. */
  read(): Float32Array;
}

export type TensorRef = FileTensor | DummyTensor | QuantizedTensor | Fp8Tensor | ComputedTensor;

interface Storage {
  /**
   * No option asked for it: the checkpoint has it so, or a rule chose it. An executor without kernels
   * for it keeps floats; what was asked for it refuses.
   */
  readonly unasked?: true;
}

/**
 * Integer weights. `group` input columns share a scale (and offset); 0: a whole row does.
 * Activations are quantized on the fly, symmetric int8, one scale a token where `group` is 0 and
 * one a token and group otherwise: `scale = max|x| / 127`, codes rounded to nearest even.
 */
export interface IntegerStorage extends Storage {
  readonly kind: 'integer';
  readonly bits: 4 | 8;
  readonly group: 0 | 32 | 64 | 128;
  /** No offsets: symmetric around 0. */
  readonly symmetric: boolean;
}

/**
 * 8-bit floats (e4m3, largest 448), one float32 scale a row. Floats become `scale = max|w| / 448`, codes
 * rounded to nearest even; an `Fp8Tensor` keeps its codes and scales. Activations are quantized on the
 * fly in the same way, one scale a token.
 */
export interface Fp8Storage extends Storage {
  readonly kind: 'fp8';
}

/** How an executor keeps a matrix: floats of `WeightSource.dtype`, integers, or 8-bit floats. */
export type MatrixStorage = { readonly kind: 'float' } | IntegerStorage | Fp8Storage;

/**
 * Bytes a matrix of `elements` numbers takes: of integers and fp8, codes with a float32 scale (and
 * offset) for each group of a row of `width`.
 */
export function storedBytes(
  storage: MatrixStorage,
  dtype: DType,
  elements: number,
  width: number,
): number {
  if (storage.kind === 'float') return elements * BYTES[dtype];
  if (storage.kind === 'fp8') return elements + (elements / width) * BYTES.float32;
  const { bits, group, symmetric } = storage;
  const groups = group === 0 ? 1 : Math.ceil(width / group);
  const heads = (elements / width) * groups * (symmetric ? 1 : 2) * BYTES.float32;
  return (elements * bits) / 8 + heads;
}

export interface WeightSource {
  /** The float type of matrices: what the executor keeps float linears, embeddings and the KV cache in. */
  readonly dtype: DType;
  /**
   * How to keep a weight. Parts that come as floats are rounded to nearest at load (`quantizeRows`
   * of src/model/quantize-rows.ts is the specification); norms and biases are always float.
   */
  storage(weight: Weight): MatrixStorage;
  /** Looks a tensor up by its name in the checkpoint. Its presence and shape were checked at load. */
  tensor(name: string): TensorRef;
}

/**
 * The hash behind dummy weights: a bijection of 32-bit words with low bias (C. Wellons, hash
 * prospector, "lowbias32"). Shifts and 32-bit multiplications only, so it vectorises anywhere.
 */
export function hash32(word: number): number {
  let x = word;
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d);
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
  return (x ^ (x >>> 16)) >>> 0;
}

/**
 * Element `index` of a dummy tensor, in float32: `h = hash32(seed xor index)`,
 * `u = (h >> 8) * 2^-23 - 1`, `value = mean + scale * u`. `scale` is a power of two, so the product
 * is exact and a fused multiply-add gives the same number. Indices count modulo 2^32.
 * The executor then rounds to its storage type, to nearest even.
 */
export function dummyValue(tensor: DummyTensor, index: number): number {
  const u = (hash32(tensor.seed ^ index) >>> 8) * 2 ** -23 - 1;
  return Math.fround(tensor.mean + tensor.scale * u);
}
