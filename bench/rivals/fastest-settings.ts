/** Finds the settings a rival is fastest with, so that it is measured at its best. */
import { median } from '../../src/bench/statistics.js';
import type { Contender, Settings, Workload } from './contender.js';
import { lengthened, rates } from './rates.js';

/** The values to try of each setting, the most likely first. */
export type Choices = { readonly [Name in keyof Settings]: readonly Settings[Name][] };

/** The third round is left out where the first two leave no doubt. */
const ROUNDS = 3;
const LEAST_ROUNDS = 2;

export interface Tried {
  settings: Settings;
  /** Output tokens per second end to end that the trials promise for the whole workload. */
  rate: number;
}

/** The fastest settings, then the fastest with each other number of threads. */
export type Ranking = readonly [Settings, ...Tried[]];

/**
 * `threads`: all, and fewer: where the machine is shared, or two threads share a core, waiting for
 * each other can cost more than the second thread brings. `promptTokens`: of all streams together.
 */
export function rivalChoices(threads: number, promptTokens: number): Choices {
  return {
    threads: [...new Set([threads, Math.ceil(threads / 2), 1])],
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
  const tryOut = async (settings: Settings) => {
    await contender.prepare?.(trial.prompts.length, settings);
    const found = rates(await contender.run(trial, settings), promptTokens);
    return lengthened(found, trial.outputTokens, outputTokens);
  };
  let best: Settings = {
    threads: choices.threads[0],
    flashAttention: choices.flashAttention[0],
    batchSize: choices.batchSize[0],
  };
  /** Fastest first. */
  const settle = async <Name extends keyof Settings>(name: Name) => {
    const values = choices[name];
    const tried = values.map((value) => ({ ...best, [name]: value }));
    const found = values.map((): number[] => []);
    for (let round = 0; round < ROUNDS && values.length > 1; round++) {
      if (round >= LEAST_ROUNDS && oneLeads(found)) break;
      for (const [i, settings] of tried.entries()) found[i].push(await tryOut(settings));
    }
    const ranking = tried.map((settings, i): Tried => ({ settings, rate: median(found[i]) }));
    if (values.length > 1) ranking.sort((a, b) => b.rate - a.rate);
    best = ranking[0].settings;
    return ranking;
  };
  const [, ...fallbacks] = await settle('threads');
  await settle('flashAttention');
  await settle('batchSize');
  return [
    best,
    ...fallbacks.map(({ settings: { threads }, rate }) => ({
      settings: { ...best, threads },
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
