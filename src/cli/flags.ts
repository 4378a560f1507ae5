/**
 * Command-line flags from a table: one entry drives parsing, checking, the default and the help.
 *
 * @example
 * const FLAGS = { port: integer({ group: 'Server', help: 'Port.', default: 8000, max: 65535 }) };
 * const { values, positionals } = parseFlags(FLAGS, process.argv.slice(2));
 */
import { parseArgs } from 'node:util';

/** The command line is wrong: exit code 2. */
export class UsageError extends Error {}

export interface Flag<T> {
  readonly group: string;
  readonly help: string;
  /** What the help shows after the name; undefined for flags without a value. */
  readonly placeholder?: string;
  /** What the help says of the default; empty if the help text itself does. */
  readonly shownDefault: string;
  readonly multiple: boolean;
  /** The value if the flag is absent. */
  readonly default: T;
  /** Throws UsageError. */
  parse(text: string, name: string): T;
}

export type FlagTable = Readonly<Record<string, Flag<unknown>>>;
export type FlagValues<Table extends FlagTable> = {
  [Name in keyof Table]: Table[Name] extends Flag<infer T> ? T : never;
};

interface Described {
  group: string;
  help: string;
  /** Instead of the default's own text. */
  shownDefault?: string;
}

export function string<D extends string | undefined = undefined>(
  options: Described & { default?: D; placeholder?: string },
): Flag<string | D> {
  return {
    ...valued(options, options.placeholder ?? 'TEXT'),
    default: options.default as D,
    parse: (text) => text,
  };
}

export function strings(options: Described & { placeholder?: string }): Flag<string[]> {
  return {
    ...valued(options, options.placeholder ?? 'TEXT'),
    multiple: true,
    default: [],
    parse: (text) => [text],
  };
}

export function choice<const C extends string, D extends C | undefined = undefined>(
  options: Described & { of: readonly C[]; default?: D },
): Flag<C | D> {
  return {
    ...valued(options, options.of.join('|')),
    default: options.default as D,
    parse(text, name) {
      const found = options.of.find((one) => one === text);
      return found ?? fail(`one of ${options.of.join(', ')}`, name, text);
    },
  };
}

export function integer<D extends number | undefined = undefined>(
  options: Described & { default?: D; min?: number; max?: number },
): Flag<number | D> {
  const { min = 0, max = Number.MAX_SAFE_INTEGER } = options;
  const range =
    max === Number.MAX_SAFE_INTEGER ? `of at least ${min}` : `between ${min} and ${max}`;
  return {
    ...valued(options, 'N'),
    default: options.default as D,
    parse(text, name) {
      const value = /^[+-]?\d+$/.test(text) ? Number(text) : Number.NaN;
      return value >= min && value <= max ? value : fail(`integer ${range}`, name, text);
    },
  };
}

/** Seconds on the command line, milliseconds in the program. */
export function seconds(options: Described & { default: number }): Flag<number> {
  return {
    ...valued({ ...options, shownDefault: `${options.default / 1000}` }, 'SECONDS'),
    default: options.default,
    parse(text, name) {
      const value = /^\d+(\.\d+)?s?$/.test(text) ? Number.parseFloat(text) : Number.NaN;
      return Number.isFinite(value) ? value * 1000 : fail('seconds, like 30 or 2.5', name, text);
    },
  };
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
  return {
    ...valued(options, 'SIZE'),
    default: options.default as D,
    parse(text, name) {
      const [, amount, unit] = /^(\d+(?:\.\d+)?)\s*([a-z]*)$/i.exec(text) ?? [];
      const size = Math.floor(Number(amount) * (UNITS[unit?.toLowerCase() ?? ''] ?? Number.NaN));
      return Number.isSafeInteger(size) && size > 0
        ? size
        : fail('size like 4GiB, 512MiB or a number of bytes', name, text);
    },
  };
}

/** `--name` and `--no-name`. */
export function toggle(options: Described & { default: boolean }): Flag<boolean> {
  return {
    group: options.group,
    help: options.help,
    shownDefault: options.shownDefault ?? '',
    multiple: false,
    default: options.default,
    parse: (text) => text === 'true',
  };
}

function valued(
  { group, help, ...rest }: Described & { default?: unknown },
  placeholder: string,
): Omit<Flag<never>, 'parse' | 'default'> {
  const shownDefault = rest.shownDefault ?? (rest.default === undefined ? '' : `${rest.default}`);
  return { group, help, placeholder, shownDefault, multiple: false };
}

