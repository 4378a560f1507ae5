/**
 * A mixed workload: short prompts, half of them behind one of two shared system prompts, and one in
 * ten a long document; answers of 16 to 200 tokens.
 */
import { SeededRandom } from '../../src/bench/seeded-random.js';

export interface Job {
  prompt: number[];
  outputTokens: number;
  /** Seconds after the start, at one request a second: a Poisson process. */
  arrival: number;
}

export function makeJobs(count: number, seed: number): Job[] {
  const random = new SeededRandom(seed);
  const tokens = (count: number) => Array.from({ length: count }, () => random.integer(10, 4096));
  const systemPrompts = [tokens(320), tokens(200)];
  let arrival = 0;
  return Array.from({ length: count }, () => {
    arrival += random.exponential();
    const kind = random.next();
    const prompt =
      kind < 0.1
        ? tokens(random.integer(1000, 1600))
        : kind < 0.55
          ? [...systemPrompts[random.integer(0, 2)], ...tokens(random.integer(10, 80))]
          : tokens(random.integer(10, 120));
    return { prompt, outputTokens: random.integer(16, 201), arrival };
  });
}
