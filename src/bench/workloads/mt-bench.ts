/**
 * MT-bench's questions: JSONL with `question_id`, `category` and `turns` (Zheng et al., "Judging
 * LLM-as-a-judge with MT-bench and Chatbot Arena", 2023). The first turn is asked.
 */
import { badLine, readJsonLines } from './read-lines.js';
import type { Workload } from './workload.js';

export function mtBenchWorkload(path: string, options: { outputTokens: number }): Workload {
  const requests = readJsonLines(path).map(({ turns }, index) => {
    const question: unknown = Array.isArray(turns) ? turns[0] : undefined;
    if (typeof question !== 'string') throw badLine(path, index + 1, '"turns" with a question');
    return {
      prompt: () => [{ role: 'user', content: question }],
      outputTokens: options.outputTokens,
    };
  });
  return { name: 'mt-bench', requests, notes: [] };
}
