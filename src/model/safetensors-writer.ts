/** Writes one safetensors file whose header is known before its data: tensors in any order, none held. */
import { closeSync, openSync, renameSync, writeSync } from 'node:fs';
import { readRange } from './read-tensor.js';

export interface PlannedTensor {
  readonly name: string;
  /** As the format spells it. */
  readonly dtype: 'F32' | 'F16' | 'BF16' | 'I8' | 'I32' | 'I64';
  readonly shape: readonly number[];
}

const BYTES = { F32: 4, F16: 2, BF16: 2, I8: 1, I32: 4, I64: 8 } as const;

/** Bytes copied at a time. */
const PIECE = 2 ** 24;

/** The file has its name only once `finish` has been called: what is half written cannot be loaded. */
export class SafetensorsWriter {
  readonly #path: string;
  readonly #file: number;
  readonly #dataStart: number;
  readonly #open = new Map<string, { begin: number; length: number }>();

  constructor(path: string, tensors: readonly PlannedTensor[]) {
    const header: Record<string, unknown> = { __metadata__: { format: 'pt' } };
    let end = 0;
    // Widest first, so that every tensor is aligned to its elements.
    for (const { name, dtype, shape } of [...tensors].sort(
      (a, b) => BYTES[b.dtype] - BYTES[a.dtype],
    )) {
      const begin = end;
      const length = BYTES[dtype] * shape.reduce((product, size) => product * size, 1);
      end += length;
      header[name] = { dtype, shape, data_offsets: [begin, end] };
      this.#open.set(name, { begin, length });
    }
    const json = Buffer.from(JSON.stringify(header));
    const padded = Buffer.alloc(Math.ceil(json.length / 8) * 8, ' ');
    json.copy(padded);
    const prefix = Buffer.alloc(8);
    prefix.writeBigUInt64LE(BigInt(padded.length));
    this.#path = path;
    this.#file = openSync(`${path}.partial`, 'w');
    this.#dataStart = 8 + padded.length;
    this.#put(Buffer.concat([prefix, padded]), 0);
  }

  /** Writes a tensor's elements. Each planned tensor once; a plain error otherwise. */
  write(name: string, data: NodeJS.TypedArray): void {
    const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
    this.#put(bytes, this.#take(name, bytes.length));
  }

  /** Copies a tensor of `length` bytes from another file, in pieces. Throws `ModelError`. */
  copy(name: string, path: string, offset: number, length: number): void {
    const begin = this.#take(name, length);
    for (let done = 0; done < length; done += PIECE) {
      const piece = readRange(path, offset + done, Math.min(PIECE, length - done));
      this.#put(Buffer.from(piece.buffer), begin + done);
    }
  }

  /** Where a tensor of this length goes. */
  #take(name: string, length: number): number {
    const range = this.#open.get(name);
    if (range?.length !== length) {
      throw new Error(`${name}: ${length} bytes, planned were ${range?.length}`);
    }
    this.#open.delete(name);
    return this.#dataStart + range.begin;
  }

  finish(): void {
    const missing = [...this.#open.keys()];
    if (missing.length > 0) throw new Error(`never written: ${missing.join(', ')}`);
    closeSync(this.#file);
    renameSync(`${this.#path}.partial`, this.#path);
  }

  #put(bytes: Buffer, at: number): void {
    for (let done = 0; done < bytes.length; ) {
      done += writeSync(this.#file, bytes, done, Math.min(bytes.length - done, 2 ** 30), at + done);
    }
  }
}
