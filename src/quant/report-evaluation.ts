/** An evaluation as text. */
import type { Estimate, Evaluation } from './evaluate.js';

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
    `${tokens} tokens of ${documents} documents; 95 % intervals of a bootstrap over documents`,
    ...lines.map(
      ([
        name,
        {
          value,
          interval: [low, high],
        },
        show,
      ]) => {
        return `  ${name.padEnd(22)}${show(value).padStart(10)}   ${show(low)} to ${show(high)}`;
      },
    ),
  ].join('\n');
}
