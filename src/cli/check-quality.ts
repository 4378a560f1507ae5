/** `--max-quality-loss`: measures what is to be run before it is. */
import { type DeviceOptions, loadBackend } from '../backend/load-backend.js';
import type { EngineOptions } from '../engine/engine-options.js';
import type { QUALITY_FLAGS } from '../flags/engine-flags.js';
import { type FlagValues, refuseIdle, UsageError } from '../flags/flag.js';
import type { LoadModelOptions } from '../model/load-model.js';
import { evaluate } from '../quant/evaluate.js';
import { openModel } from '../quant/load-runner.js';
import { parseQualityLimit, requireQuality } from '../quant/quality-limit.js';
import { describeEvaluation } from '../quant/report-evaluation.js';
import { BUNDLED_TEXT, readTexts, tokenSequences } from '../quant/texts.js';
import { loadTokenizer } from '../tokenizer/load-tokenizer.js';
import { shareProgress } from './share-progress.js';

/** What decides of an engine how well its model answers, and what measures it. */
type JudgedOptions = Pick<EngineOptions, 'model' | 'kvCacheDtype'> &
  Omit<LoadModelOptions, 'maxModelLen'> &
  DeviceOptions;

type QualityFlags = FlagValues<typeof QUALITY_FLAGS>;

/** A few seconds' worth for the bundled model; intervals say how sure the figure is. */
const TOKENS = 8192;
const LENGTH = 512;

/**
 * Measures the loss of running a model with `options` and prints it; does nothing without
 * `--max-quality-loss`. Throws `ModelError` with the number where it is above the limit, `UsageError`
 * where there is nothing to compare with.
 */
export async function checkQuality(options: JudgedOptions, flags: QualityFlags): Promise<void> {
  const { 'max-quality-loss': limit, 'quality-base': base, 'quality-text': text } = flags;
  if (limit === undefined) {
    return refuseIdle(flags, ['quality-base', 'quality-text'], '--max-quality-loss');
  }
  const most = parseQualityLimit(limit);
  const { model: path, dtype, loadFormat, seed, quantization, quantizationOverrides } = options;
  const changed = [quantization, quantizationOverrides].some((value) => value !== undefined);
  if (base === undefined && !changed && (options.kvCacheDtype ?? 'auto') === 'auto') {
    throw new UsageError(
      '--max-quality-loss needs --quality-base BASE: without --quantization or --kv-cache-dtype ' +
        `${path} runs as it is`,
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
