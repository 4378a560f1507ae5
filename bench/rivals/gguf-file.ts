/**
 * Writes GGUF files, the format of llama.cpp and ggml, version 3, little endian. Facts: ggml's
 * docs/gguf.md. Tensors are written piece by piece, so a model need not fit in memory.
 */
import { closeSync, mkdirSync, openSync, renameSync, rmSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';

/** A metadata value with its type in the file. */
export type GgufValue =
  | { readonly type: 'uint32' | 'float32'; readonly value: number }
  | { readonly type: 'bool'; readonly value: boolean }
  | { readonly type: 'string'; readonly value: string }
  | { readonly type: 'int32[]'; readonly value: readonly number[] }
  | { readonly type: 'string[]'; readonly value: readonly string[] };

export interface GgufTensor {
  readonly name: string;
  /** Rows before columns, as everywhere here; the file lists the fastest dimension first. */
  readonly shape: readonly number[];
  readonly type: 'F32' | 'F16' | 'BF16';
  /** The elements, row-major, in pieces of any size. */
  pieces(): Iterable<Uint8Array>;
}

const VERSION = 3;
/** The default of `general.alignment`. */
const ALIGNMENT = 32;
const VALUE_TYPES = { uint32: 4, int32: 5, float32: 6, bool: 7, string: 8, array: 9 } as const;
const TENSOR_TYPES = {
  F32: { id: 0, bytes: 4 },
  F16: { id: 1, bytes: 2 },
  BF16: { id: 30, bytes: 2 },
};

/**
 * Writes `path` as a whole or not at all. Throws if a tensor's pieces are not as long as its shape.
 */
export function writeGguf(
  path: string,
  metadata: ReadonlyMap<string, GgufValue>,
  tensors: readonly GgufTensor[],
): void {
  mkdirSync(dirname(path), { recursive: true });
  const unfinished = `${path}.${process.pid}.part`;
  const file = openSync(unfinished, 'w');
  try {
    writeAll(file, padded(header(metadata, tensors)));
    for (const tensor of tensors) writeTensor(file, tensor);
    closeSync(file);
    renameSync(unfinished, path);
  } catch (error) {
    closeSync(file);
    rmSync(unfinished, { force: true });
    throw error;
  }
}

function header(
  metadata: ReadonlyMap<string, GgufValue>,
  tensors: readonly GgufTensor[],
): Uint8Array {
  const bytes = new ByteWriter();
  bytes.ascii('GGUF');
  bytes.uint32(VERSION);
  bytes.uint64(tensors.length);
  bytes.uint64(metadata.size);
  for (const [key, value] of metadata) {
    bytes.string(key);
    bytes.value(value);
  }
  let offset = 0;
  for (const { name, shape, type } of tensors) {
    bytes.string(name);
    bytes.uint32(shape.length);
    for (const size of shape.toReversed()) bytes.uint64(size);
    bytes.uint32(TENSOR_TYPES[type].id);
    bytes.uint64(offset);
    offset = align(offset + sizeOf({ shape, type }));
  }
  return bytes.take();
}

function writeTensor(file: number, tensor: GgufTensor): void {
  const expected = sizeOf(tensor);
  let written = 0;
  for (const piece of tensor.pieces()) {
    writeAll(file, piece);
    written += piece.length;
  }
  if (written !== expected) {
    throw new Error(`${tensor.name}: ${written} bytes were given, its shape takes ${expected}`);
  }
  writeAll(file, new Uint8Array(align(written) - written));
}

function sizeOf({ shape, type }: Pick<GgufTensor, 'shape' | 'type'>): number {
  return shape.reduce((product, size) => product * size, TENSOR_TYPES[type].bytes);
}

function align(offset: number): number {
  return Math.ceil(offset / ALIGNMENT) * ALIGNMENT;
}

function padded(bytes: Uint8Array): Uint8Array {
  const result = new Uint8Array(align(bytes.length));
  result.set(bytes);
  return result;
}

function writeAll(file: number, bytes: Uint8Array): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(file, bytes, done);
}

/** Collects the header's fields. */
class ByteWriter {
  #bytes = Buffer.alloc(1 << 16);
  #length = 0;

  take(): Uint8Array {
    return this.#bytes.subarray(0, this.#length);
  }

  ascii(text: string): void {
    this.#bytes.write(text, this.#room(text.length), 'latin1');
  }

  uint32(value: number): void {
    const at = this.#room(4);
    this.#bytes.writeUInt32LE(value, at);
  }

  uint64(value: number): void {
    const at = this.#room(8);
    this.#bytes.writeBigUInt64LE(BigInt(value), at);
  }

  string(text: string): void {
    const utf8 = Buffer.from(text, 'utf8');
    this.uint64(utf8.length);
    const at = this.#room(utf8.length);
    this.#bytes.set(utf8, at);
  }

  value(value: GgufValue): void {
    switch (value.type) {
      case 'uint32':
        this.uint32(VALUE_TYPES.uint32);
        this.uint32(value.value);
        return;
      case 'float32': {
        this.uint32(VALUE_TYPES.float32);
        const at = this.#room(4);
        this.#bytes.writeFloatLE(value.value, at);
        return;
      }
      case 'bool': {
        this.uint32(VALUE_TYPES.bool);
        const at = this.#room(1);
        this.#bytes[at] = value.value ? 1 : 0;
        return;
      }
      case 'string':
        this.uint32(VALUE_TYPES.string);
        this.string(value.value);
        return;
      case 'int32[]':
        this.#array(VALUE_TYPES.int32, value.value.length);
        for (const item of value.value) {
          const at = this.#room(4);
          this.#bytes.writeInt32LE(item, at);
        }
        return;
      case 'string[]':
        this.#array(VALUE_TYPES.string, value.value.length);
        for (const item of value.value) this.string(item);
    }
  }

  #array(itemType: number, length: number): void {
    this.uint32(VALUE_TYPES.array);
    this.uint32(itemType);
    this.uint64(length);
  }

  /** Makes room for `count` bytes and returns where they go. */
  #room(count: number): number {
    const at = this.#length;
    this.#length += count;
    if (this.#length > this.#bytes.length) {
      const larger = Buffer.alloc(Math.max(2 * this.#bytes.length, this.#length));
      larger.set(this.#bytes);
      this.#bytes = larger;
    }
    return at;
  }
}
