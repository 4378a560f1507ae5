/**
 * The GGUF container, versions 2 and 3, little endian (ggml-org/ggml, docs/gguf.md): `GGUF`, version,
 * counts, typed key-value pairs, tensor descriptions, then the data from the next multiple of
 * `general.alignment`. Only what stands before the data is read here, and checked against the size
 * of the file.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { ModelError } from '../errors.js';
import { BLOCKS, type BlockType, TYPE_NAMES } from './block-types.js';

export type GgufValue = number | bigint | boolean | string | readonly GgufValue[];

export interface GgufTensor {
  readonly name: string;
  readonly path: string;
  readonly type: BlockType;
  /** Row-major, outermost first: the reverse of the file's order. */
  readonly shape: readonly number[];
  /** Bytes from the start of the file. */
  readonly offset: number;
  readonly bytes: number;
}

export interface GgufFile {
  readonly path: string;
  readonly metadata: ReadonlyMap<string, GgufValue>;
  readonly tensors: ReadonlyMap<string, GgufTensor>;
}

/** Sizes of the scalar metadata types by their number; 8 is a string, 9 an array. */
const SCALAR_BYTES: Readonly<Record<number, number>> = {
  0: 1,
  1: 1,
  2: 2,
  3: 2,
  4: 4,
  5: 4,
  6: 4,
  7: 1,
  10: 8,
  11: 8,
  12: 8,
};

/** Reads metadata and tensor descriptions. Throws `ModelError` on anything malformed. */
export function readGguf(path: string): GgufFile {
  let file: number | undefined;
  try {
    file = openSync(path, 'r');
    return parse(path, new Cursor(path, file, fstatSync(file).size));
  } catch (error) {
    if (error instanceof ModelError) throw error;
    throw new ModelError(`${path}: cannot be read: ${(error as Error).message}`, { cause: error });
  } finally {
    if (file !== undefined) closeSync(file);
  }
}

function parse(path: string, cursor: Cursor): GgufFile {
  if (cursor.take(4).toString('latin1') !== 'GGUF') cursor.fail('it does not begin with GGUF');
  const version = cursor.take(4).readUInt32LE();
  if (version !== 2 && version !== 3) {
    cursor.fail(
      version > 0xffff
        ? 'big-endian files are not supported'
        : `version ${version}, expected 2 or 3`,
    );
  }
  const tensorCount = cursor.count('tensors', 24);
  const pairCount = cursor.count('metadata pairs', 13);
  const metadata = new Map<string, GgufValue>();
  for (let i = 0; i < pairCount; i++) {
    const key = cursor.string();
    if (metadata.has(key)) cursor.fail(`${key} stands twice`);
    metadata.set(key, readValue(cursor, cursor.take(4).readUInt32LE(), 0));
  }
  const found: (Omit<GgufTensor, 'offset'> & { begin: number })[] = [];
  for (let i = 0; i < tensorCount; i++) found.push(readTensorInfo(cursor));
  const alignment = metadata.get('general.alignment') ?? 32;
  if (typeof alignment !== 'number' || alignment < 1 || alignment % 8 !== 0) {
    cursor.fail(`general.alignment is ${alignment}, expected a multiple of 8`);
  }
  const dataStart = Math.ceil(cursor.at / alignment) * alignment;
  const tensors = new Map<string, GgufTensor>();
  for (const { begin, ...tensor } of found) {
    if (tensors.has(tensor.name)) cursor.fail(`${tensor.name} stands twice`);
    const offset = dataStart + begin;
    if (begin % alignment !== 0) cursor.fail(`${tensor.name} lies at ${begin}, not aligned`);
    if (offset + tensor.bytes > cursor.size) {
      cursor.fail(
        `${tensor.name} ends at byte ${offset + tensor.bytes} of ${cursor.size}: it is truncated`,
      );
    }
    tensors.set(tensor.name, { ...tensor, offset });
  }
  return { path, metadata, tensors };
}

