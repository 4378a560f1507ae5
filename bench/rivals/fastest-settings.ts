/** Finds the settings a rival is fastest with, so that it is measured at its best. */
import type { Contender, Settings, Workload } from './contender.js';
import { rates } from './rates.js';

/** The values to try of each setting, the most likely first. */
export type Choices = { readonly [Name in keyof Settings]: readonly Settings[Name][] };

const ROUNDS = 2;

/**
 * `threads`: all, and fewer: where the machine is shared, or two threads share a core, waiting for
 * each other can cost more than the second thread brings.
 */
export function rivalChoices(threads: number): Choices {
  return {
    threads: [...new Set([threads, Math.ceil(threads / 2), 1])],
    flashAttention: [true, false],
    batchSize: [512, 2048],
  };
}

/**
 * Settles one setting after the other, by the best rate end to end of `workload` (a short form of the
 * one to be measured). The values of a setting run in turn, so that a noisy minute hits all.
 */
export async function fastestSettings(
  contender: Contender,
  choices: Choices,
  workload: Workload,
): Promise<Settings> {
  const promptTokens = workload.prompts.reduce((sum, prompt) => sum + prompt.length, 0);
  const rate = async (settings: Settings) => {
    await contender.prepare?.(workload.prompts.length, settings);
    return rates(await contender.run(workload, settings), promptTokens).endToEnd;
  };
  let { threads, flashAttention, batchSize } = choices;
  const settle = async <Name extends keyof Settings>(name: Name) => {
    const values = choices[name];
    if (values.length === 1) return values;
    const best = values.map(() => 0);
    for (let round = 0; round < ROUNDS; round++) {
      for (const [i, value] of values.entries()) {
        const settings = {
          threads: threads[0],
          flashAttention: flashAttention[0],
          batchSize: batchSize[0],
          [name]: value,
        };
        best[i] = Math.max(best[i], await rate(settings));
      }
    }
    return [values[best.indexOf(Math.max(...best))]];
  };
  threads = await settle('threads');
  flashAttention = await settle('flashAttention');
  batchSize = await settle('batchSize');
  return { threads: threads[0], flashAttention: flashAttention[0], batchSize: batchSize[0] };
}

export function describeSettings({ threads, batchSize, flashAttention }: Settings): string {
  return (
    `${threads} ${threads === 1 ? 'thread' : 'threads'}, batches of ${batchSize}, ` +
    `flash attention ${flashAttention ? 'on' : 'off'}`
  );
}
