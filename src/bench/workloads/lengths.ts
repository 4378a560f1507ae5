/** Distributions of prompt and answer lengths. */
import { expected } from '../../flags/flag.js';
import type { SeededRandom } from '../seeded-random.js';

export type Lengths =
  | { kind: 'fixed'; value: number }
  | { kind: 'uniform'; low: number; high: number }
  /** `mean` and `deviation` of the lengths themselves, for the log-normal too. */
  | { kind: 'normal' | 'lognormal'; mean: number; deviation: number };

const FORMS = 'N, uniform:LOW:HIGH, normal:MEAN:STD or lognormal:MEAN:STD';

/** Reads `128`, `uniform:64:256`, `normal:128:32` or `lognormal:128:64`. Throws UsageError. */
export function parseLengths(text: string, flag: string): Lengths {
  const [kind, ...rest] = text.split(':');
  const numbers = (rest.length === 0 ? [kind] : rest).map((part) =>
    part.trim() === '' ? Number.NaN : Number(part),
  );
  const [first, second] = numbers;
  const wrong = numbers.some((value) => !Number.isFinite(value) || value < 0) || first < 1;
  if (!wrong && rest.length === 0) return { kind: 'fixed', value: Math.round(first) };
  if (!wrong && rest.length === 2) {
    if (kind === 'uniform' && second >= first) return { kind, low: first, high: second };
    if (kind === 'normal' || kind === 'lognormal') return { kind, mean: first, deviation: second };
  }
  throw expected(FORMS, flag, text);
}

/** As they are read by `parseLengths`. */
export function lengthsText(lengths: Lengths): string {
  switch (lengths.kind) {
    case 'fixed':
      return `${lengths.value}`;
    case 'uniform':
      return `uniform:${lengths.low}:${lengths.high}`;
    default:
      return `${lengths.kind}:${lengths.mean}:${lengths.deviation}`;
  }
}

/** `--random-range-ratio` of vLLM: a fixed length becomes uniform in [N (1 - r), N (1 + r)]. */
export function widen(lengths: Lengths, ratio: number): Lengths {
  if (lengths.kind !== 'fixed' || ratio === 0) return lengths;
  const { value } = lengths;
  return {
    kind: 'uniform',
    low: Math.max(1, Math.floor(value * (1 - ratio))),
    high: Math.ceil(value * (1 + ratio)),
  };
}

/** A length of at least 1. */
export function drawLength(lengths: Lengths, random: SeededRandom): number {
  switch (lengths.kind) {
    case 'fixed':
      return lengths.value;
    case 'uniform':
      return random.integer(lengths.low, lengths.high + 1);
    case 'normal':
      return atLeastOne(lengths.mean + lengths.deviation * random.normal());
    case 'lognormal': {
      const variance = Math.log(1 + (lengths.deviation / lengths.mean) ** 2);
      const mu = Math.log(lengths.mean) - variance / 2;
      return atLeastOne(Math.exp(mu + Math.sqrt(variance) * random.normal()));
    }
  }
}

function atLeastOne(length: number): number {
  return Math.max(1, Math.round(length));
}
