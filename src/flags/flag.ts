/**
 * Command-line flags from a table: one entry drives parsing, checking, the default and the help.
 *
 * @example
 * const FLAGS = { port: integer({ group: 'Server', help: 'Port.', default: 8000, max: 65535 }) };
 * const { values, positionals } = parseFlags(FLAGS, process.argv.slice(2));
 */

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

/** What every kind of flag is told. */
export interface Described {
  group: string;
  help: string;
  /** Instead of the default's own text. */
  shownDefault?: string;
}

/** The one form in which a wrong flag is refused. */
export function expected(what: string, name: string, received: string | undefined): UsageError {
  return new UsageError(
    `Expected ${what} for --${name} but received ${
      received === undefined ? 'nothing' : JSON.stringify(received)
    }`,
  );
}

/** Throws UsageError if one of `names` was given: without `needed` it would do nothing. */
export function refuseIdle<Values extends object>(
  values: Values,
  names: readonly (keyof Values & string)[],
  needed: string,
): void {
  const idle = names.find((name) => values[name] !== undefined);
  if (idle !== undefined) throw new UsageError(`--${idle} does nothing without ${needed}`);
}

/** Some flags of a table, in the order named. */
export function pick<Table extends FlagTable, Name extends keyof Table>(
  table: Table,
  ...names: Name[]
): Pick<Table, Name> {
  return Object.fromEntries(names.map((name) => [name, table[name]])) as Pick<Table, Name>;
}
