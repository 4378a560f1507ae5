/**
 * ggml's quantized blocks as codes, scales and offsets (layouts: ggml-org/ggml, src/ggml-common.h).
 *
 * Q8_0, Q4_0, Q4_K and Q5_K come over exactly: groups of 32 with a scale, Q4_K and Q5_K with an
 * offset. Q6_K has a scale for every 16 elements; no kernel has such groups, so its values are rounded
 * anew to 8 bits in groups of 32. docs/quantization.md says what that loses.
 */
import { float16ToFloat } from '../model/half.js';
import { quantizeRows } from '../model/quantize-rows.js';
import { readRange } from '../model/read-tensor.js';
import type { IntegerStorage, QuantizedMatrix } from '../model/weights.js';
import type { BlockType } from './block-types.js';
import type { GgufTensor } from './gguf-file.js';

export type QuantizedBlockType = Exclude<BlockType, 'F32' | 'F16' | 'BF16'>;

const INT8: IntegerStorage = { kind: 'integer', bits: 8, group: 32, symmetric: true };
const INT4: IntegerStorage = { ...INT8, bits: 4 };

export const BLOCK_STORAGE: Readonly<Record<QuantizedBlockType, IntegerStorage>> = {
  Q8_0: INT8,
  Q4_0: INT4,
  Q4_K: { ...INT4, symmetric: false },
  Q5_K: { ...INT8, symmetric: false },
  Q6_K: INT8,
};

/** Reads a matrix `[rows, width]` of blocks. Throws `ModelError` if the file cannot be read. */
export function readBlocks(tensor: GgufTensor): QuantizedMatrix {
  const [rows, width] = tensor.shape;
  const bytes = readRange(tensor.path, tensor.offset, tensor.bytes);
  if (tensor.type === 'Q6_K') return roundSixBit(bytes, rows, width);
  const count = (rows * width) / 32;
  const codes = new Int8Array(rows * width);
  const scales = new Float32Array(count);
  const offsets = tensor.type === 'Q8_0' ? undefined : new Float32Array(count);
  READERS[tensor.type as keyof typeof READERS](bytes, codes, scales, offsets!);
  return { codes, scales, offsets };
}

/** Row by row, so that the floats of one are all there are. */
function roundSixBit(bytes: Uint8Array, rows: number, width: number): QuantizedMatrix {
  const codes = new Int8Array(rows * width);
  const scales = new Float32Array((rows * width) / 32);
  const size = bytes.length / rows;
  for (let row = 0; row < rows; row++) {
    const values = sixBit(bytes.subarray(row * size, (row + 1) * size), width);
    const rounded = quantizeRows(values, 1, width, INT8);
    codes.set(rounded.codes, row * width);
    scales.set(rounded.scales, (row * width) / 32);
  }
  return { codes, scales };
}

const READERS = {
  /** 2 bytes of scale, 32 codes. */
  Q8_0(bytes: Uint8Array, codes: Int8Array, scales: Float32Array): void {
    for (let g = 0; g < scales.length; g++) {
      scales[g] = halfAt(bytes, g * 34);
      for (let i = 0; i < 32; i++) codes[g * 32 + i] = bytes[g * 34 + 2 + i];
    }
  },
  /** 2 bytes of scale, 16 bytes: elements 0 to 15 in the low halves, 16 to 31 in the high ones. */
  Q4_0(bytes: Uint8Array, codes: Int8Array, scales: Float32Array, offsets: Float32Array): void {
    for (let g = 0; g < scales.length; g++) {
      scales[g] = halfAt(bytes, g * 18);
      offsets[g] = -8 * scales[g];
      for (let i = 0; i < 16; i++) {
        const byte = bytes[g * 18 + 2 + i];
        codes[g * 32 + i] = byte & 15;
        codes[g * 32 + 16 + i] = byte >> 4;
      }
    }
  },
  /** d, dmin, 12 bytes of scales, 128 bytes: groups 2j and 2j + 1 in the halves of 32 bytes. */
  Q4_K(bytes: Uint8Array, codes: Int8Array, scales: Float32Array, offsets: Float32Array): void {
    for (let block = 0; block * 8 < scales.length; block++) {
      const at = block * 144;
      superScales(bytes, at, block * 8, scales, offsets);
      for (let i = 0; i < 256; i++) {
        codes[block * 256 + i] = halfByte(bytes, at + 16, i);
      }
    }
  },
  /** As Q4_K, with the fifth bits in 32 bytes before: bit j of byte i is that of element i of group j. */
  Q5_K(bytes: Uint8Array, codes: Int8Array, scales: Float32Array, offsets: Float32Array): void {
    for (let block = 0; block * 8 < scales.length; block++) {
      const at = block * 176;
      superScales(bytes, at, block * 8, scales, offsets);
      for (let i = 0; i < 256; i++) {
        const high = (bytes[at + 16 + (i % 32)] >> (i >> 5)) & 1;
        codes[block * 256 + i] = halfByte(bytes, at + 48, i) | (high << 4);
      }
    }
  },
};

/** 4 bits of element i: groups 2j and 2j + 1 are the low and high halves of 32 bytes. */
function halfByte(bytes: Uint8Array, at: number, i: number): number {
  const byte = bytes[at + (i >> 6) * 32 + (i % 32)];
  return i & 32 ? byte >> 4 : byte & 15;
}

/**
 * The eight scales and minima of a super-block: 6 bits each in 12 bytes, the first four of both
 * whole, the last four split into low halves and the upper bits of the first.
 */
function superScales(
  bytes: Uint8Array,
  at: number,
  first: number,
  scales: Float32Array,
  offsets: Float32Array,
): void {
  const d = halfAt(bytes, at);
  const dmin = halfAt(bytes, at + 2);
  const packed = bytes.subarray(at + 4, at + 16);
  for (let j = 0; j < 8; j++) {
    const k = j & 3;
    const scale = j < 4 ? packed[k] & 63 : (packed[8 + k] & 15) | ((packed[k] >> 6) << 4);
    const least = j < 4 ? packed[4 + k] & 63 : (packed[8 + k] >> 4) | ((packed[4 + k] >> 6) << 4);
    scales[first + j] = d * scale;
    offsets[first + j] = -dmin * least;
  }
}

/** Q6_K: 128 bytes of low halves, 64 of upper pairs, 16 scales of int8, d. Values of all elements. */
function sixBit(bytes: Uint8Array, count: number): Float32Array {
  const values = new Float32Array(count);
  for (let block = 0; block * 256 < count; block++) {
    const at = block * 210;
    const d = halfAt(bytes, at + 208);
    // Halves of 128 elements; within, quarters of 32 share a byte of upper pairs.
    for (let part = 0; part < 8; part++) {
      const half = part >> 2;
      const quarter = part & 3;
      const lows = at + half * 64 + (quarter & 1) * 32;
      const highs = at + 128 + half * 32;
      const shift = quarter < 2 ? 0 : 4;
      for (let i = 0; i < 32; i += 16) {
        const scale = d * ((bytes[at + 192 + 2 * part + (i >> 4)] << 24) >> 24);
        for (let j = i; j < i + 16; j++) {
          const low = (bytes[lows + j] >> shift) & 15;
          const high = (bytes[highs + j] >> (2 * quarter)) & 3;
          values[block * 256 + part * 32 + j] = scale * ((low | (high << 4)) - 32);
        }
      }
    }
  }
  return values;
}

function halfAt(bytes: Uint8Array, at: number): number {
  return float16ToFloat(bytes[at] | (bytes[at + 1] << 8));
}
