/** Reads a command line by a table of flags. */
import { parseArgs } from 'node:util';
import { nearest } from '../nearest.js';
import { type FlagTable, type FlagValues, UsageError } from './flag.js';

export interface ParsedFlags<Table extends FlagTable> {
  values: FlagValues<Table>;
  positionals: string[];
  /** Names of the flags on the command line. */
  given: ReadonlySet<keyof Table>;
}

/** Throws UsageError; an unknown flag's message names the nearest known one. */
export function parseFlags<Table extends FlagTable>(
  table: Table,
  argv: readonly string[],
): ParsedFlags<Table> {
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
  return { values: values as FlagValues<Table>, positionals, given: seen };
}

function unknownFlag(given: string, known: readonly string[]): string {
  const close = nearest(given.replace(/^-+/, ''), known);
  return `Unknown flag ${given}${close ? `; did you mean --${close}?` : ''}`;
}
