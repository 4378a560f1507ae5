/**
 * Typed, checked access to the fields of a JSON body. `null` counts as absent, as OpenAI's clients
 * expect; unknown fields are nobody's business; everything else that does not fit is an
 * InvalidParameterError that names the field.
 */
import { InvalidParameterError } from '../errors.js';

export type Json = Record<string, unknown>;

export interface Range {
  min?: number;
  max?: number;
  /** The value must be greater than this. */
  above?: number;
}

export class Fields {
  readonly #body: Json;
  readonly #path: string;

  constructor(body: Json, path = '') {
    this.#body = body;
    this.#path = path;
  }

  /** The field's full name, for messages. */
  name(key: string): string {
    return this.#path + key;
  }

  /** The raw value; undefined if absent or null. */
  get(key: string): unknown {
    return Object.hasOwn(this.#body, key) ? (this.#body[key] ?? undefined) : undefined;
  }

  has(key: string): boolean {
    return this.get(key) !== undefined;
  }

  fail(key: string, expected: string): never {
    throw InvalidParameterError.expected(expected, this.name(key), this.get(key));
  }

  number(key: string, range: Range = {}): number | undefined {
    const value = this.get(key);
    if (value === undefined) return undefined;
    if (typeof value !== 'number' || !Number.isFinite(value) || !within(value, range)) {
      this.fail(key, `number${describeRange(range)}`);
    }
    return value;
  }

  integer(key: string, range: Range = {}): number | undefined {
    const value = this.get(key);
    if (value === undefined) return undefined;
    if (!Number.isSafeInteger(value) || !within(value as number, range)) {
      this.fail(key, `integer${describeRange(range)}`);
    }
    return value as number;
  }

  boolean(key: string): boolean | undefined {
    const value = this.get(key);
    if (value !== undefined && typeof value !== 'boolean') this.fail(key, 'boolean');
    return value as boolean | undefined;
  }

  string(key: string): string | undefined {
    const value = this.get(key);
    if (value !== undefined && typeof value !== 'string') this.fail(key, 'string');
    return value as string | undefined;
  }

  object(key: string): Json | undefined {
    const value = this.get(key);
    if (value !== undefined && !isObject(value)) this.fail(key, 'object');
    return value as Json | undefined;
  }

  /** A string or a list of strings, as a list. */
  strings(key: string, range: { maxItems: number }): string[] | undefined {
    const value = this.get(key);
    if (value === undefined) return undefined;
    const list = Array.isArray(value) ? value : [value];
    if (!list.every((item) => typeof item === 'string') || list.length > range.maxItems) {
      this.fail(key, `string or list of at most ${range.maxItems} strings`);
    }
    return list as string[];
  }

  /** A list of token ids below `vocabSize`. */
  tokenIds(key: string, vocabSize: number): number[] | undefined {
    const value = this.get(key);
    if (value === undefined) return undefined;
    if (!isTokenIds(value, vocabSize)) {
      this.fail(key, `list of token ids between 0 and ${vocabSize - 1}`);
    }
    return value;
  }

  /** Refuses a field that is known and not supported, unless its value asks for nothing. */
  refuse(key: string, reason: string, harmless: (value: unknown) => boolean = asksNothing): void {
    const value = this.get(key);
    if (value === undefined || harmless(value)) return;
    throw new InvalidParameterError(`${this.name(key)} is not supported: ${reason}`, {
      param: this.name(key),
    });
  }
}

export function isObject(value: unknown): value is Json {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

export function isTokenIds(value: unknown, vocabSize: number): value is number[] {
  return (
    Array.isArray(value) &&
    value.every((id) => Number.isInteger(id) && (id as number) >= 0 && (id as number) < vocabSize)
  );
}

/** False, zero, the empty string, list and object. */
function asksNothing(value: unknown): boolean {
  return !value || (typeof value === 'object' && Object.keys(value).length === 0);
}

function within(value: number, { min, max, above }: Range): boolean {
  return value >= (min ?? -Infinity) && value <= (max ?? Infinity) && value > (above ?? -Infinity);
}

function describeRange({ min, max, above }: Range): string {
  if (above !== undefined)
    return ` above ${above}${max === undefined ? '' : ` and at most ${max}`}`;
  if (min !== undefined && max !== undefined) return ` between ${min} and ${max}`;
  if (min !== undefined) return ` of at least ${min}`;
  return max === undefined ? '' : ` of at most ${max}`;
}
