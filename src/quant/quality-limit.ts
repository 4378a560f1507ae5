/** `--max-quality-loss`: how much worse than its base a model may be. */
import { InvalidParameterError, ModelError } from '../errors.js';
import type { Evaluation } from './evaluate.js';

export interface QualityLimit {
  readonly measure: 'kl' | 'ppl';
  /** Nats of mean KL divergence, or a share by which perplexity may rise. */
  readonly most: number;
}

/** Reads `kl=0.02` or `ppl=1%`. Throws `InvalidParameterError`. */
export function parseQualityLimit(text: string, param = 'max-quality-loss'): QualityLimit {
  const match = /^(?:kl=(\d+(?:\.\d+)?(?:e-?\d+)?)|ppl=(\d+(?:\.\d+)?)%)$/.exec(text.trim());
  if (!match) throw InvalidParameterError.expected('kl=NATS or ppl=PERCENT%', param, text);
  return match[1] !== undefined
    ? { measure: 'kl', most: Number(match[1]) }
    : { measure: 'ppl', most: Number(match[2]) / 100 };
}

/** Throws `ModelError` with the measured number if it is above the limit. */
export function requireQuality(limit: QualityLimit, evaluation: Evaluation): void {
  const kl = limit.measure === 'kl';
  const { value, interval } = kl ? evaluation.klMean : evaluation.perplexityIncrease;
  // A loss that is no number is no loss within the limit.
  if (value <= limit.most) return;
  const show = (x: number) => (kl ? x.toPrecision(3) : `${(x * 100).toFixed(2)} %`);
  throw new ModelError(
    `The quality loss is ${kl ? 'a mean KL divergence of' : 'a rise in perplexity of'} ${show(value)} ` +
      `(95 % interval ${show(interval[0])} to ${show(interval[1])}, ${evaluation.tokens} tokens), ` +
      `above the ${show(limit.most)} of --max-quality-loss`,
  );
}
