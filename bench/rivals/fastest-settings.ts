/** Finds the settings a rival is fastest with, so that it is measured at its best. */
import { median } from '../../src/bench/statistics.js';
import { now } from '../../src/engine/api.js';
import { type Contender, type Settings, TooSlowError, type Workload } from './contender.js';
import { lengthened, rates } from './rates.js';

/** The values to try of each setting. The first of each must work, however slowly. */
export type Choices = { readonly [Name in keyof Settings]: readonly Settings[Name][] };

/** The third round is left out where the first two leave no doubt. */
const ROUNDS = 3;
const LEAST_ROUNDS = 2;

/** A run that takes so many times as long as another is given up; not before LEAST_LIMIT ms. */
export const TOO_LONG = 4;
export const LEAST_LIMIT = 5000;

export interface Tried {
  settings: Settings;
  /**
   * Output tokens per second end to end that the trials promise for the whole workload; 0 where they
   * were given up, NaN where there was no choice and so no trial.
   */
  rate: number;
}

/** The fastest settings, then the same with each other number of threads, fastest first. */
export type Ranking = readonly [Tried, ...Tried[]];

/**
 * `threads`: all, and fewer: where the machine is shared, or two threads share a core, waiting for
 * each other can cost more than the second thread brings. `promptTokens`: of all streams together.
 */
export function rivalChoices(threads: number, promptTokens: number): Choices {
  return {
    // One thread waits for nobody: how long it takes bounds what the others may.
    threads: [...new Set([1, Math.ceil(threads / 2), threads])],
    flashAttention: [true, false],
    batchSize: promptTokens > 512 ? [512, 2048] : [512],
  };
}

/**
 * Settles one setting after the other on `trial`, a short form of a workload whose streams generate
 * `outputTokens`. The values of a setting run in turn, so that a noisy minute hits all, and are judged
 * by the median: one lucky run must not choose what is slow in most.
 */
export async function rankSettings(
  contender: Contender,
  choices: Choices,
  { trial, outputTokens }: { trial: Workload; outputTokens: number },
): Promise<Ranking> {
  const promptTokens = trial.prompts.reduce((sum, prompt) => sum + prompt.length, 0);
  let shortest = Number.POSITIVE_INFINITY;
  const tryOut = async (settings: Settings) => {
    await contender.prepare?.(trial.prompts.length, settings);
    const start = now();
    const limit = Math.max(LEAST_LIMIT, TOO_LONG * shortest);
    try {
      const run = contender.run(trial, settings, limit === Infinity ? undefined : limit);
      const found = rates(await run, promptTokens);
      shortest = Math.min(shortest, now() - start);
      return lengthened(found, trial.outputTokens, outputTokens);
    } catch (error) {
      if (error instanceof TooSlowError) return 0;
      throw error;
    }
  };
  let best: Tried = {
    settings: {
      threads: choices.threads[0],
      flashAttention: choices.flashAttention[0],
      batchSize: choices.batchSize[0],
    },
    rate: Number.NaN,
  };
  /** Fastest first. */
  const settle = async <Name extends keyof Settings>(name: Name) => {
    const values = choices[name];
    if (values.length === 1) return [];
    const tried = values.map((value) => ({ ...best.settings, [name]: value }));
    const found = values.map((): number[] => []);
    for (let round = 0; round < ROUNDS; round++) {
      if (round >= LEAST_ROUNDS && oneLeads(found)) break;
      for (const [i, settings] of tried.entries()) {
        if (!found[i].includes(0)) found[i].push(await tryOut(settings));
      }
    }
    const rate = (rates: readonly number[]) => (rates.includes(0) ? 0 : median(rates));
    const ranking = tried.map((settings, i): Tried => ({ settings, rate: rate(found[i]) }));
    ranking.sort((a, b) => b.rate - a.rate);
    best = ranking[0];
    return ranking.slice(1);
  };
  const fallbacks = await settle('threads');
  await settle('flashAttention');
  await settle('batchSize');
  return [
    best,
    ...fallbacks.map(({ settings: { threads }, rate }) => ({
      settings: { ...best.settings, threads },
      rate,
    })),
  ];
}

/** Whether the worst of one is better than the best of every other. */
function oneLeads(found: readonly (readonly number[])[]): boolean {
  return found.some((own) =>
    found.every((other) => other === own || Math.min(...own) > Math.max(...other)),
  );
}

export function describeSettings({ threads, batchSize, flashAttention }: Settings): string {
  return (
    `${threads} ${threads === 1 ? 'thread' : 'threads'}, batches of ${batchSize}, ` +
    `flash attention ${flashAttention ? 'on' : 'off'}`
  );
}
