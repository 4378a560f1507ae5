/**
 * The safetensors format (huggingface/safetensors, README "Format"): 8 bytes of header length,
 * little endian; a JSON object from tensor name to dtype, shape and `data_offsets`; the data. Only
 * the header is read here. What it says is checked against itself and the size of the file, so
 * that an executor may map the ranges without further thought.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { ModelError } from '../errors.js';
import { isJsonObject } from './config-fields.js';
import { duplicateKey } from './json-keys.js';

/** A tensor as the header describes it; the range lies inside the file. */
export interface TensorEntry {
  readonly name: string;
  readonly path: string;
  /** Bytes from the start of the file. */
  readonly offset: number;
  /** As the format spells it: F32, BF16, I64, ... */
  readonly dtype: string;
  readonly shape: readonly number[];
}

/** The format's own bound on the header, and a sane one. */
const MAX_HEADER = 100_000_000;

/** Bits of an element. */
const BITS: Readonly<Record<string, number>> = {
  BOOL: 8,
  U8: 8,
  I8: 8,
  F8_E4M3: 8,
  F8_E5M2: 8,
  F8_E8M0: 8,
  U16: 16,
  I16: 16,
  F16: 16,
  BF16: 16,
  U32: 32,
  I32: 32,
  F32: 32,
  U64: 64,
  I64: 64,
  F64: 64,
};

/** The tensors of one file, in the order of their data. Throws `ModelError` on any inconsistency. */
export function readSafetensors(path: string): TensorEntry[] {
  const { header, dataStart, dataLength } = readHeader(path);
  const json = parseHeader(path, header);
  const ranges = Object.entries(json)
    .filter(([name]) => name !== '__metadata__')
    .map(([name, entry]) => parseEntry(path, name, entry, dataStart))
    .sort((a, b) => a.begin - b.begin || a.end - b.end);
  // The format wants the data covered without holes: a hole is a truncated or edited header.
  let covered = 0;
  for (const { tensor, begin, end } of ranges) {
    if (begin !== covered) {
      throw new ModelError(
        `${path}: ${tensor.name}: data_offsets begin at ${begin}, expected ${covered}: ` +
          `the data of two tensors ${begin < covered ? 'overlaps' : 'leaves a hole'}`,
      );
    }
    covered = end;
  }
  if (covered !== dataLength) {
    throw new ModelError(
      `${path}: the header describes ${covered} bytes of data but the file has ${dataLength}` +
        (covered > dataLength ? ': it is truncated' : ''),
    );
  }
  return ranges.map(({ tensor }) => tensor);
}

function readHeader(path: string): { header: Buffer; dataStart: number; dataLength: number } {
  let file: number | undefined;
  try {
    file = openSync(path, 'r');
    const { size } = fstatSync(file);
    const prefix = Buffer.alloc(8);
    if (size < 8 || readSync(file, prefix, 0, 8, 0) !== 8) {
      throw new ModelError(`${path}: ${size} bytes are too few for a safetensors file`);
    }
    const length = Number(prefix.readBigUInt64LE());
    if (length > Math.min(MAX_HEADER, size - 8)) {
      throw new ModelError(
        `${path}: the header claims ${length} bytes, the file has ${size - 8} after its length: ` +
          'it is truncated or no safetensors file',
      );
    }
    const header = Buffer.alloc(length);
    if (readSync(file, header, 0, length, 8) !== length) {
      throw new ModelError(`${path}: the header cannot be read in full`);
    }
    return { header, dataStart: 8 + length, dataLength: size - 8 - length };
  } catch (error) {
    if (error instanceof ModelError) throw error;
    throw new ModelError(`${path}: cannot be read: ${(error as Error).message}`, { cause: error });
  } finally {
    if (file !== undefined) closeSync(file);
  }
}

function parseHeader(path: string, header: Buffer): Readonly<Record<string, unknown>> {
  let text: string;
  let json: unknown;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(header);
    json = JSON.parse(text);
  } catch (error) {
    throw new ModelError(`${path}: the header is not valid JSON: ${(error as Error).message}`, {
      cause: error,
    });
  }
  if (!isJsonObject(json)) throw new ModelError(`${path}: the header is not a JSON object`);
  const twice = duplicateKey(text);
  if (twice !== undefined) {
    throw new ModelError(`${path}: the header has ${JSON.stringify(twice)} twice`);
  }
  return json;
}

function parseEntry(
  path: string,
  name: string,
  entry: unknown,
  dataStart: number,
): { tensor: TensorEntry; begin: number; end: number } {
  const wrong = (what: string) => new ModelError(`${path}: ${name}: ${what}`);
  if (!isJsonObject(entry)) throw wrong('expected an object');
  const { dtype, shape, data_offsets: offsets } = entry;
  if (typeof dtype !== 'string' || !Object.hasOwn(BITS, dtype)) {
    throw wrong(`dtype ${JSON.stringify(dtype)} is not supported`);
  }
  if (!isSizes(shape)) throw wrong('shape is not a list of sizes');
  if (!isSizes(offsets) || offsets.length !== 2 || offsets[1] < offsets[0]) {
    throw wrong('data_offsets is not a pair of ascending offsets');
  }
  const [begin, end] = offsets;
  const bytes = (shape.reduce((product, size) => product * size, 1) * BITS[dtype]) / 8;
  if (end - begin !== bytes) {
    throw wrong(
      `data_offsets span ${end - begin} bytes but ${dtype} [${shape.join(', ')}] takes ${bytes}`,
    );
  }
  return { tensor: { name, path, offset: dataStart + begin, dtype, shape }, begin, end };
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.every((size) => Number.isSafeInteger(size) && size >= 0);
}
