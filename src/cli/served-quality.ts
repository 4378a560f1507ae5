/** `serve --max-quality-loss`: measures what is to be served before it is. */
import type { EngineOptions } from '../engine/engine-options.js';
import { evaluate } from '../quant/evaluate.js';
import { loadBackend, openModel } from '../quant/load-runner.js';
import { parseQualityLimit, requireQuality } from '../quant/quality-limit.js';
import { describeEvaluation } from '../quant/report-evaluation.js';
import { BUNDLED_TEXT, readTexts, tokenSequences } from '../quant/texts.js';
import { loadTokenizer } from '../tokenizer/load-tokenizer.js';
import { UsageError } from './flags.js';
import { shareProgress } from './share-progress.js';

export interface QualityFlags {
  readonly limit: string;
  /** What to compare with; default: the same checkpoint as it is. */
  readonly base?: string;
  readonly text?: string;
}

/** A few seconds' worth for the bundled model; intervals say how sure the figure is. */
const TOKENS = 8192;
const LENGTH = 512;

/**
 * Measures the loss of serving with `options` and prints it. Throws `ModelError` with the number
 * where it is above the limit, `UsageError` where there is nothing to compare with.
 */
export async function checkServedQuality(
  options: EngineOptions,
  { limit, base, text }: QualityFlags,
): Promise<void> {
  const most = parseQualityLimit(limit);
  const { model: path, dtype, loadFormat, seed, quantization, quantizationOverrides } = options;
  const changed = [quantization, quantizationOverrides].some((value) => value !== undefined);
  if (base === undefined && !changed && (options.kvCacheDtype ?? 'auto') === 'auto') {
    throw new UsageError(
      '--max-quality-loss needs --quality-base BASE: without --quantization or --kv-cache-dtype ' +
        `${path} is served as it is`,
    );
  }
  const judged = { path, dtype, loadFormat, seed, quantization, quantizationOverrides };
  const model = openModel(judged);
  const other = openModel({ path: base ?? path, loadFormat, seed });
  const length = Math.min(LENGTH, model.config.maxModelLen, other.config.maxModelLen);
  const texts = readTexts(text ?? BUNDLED_TEXT, 'quality-text');
  const evaluation = evaluate({
    backend: await loadBackend(options),
    model,
    base: other,
    kvCacheDtype: options.kvCacheDtype,
    sequences: tokenSequences(texts, await loadTokenizer(path), length, TOKENS),
    onProgress: shareProgress('quality'),
  });
  console.log(describeEvaluation(evaluation));
  requireQuality(most, evaluation);
}
