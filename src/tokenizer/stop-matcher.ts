/**
 * Finds the first of several strings in a text that arrives in pieces, and tells how much of the
 * text could still become one of them. One automaton a string (Knuth, Morris, Pratt, "Fast pattern
 * matching in strings", 1977), so a character costs the same however long the strings are and
 * however the pieces fall.
 */
interface Automaton {
  readonly pattern: string;
  /** border[k]: length of the longest proper prefix of the first k characters that is their suffix. */
  readonly border: Int32Array;
  /** Characters of the pattern that the text's end matches. */
  matched: number;
}

export interface StopMatch {
  /** Index in the piece just after the match. */
  readonly end: number;
  readonly pattern: string;
}

export class StopMatcher {
  readonly #automata: readonly Automaton[];

  constructor(patterns: readonly string[]) {
    const tables = borderTables(patterns);
    this.#automata = patterns.map((pattern, i) => ({ pattern, border: tables[i], matched: 0 }));
  }

  /** Length of the longest end of the text so far that begins one of the strings. */
  get partial(): number {
    let longest = 0;
    for (const { matched } of this.#automata) longest = Math.max(longest, matched);
    return longest;
  }

  /**
   * Reads the next piece. The match that ends first is returned (of several, the longest), and
   * reading stops there; with `count` false matches are passed over.
   */
  read(piece: string, count: boolean): StopMatch | undefined {
    for (let i = 0; i < piece.length; i++) {
      let found: string | undefined;
      for (const automaton of this.#automata) {
        const { pattern, border } = automaton;
        let k = automaton.matched;
        while (k > 0 && pattern[k] !== piece[i]) k = border[k];
        if (pattern[k] === piece[i]) k++;
        if (k === pattern.length) {
          if (count && pattern.length > (found?.length ?? 0)) found = pattern;
          k = border[k];
        }
        automaton.matched = k;
      }
      if (found !== undefined) return { end: i + 1, pattern: found };
    }
    return undefined;
  }
}

/** The choices of a request share one list of strings, and so its tables. */
const tablesOf = new WeakMap<readonly string[], Int32Array[]>();

function borderTables(patterns: readonly string[]): Int32Array[] {
  let tables = tablesOf.get(patterns);
  if (!tables) {
    tables = patterns.map(borders);
    tablesOf.set(patterns, tables);
  }
  return tables;
}

function borders(pattern: string): Int32Array {
  const border = new Int32Array(pattern.length + 1);
  let k = 0;
  for (let i = 1; i < pattern.length; i++) {
    while (k > 0 && pattern[k] !== pattern[i]) k = border[k];
    if (pattern[k] === pattern[i]) k++;
    border[i + 1] = k;
  }
  return border;
}
