/** An evaluation as text. */
import type { Estimate, Evaluation, MemoryUse } from './evaluate.js';

export function describeEvaluation(evaluation: Evaluation): string {
  const { documents, tokens, greedyLength } = evaluation;
  const percent = (x: number) => `${(x * 100).toFixed(2)} %`;
  const lines: [string, Estimate, (x: number) => string][] = [
    ['perplexity', evaluation.perplexity, (x) => x.toFixed(4)],
    ['perplexity of base', evaluation.basePerplexity, (x) => x.toFixed(4)],
    ['increase', evaluation.perplexityIncrease, percent],
    ['mean KL, nats', evaluation.klMean, (x) => x.toPrecision(3)],
    ['p99 KL, nats', evaluation.klP99, (x) => x.toPrecision(3)],
    ['top-1 agreement', evaluation.top1Agreement, percent],
    [`greedy tokens of ${greedyLength}`, evaluation.greedyAgreement, (x) => x.toFixed(1)],
  ];
  return [
    documents > 1
      ? `${tokens} tokens of ${documents} documents; 95 % intervals of a bootstrap over documents`
      : `${tokens} tokens of one document: too few for intervals`,
    ...lines.map(
      ([
        name,
        {
          value,
          interval: [low, high],
        },
        show,
      ]) => {
        const figure = `  ${name.padEnd(22)}${show(value).padStart(10)}`;
        return documents > 1 ? `${figure}   ${show(low)} to ${show(high)}` : figure;
      },
    ),
    ...memoryLines(evaluation),
  ].join('\n');
}

function memoryLines({ memory, baseMemory }: Evaluation): string[] {
  const line = (name: string, show: (of: MemoryUse) => string) =>
    `  ${name.padEnd(22)}${show(memory).padStart(10)}   of base ${show(baseMemory)}`;
  return [
    line('weights, MiB', ({ weightBytes }) => (weightBytes / 2 ** 20).toFixed(1)),
    line('KV tokens per GiB', ({ kvTokensPerGiB }) => String(kvTokensPerGiB)),
  ];
}
