/** Prompts of random token ids, with a share that several prompts have in common. */
import { SeededRandom } from '../seeded-random.js';
import { drawLength, type Lengths } from './lengths.js';
import type { TokenRange, Workload, WorkloadRequest } from './workload.js';

export interface RandomOptions {
  count: number;
  seed: number;
  input: Lengths;
  output: Lengths;
  vocabulary: TokenRange;
  /** Tokens put before every prompt, the same for all. */
  prefixTokens: number;
  /** Share of each prompt, 0 to 1, that is the beginning of one of the common prefixes. */
  prefixShare: number;
  /** How many different common prefixes there are. */
  prefixes: number;
}

/** Streams of the seed: lengths and choices from one, prefixes and prompts from others. */
const CHOICES = 1;
const PREFIXES = 1000;
const PROMPTS = 1_000_000;

export function randomWorkload(options: RandomOptions): Workload {
  const { count, seed, input, output, vocabulary, prefixTokens, prefixShare, prefixes } = options;
  const choices = new SeededRandom(seed, CHOICES);
  const requests = Array.from({ length: count }, (_, index): WorkloadRequest => {
    const length = drawLength(input, choices);
    const outputTokens = drawLength(output, choices);
    const prefix = choices.integer(0, prefixes);
    const shared = Math.round(length * prefixShare);
    return {
      inputTokens: prefixTokens + length,
      outputTokens,
      prompt: () => [
        ...randomIds(prefixTokens, vocabulary, new SeededRandom(seed, PREFIXES - 1)),
        ...randomIds(shared, vocabulary, new SeededRandom(seed, PREFIXES + prefix)),
        ...randomIds(length - shared, vocabulary, new SeededRandom(seed, PROMPTS + index)),
      ],
    };
  });
  return { name: 'random', requests, notes: [] };
}

export function randomIds(count: number, { low, high }: TokenRange, random: SeededRandom) {
  const ids: number[] = new Array(count);
  for (let i = 0; i < count; i++) ids[i] = random.integer(low, high);
  return ids;
}
