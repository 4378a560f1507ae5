/** Whether two contenders compute the same model: how far their greedy tokens go together. */
import { type Streams, UNSEEN } from './contender.js';

export interface Agreement {
  sequences: number;
  /** Sequences equal in every token. */
  equal: number;
  /** Tokens up to the first difference of each sequence, of all tokens. */
  equalTokens: number;
  tokens: number;
  /**
   * Where sequences part: which token, and how much likelier ours found its token than the
   * runner-up, in nats. A gap below the noise of 16-bit arithmetic is a coin toss; a large one
   * is an error of one of the two.
   */
  partings: { sequence: number; token: number; margin: number }[];
}

/**
 * Compares `ours`, run with margins, with `theirs`. A token of theirs that was not told counts as equal:
 * had it been another, those after it would differ.
 */
export function agreement(ours: Streams, theirs: Streams): Agreement {
  const result: Agreement = { sequences: 0, equal: 0, equalTokens: 0, tokens: 0, partings: [] };
  for (const [sequence, tokens] of ours.tokens.entries()) {
    const other = theirs.tokens[sequence];
    const parting = tokens.findIndex((token, at) => token !== other[at] && other[at] !== UNSEEN);
    result.sequences++;
    result.tokens += tokens.length;
    if (parting === -1) {
      result.equal++;
      result.equalTokens += tokens.length;
    } else {
      const margin = ours.margins?.[sequence][parting] ?? Number.NaN;
      result.equalTokens += parting;
      result.partings.push({ sequence, token: parting, margin });
    }
  }
  return result;
}

export function describeAgreement(name: string, found: Agreement): string {
  const { sequences, equal, equalTokens, tokens, partings } = found;
  const gaps = partings.map(({ margin }) => margin).sort((a, b) => a - b);
  const largest = gaps.at(-1);
  return (
    `${name}: ${equal} of ${sequences} greedy sequences equal in every token, ` +
    `${equalTokens} of ${tokens} tokens before a difference` +
    (largest === undefined
      ? ''
      : `; where they part the first's token was at most ${largest.toFixed(3)} nats likelier than the next`)
  );
}
