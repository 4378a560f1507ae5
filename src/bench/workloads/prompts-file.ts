/**
 * JSONL with one request a line: `prompt` (text, or a list of token ids) or `messages`, and
 * optionally `output_tokens` or `max_tokens`. `prompt` and `output_tokens` are those of vLLM's
 * custom dataset.
 */
import { badLine, readJsonLines } from './read-lines.js';
import type { Prompt, Workload } from './workload.js';

export function promptsFileWorkload(path: string, options: { outputTokens: number }): Workload {
  const requests = readJsonLines(path).map((line, index) => {
    const prompt = line.prompt ?? line.messages;
    if (!isPrompt(prompt)) throw badLine(path, index + 1, 'a "prompt" or "messages"');
    const outputTokens = Number(line.output_tokens ?? line.max_tokens ?? options.outputTokens);
    if (!(outputTokens >= 1)) throw badLine(path, index + 1, '"output_tokens" of at least 1');
    return { prompt: () => prompt, outputTokens };
  });
  return { name: 'custom', requests, notes: [] };
}

function isPrompt(value: unknown): value is Prompt {
  if (typeof value === 'string') return value !== '';
  return Array.isArray(value) && value.length > 0;
}
