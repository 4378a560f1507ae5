/** Reads typed fields of a JSON object and says which file and field is wrong when one is. */
import { readFileSync } from 'node:fs';
import { ModelError } from '../errors.js';

export type JsonObject = Readonly<Record<string, unknown>>;

/**
 * Typed access to a parsed JSON object. `null` counts as absent, as in the configs that
 * transformers writes. Every failure is a `ModelError` naming `where` and the field.
 */
export class ConfigFields {
  /** The file, and the object within it: `/models/x/config.json: rope_scaling`. */
  readonly where: string;
  readonly #json: JsonObject;

  constructor(where: string, json: JsonObject) {
    this.where = where;
    this.#json = json;
  }

  has(name: string): boolean {
    return this.get(name) !== undefined;
  }

  get(name: string): unknown {
    return Object.hasOwn(this.#json, name) ? (this.#json[name] ?? undefined) : undefined;
  }

  /** A positive integer; required unless a fallback is given. */
  size(name: string, fallback?: number): number {
    const value = this.#read(name, fallback);
    if (Number.isSafeInteger(value) && (value as number) > 0) return value as number;
    throw this.expected('a positive integer', name);
  }

  /** A finite number; required unless a fallback is given. */
  number(name: string, fallback?: number): number {
    const value = this.#read(name, fallback);
    if (typeof value === 'number' && Number.isFinite(value)) return value;
    throw this.expected('a number', name);
  }

  /** A finite number above zero; required unless a fallback is given. */
  positive(name: string, fallback?: number): number {
    const value = this.number(name, fallback);
    if (value > 0) return value;
    throw this.expected('a number above 0', name);
  }

  flag(name: string, fallback: boolean): boolean {
    const value = this.#read(name, fallback);
    if (typeof value === 'boolean') return value;
    throw this.expected('true or false', name);
  }

  text(name: string, fallback?: string): string {
    const value = this.#read(name, fallback);
    if (typeof value === 'string') return value;
    throw this.expected('a string', name);
  }

  /** Whole numbers, 0 or more, given as a list or as one number; empty if absent. */
  ids(name: string): number[] {
    const value = this.get(name);
    const list = value === undefined ? [] : Array.isArray(value) ? value : [value];
    if (list.every((id) => Number.isSafeInteger(id) && id >= 0)) return list;
    throw this.expected('a token id or a list of them', name);
  }

  /** A list of strings; undefined if absent. */
  texts(name: string): string[] | undefined {
    const value = this.get(name);
    if (value === undefined) return undefined;
    if (Array.isArray(value) && value.every((item) => typeof item === 'string')) return value;
    throw this.expected('a list of strings', name);
  }

  /** A nested object; undefined if absent. */
  object(name: string): ConfigFields | undefined {
    const value = this.get(name);
    if (value === undefined) return undefined;
    if (isJsonObject(value)) return new ConfigFields(`${this.where}: ${name}`, value);
    throw this.expected('an object', name);
  }

  /** The error for a field that is not what it should be. */
  expected(what: string, name: string): ModelError {
    const value = this.get(name);
    const came = value === undefined ? 'is missing' : `is ${JSON.stringify(value)}`;
    return new ModelError(`${this.where}: ${name} ${came}, expected ${what}`);
  }

  #read(name: string, fallback: unknown): unknown {
    return this.get(name) ?? fallback;
  }
}

export function isJsonObject(value: unknown): value is JsonObject {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Reads a JSON file that holds an object. Throws `ModelError`. */
export function readJsonObject(file: string): JsonObject {
  let json: unknown;
  try {
    json = JSON.parse(readFileSync(file, 'utf8'));
  } catch (error) {
    throw new ModelError(`${file}: cannot be read as JSON: ${(error as Error).message}`, {
      cause: error,
    });
  }
  if (!isJsonObject(json)) throw new ModelError(`${file}: expected a JSON object`);
  return json;
}
