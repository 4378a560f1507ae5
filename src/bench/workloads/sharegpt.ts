/**
 * ShareGPT's JSON: a list of `{ conversations: [{ from: 'human' | 'gpt' | ..., value }] }`. The
 * first two turns of each conversation are used, as vLLM does: the question, and the length of the
 * answer.
 */
import { InvalidParameterError } from '../../errors.js';
import { readDataset } from './read-lines.js';
import type { Workload, WorkloadRequest } from './workload.js';

export interface ShareGptOptions {
  /** Asked for where it is given; otherwise the answer's own length. */
  outputTokens?: number;
  /** Counts tokens; without a tokenizer the answer's length is its characters / 4. */
  countTokens?: (text: string) => number;
}

export function shareGptWorkload(path: string, options: ShareGptOptions): Workload {
  let conversations: unknown;
  try {
    conversations = JSON.parse(readDataset(path));
  } catch (error) {
    if (error instanceof InvalidParameterError) throw error;
    throw notShareGpt(path, (error as Error).message);
  }
  if (!Array.isArray(conversations)) throw notShareGpt(path, 'no list');
  const count = options.countTokens ?? ((text: string) => Math.ceil(text.length / 4));
  const requests: WorkloadRequest[] = [];
  for (const conversation of conversations as (Conversation | null)[]) {
    const [question, answer] = conversation?.conversations ?? [];
    const [asked, answered] = [question?.value, answer?.value];
    if (!isText(asked) || !isText(answered)) continue;
    requests.push({
      prompt: () => asked,
      inputTokens: options.countTokens?.(asked),
      outputTokens: options.outputTokens ?? Math.max(1, count(answered)),
    });
  }
  const left = conversations.length - requests.length;
  const notes = left === 0 ? [] : [`${left} conversations of fewer than two turns left out`];
  if (!options.countTokens && !options.outputTokens) {
    notes.push('answer lengths estimated as characters / 4: no --tokenizer');
  }
  return { name: 'sharegpt', requests, notes };
}

/** As far as it is what it should be. */
interface Conversation {
  conversations?: { value?: unknown }[];
}

function isText(value: unknown): value is string {
  return typeof value === 'string' && value !== '';
}

function notShareGpt(path: string, reason: string) {
  return new InvalidParameterError(`Expected ShareGPT's JSON in ${path}: ${reason}`, {
    param: '--dataset-path',
  });
}