function fail(expected: string, name: string, received: string): never {
  throw new UsageError(
    `Expected ${expected} for --${name} but received ${JSON.stringify(received)}`,
  );
}

/** Parses `argv`. Throws UsageError; an unknown flag's message names the nearest known one. */
export function parseFlags<Table extends FlagTable>(
  table: Table,
  argv: readonly string[],
): { values: FlagValues<Table>; positionals: string[] } {
  const options: Record<string, { type: 'string' | 'boolean' }> = {};
  for (const [name, flag] of Object.entries(table)) {
    options[name] = { type: flag.placeholder ? 'string' : 'boolean' };
    if (!flag.placeholder) options[`no-${name}`] = { type: 'boolean' };
  }
  const { tokens, positionals } = parseArgs({
    args: [...argv],
    options,
    strict: false,
    tokens: true,
    allowPositionals: true,
  });
  const values: Record<string, unknown> = {};
  for (const [name, flag] of Object.entries(table)) values[name] = flag.default;
  const seen = new Set<string>();
  for (const token of tokens) {
    if (token.kind !== 'option') continue;
    if (!Object.hasOwn(options, token.name)) {
      throw new UsageError(unknownFlag(token.rawName, Object.keys(options)));
    }
    const negated = !Object.hasOwn(table, token.name);
    const name = negated ? token.name.slice('no-'.length) : token.name;
    const flag = table[name];
    if (flag.placeholder === undefined) {
      if (token.value !== undefined) throw new UsageError(`--${token.name} takes no value`);
      values[name] = !negated;
    } else if (token.value === undefined) {
      throw new UsageError(`--${name} needs a value: --${name} ${flag.placeholder}`);
    } else if (flag.multiple) {
      values[name] = [
        ...(values[name] as unknown[]),
        ...(flag.parse(token.value, name) as unknown[]),
      ];
    } else {
      if (seen.has(name)) throw new UsageError(`--${name} is given twice`);
      values[name] = flag.parse(token.value, name);
    }
    seen.add(name);
  }
  return { values: values as FlagValues<Table>, positionals };
}

function unknownFlag(given: string, known: readonly string[]): string {
  const close = nearest(given.replace(/^-+/, ''), known);
  return `Unknown flag ${given}${close ? `; did you mean --${close}?` : ''}`;
}

/** The known word with the fewest edits to the given one, if they are few enough to be a slip. */
export function nearest(given: string, known: readonly string[]): string | undefined {
  let best: string | undefined;
  let fewest = Math.max(2, Math.floor(given.length / 3)) + 1;
  for (const word of known) {
    const distance = editDistance(given, word);
    if (distance < fewest) {
      best = word;
      fewest = distance;
    }
  }
  return best;
}

/** Levenshtein distance, one row at a time. */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitute = row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(substitute, row[j] + 1, next[j - 1] + 1));
    }
    row = next;
  }
  return row[b.length];
}

const HELP_COLUMN = 36;
const HELP_WIDTH = 100;

/** The flags as help text, by group, in the order of the table. */
export function flagHelp(table: FlagTable): string {
  const groups = new Map<string, string[]>();
  for (const [name, flag] of Object.entries(table)) {
    const lines = groups.get(flag.group) ?? [];
    groups.set(flag.group, lines);
    const shown = flag.placeholder === undefined && flag.default === true ? `no-${name}` : name;
    const head = `  --${shown}${flag.placeholder ? ` ${flag.placeholder}` : ''}`;
    const notes = [
      ...(flag.shownDefault ? [`default ${flag.shownDefault}`] : []),
      ...(flag.multiple ? ['repeatable'] : []),
    ];
    const text = flag.help + (notes.length > 0 ? ` (${notes.join('; ')})` : '');
    const [first, ...rest] = wrap(text, HELP_WIDTH - HELP_COLUMN);
    if (head.length < HELP_COLUMN) lines.push(head.padEnd(HELP_COLUMN) + first);
    else lines.push(head, ' '.repeat(HELP_COLUMN) + first);
    for (const line of rest) lines.push(' '.repeat(HELP_COLUMN) + line);
  }
  return [...groups].map(([group, lines]) => `${group}:\n${lines.join('\n')}`).join('\n\n');
}

function wrap(text: string, width: number): string[] {
  const lines = [''];
  for (const word of text.split(' ')) {
    const last = lines.length - 1;
    if (lines[last] === '') lines[last] = word;
    else if (lines[last].length + 1 + word.length <= width) lines[last] += ` ${word}`;
    else lines.push(word);
  }
  return lines;
}