function readTensorInfo(cursor: Cursor): Omit<GgufTensor, 'offset'> & { begin: number } {
  const name = cursor.string();
  const dimensions = cursor.take(4).readUInt32LE();
  if (dimensions < 1 || dimensions > 4) cursor.fail(`${name} has ${dimensions} dimensions`);
  const shape = Array.from({ length: dimensions }, () => cursor.size64(`a dimension of ${name}`));
  shape.reverse();
  const number = cursor.take(4).readUInt32LE();
  const begin = cursor.size64(`the offset of ${name}`);
  const type = Object.keys(BLOCKS).find((key) => BLOCKS[key as BlockType].id === number);
  if (type === undefined) {
    cursor.fail(
      `${name} is ${TYPE_NAMES[number] ?? `of type ${number}`}, which is not supported; ` +
        `supported are ${Object.keys(BLOCKS).join(', ')}`,
    );
  }
  const { elements, bytes } = BLOCKS[type as BlockType];
  const count = shape.reduce((product, size) => product * size, 1);
  if (!Number.isSafeInteger(count) || shape[shape.length - 1] % elements !== 0) {
    cursor.fail(`${name} [${shape.join(', ')}]: rows are not whole blocks of ${elements}`);
  }
  const length = (count / elements) * bytes;
  return { name, path: cursor.path, type: type as BlockType, shape, begin, bytes: length };
}

function readValue(cursor: Cursor, type: number, depth: number): GgufValue {
  if (type === 8) return cursor.string();
  if (type === 9) {
    if (depth > 2) cursor.fail('arrays are nested too deeply');
    const inner = cursor.take(4).readUInt32LE();
    const count = cursor.count('elements', SCALAR_BYTES[inner] ?? 8);
    return Array.from({ length: count }, () => readValue(cursor, inner, depth + 1));
  }
  const size = SCALAR_BYTES[type];
  if (size === undefined) cursor.fail(`metadata of unknown type ${type}`);
  const bytes = cursor.take(size);
  switch (type) {
    case 0:
      return bytes.readUInt8();
    case 1:
      return bytes.readInt8();
    case 2:
      return bytes.readUInt16LE();
    case 3:
      return bytes.readInt16LE();
    case 4:
      return bytes.readUInt32LE();
    case 5:
      return bytes.readInt32LE();
    case 6:
      return bytes.readFloatLE();
    case 7:
      return bytes.readUInt8() !== 0;
    case 10:
      return bytes.readBigUInt64LE();
    case 11:
      return bytes.readBigInt64LE();
    default:
      return bytes.readDoubleLE();
  }
}

/** Reads forward through the file in pieces: tokenizers make the metadata megabytes long. */
class Cursor {
  readonly path: string;
  readonly size: number;
  at = 0;
  readonly #file: number;
  #piece = Buffer.alloc(0);
  #pieceAt = 0;

  constructor(path: string, file: number, size: number) {
    this.path = path;
    this.#file = file;
    this.size = size;
  }

  take(length: number): Buffer {
    if (this.at + length > this.size)
      this.fail(`it ends after ${this.size} bytes: it is truncated`);
    const inside = this.at - this.#pieceAt;
    if (inside + length > this.#piece.length) {
      this.#piece = Buffer.alloc(Math.min(Math.max(length, 1 << 16), this.size - this.at));
      this.#pieceAt = this.at;
      let done = 0;
      while (done < this.#piece.length) {
        const rest = this.#piece.length - done;
        const count = readSync(this.#file, this.#piece, done, rest, this.at + done);
        if (count === 0) this.fail('it ends while it is read');
        done += count;
      }
    }
    const from = this.at - this.#pieceAt;
    this.at += length;
    return this.#piece.subarray(from, from + length);
  }

  /** A 64-bit number of things that take at least `bytes` each. */
  count(what: string, bytes: number): number {
    const count = this.size64(`the number of ${what}`);
    if (count * bytes > this.size - this.at) {
      this.fail(`it claims ${count} ${what}, more than fit into it`);
    }
    return count;
  }

  size64(what: string): number {
    const value = Number(this.take(8).readBigUInt64LE());
    if (!Number.isSafeInteger(value)) this.fail(`${what} is ${value}`);
    return value;
  }

  string(): string {
    return this.take(this.count('bytes of text', 1)).toString('utf8');
  }

  fail(what: string): never {
    throw new ModelError(`${this.path}: ${what}`);
  }
}
