/** The kinds of flags there are. Each gives an entry of a flag table. */
import { accessSync, constants, existsSync, statSync } from 'node:fs';
import { dirname } from 'node:path';
import { type Described, expected, type Flag } from './flag.js';

/** A flag with a value of a form of its own; `parse` throws UsageError. */
export function parsed<T, D extends T | undefined = undefined>(
  options: Described & {
    default?: D;
    placeholder: string;
    parse(text: string, name: string): T;
  },
): Flag<T | D> {
  const { group, help, placeholder, parse } = options;
  const byDefault = options.default as D;
  const shownDefault = options.shownDefault ?? (byDefault === undefined ? '' : `${byDefault}`);
  return { group, help, placeholder, shownDefault, multiple: false, default: byDefault, parse };
}

export function string<D extends string | undefined = undefined>(
  options: Described & { default?: D; placeholder?: string },
): Flag<string | D> {
  return parsed<string, D>({ placeholder: 'TEXT', ...options, parse: (text) => text });
}

/** A file to write at the end. That it can be is seen at once, not when the work is done. */
export function outputFile(options: Described): Flag<string | undefined> {
  return parsed<string>({
    ...options,
    placeholder: 'FILE',
    parse(path, name) {
      const there = existsSync(path);
      try {
        accessSync(there ? path : dirname(path), constants.W_OK);
      } catch {
        throw expected('a file that can be written', name, path);
      }
      if (there && statSync(path).isDirectory())
        throw expected('a file, not a folder,', name, path);
      return path;
    },
  });
}

/** May be given more than once. `form` says what each must match. */
export function strings(
  options: Described & { placeholder?: string; form?: RegExp },
): Flag<string[]> {
  const { placeholder = 'TEXT', form } = options;
  const parse = (text: string, name: string) => {
    if (form && !form.test(text)) throw expected(placeholder, name, text);
    return [text];
  };
  return { ...parsed({ ...options, placeholder, parse }), multiple: true, default: [], parse };
}

export function choice<const C extends string, D extends C | undefined = undefined>(
  options: Described & { of: readonly C[]; default?: D },
): Flag<C | D> {
  return parsed<C, D>({
    ...options,
    placeholder: options.of.join('|'),
    parse(text, name) {
      const found = options.of.find((one) => one === text);
      if (found !== undefined) return found;
      throw expected(`one of ${options.of.join(', ')}`, name, text);
    },
  });
}

interface Range {
  min?: number;
  max?: number;
}

export function integer<D extends number | undefined = undefined>(
  options: Described & Range & { default?: D },
): Flag<number | D> {
  return parsed<number, D>({
    ...options,
    placeholder: 'N',
    parse: (text, name) => parseInteger(text, name, options),
  });
}

/** Several integers in one value, with commas between. */
export function integers(
  options: Described & Range & { default: readonly number[] },
): Flag<readonly number[]> {
  return parsed<readonly number[], readonly number[]>({
    ...options,
    placeholder: 'N,N,...',
    parse: (text, name) => text.split(',').map((part) => parseInteger(part, name, options)),
  });
}

function parseInteger(text: string, name: string, range: Range): number {
  const { min = 0, max = Number.MAX_SAFE_INTEGER } = range;
  const value = /^[+-]?\d+$/.test(text) ? Number(text) : Number.NaN;
  if (value >= min && value <= max) return value;
  throw expected(`integer ${rangeText(min, range.max)}`, name, text);
}

function rangeText(min = Number.NEGATIVE_INFINITY, max = Number.POSITIVE_INFINITY): string {
  if (max === Number.POSITIVE_INFINITY) return `of at least ${min}`;
  return min === Number.NEGATIVE_INFINITY ? `of at most ${max}` : `between ${min} and ${max}`;
}

/** `above` is a bound the value must not have itself; `infinite` takes `inf` as well. */
export function number<D extends number | undefined = undefined>(
  options: Described &
    Range & { default?: D; above?: number; infinite?: boolean; placeholder: string },
): Flag<number | D> {
  const { min, max, above, infinite } = options;
  const range = [
    ...(above === undefined ? [] : [`above ${above}`]),
    ...(min === undefined && max === undefined ? [] : [rangeText(min, max)]),
    ...(infinite ? ['or inf'] : []),
  ];
  return parsed<number, D>({
    ...options,
    parse(text, name) {
      const value = /^inf(inity)?$/i.test(text) ? Number.POSITIVE_INFINITY : Number(text);
      const inRange =
        value >= (min ?? Number.NEGATIVE_INFINITY) &&
        value <= (max ?? Number.POSITIVE_INFINITY) &&
        value > (above ?? Number.NEGATIVE_INFINITY);
      const finite = Number.isFinite(value) || infinite === true;
      if (text.trim() !== '' && inRange && finite) return value;
      throw expected(['number', ...range].join(' '), name, text);
    },
  });
}

/** Seconds on the command line, milliseconds in the program, where `min` is in milliseconds too. */
export function seconds<D extends number | undefined = undefined>(
  options: Described & { default?: D; min?: number },
): Flag<number | D> {
  const { min = 0 } = options;
  const byDefault = options.default as number | undefined;
  const shownDefault = byDefault === undefined ? undefined : `${byDefault / 1000}`;
  return parsed<number, D>({
    shownDefault,
    ...options,
    placeholder: 'SECONDS',
    parse(text, name) {
      const value = /^\d+(\.\d+)?s?$/.test(text) ? Number.parseFloat(text) * 1000 : Number.NaN;
      if (Number.isFinite(value) && value >= min) return value;
      const least = min === 0 ? '' : `at least ${min / 1000} `;
      throw expected(`${least}seconds, like 30 or 2.5,`, name, text);
    },
  });
}

const UNITS: Readonly<Record<string, number>> = {
  '': 1,
  b: 1,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
  tb: 1e12,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
  tib: 2 ** 40,
};

/** A size in bytes: `4GiB`, `512MiB`, `1.5GB` or a plain number. */
export function bytes<D extends number | undefined = undefined>(
  options: Described & { default?: D },
): Flag<number | D> {
  return parsed<number, D>({
    ...options,
    placeholder: 'SIZE',
    parse(text, name) {
      const [, amount, unit] = /^(\d+(?:\.\d+)?)\s*([a-z]*)$/i.exec(text) ?? [];
      const size = Math.floor(Number(amount) * (UNITS[unit?.toLowerCase() ?? ''] ?? Number.NaN));
      if (Number.isSafeInteger(size) && size > 0) return size;
      throw expected('size like 4GiB, 512MiB or a number of bytes', name, text);
    },
  });
}

/** `--name` and `--no-name`. Without a default of its own the command decides. */
export function toggle<D extends boolean | undefined = undefined>(
  options: Described & { default?: D },
): Flag<boolean | D> {
  const { group, help, shownDefault = '' } = options;
  return {
    ...{ group, help, shownDefault, multiple: false, default: options.default as D },
    parse: (text) => text === 'true',
  };
}

/** Every command has it, last. */
export const HELP_FLAG = toggle({ group: 'Other', help: 'This text.', default: false });
