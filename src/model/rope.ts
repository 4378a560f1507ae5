/**
 * Rotary position embedding (RoFormer, arXiv 2104.09864): the angular frequencies of each scaling
 * method, as transformers computes them (modeling_rope_utils.py).
 */
import { ModelError } from '../errors.js';
import type { ConfigFields } from './config-fields.js';
import type { RopeTable } from './program.js';

export type RopeParameters = { readonly theta: number } & (
  | { readonly type: 'default' }
  | { readonly type: 'linear'; readonly factor: number }
  | {
      readonly type: 'llama3';
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalPositions: number;
    }
  | {
      readonly type: 'yarn';
      readonly factor: number;
      readonly originalPositions: number;
      readonly betaFast: number;
      readonly betaSlow: number;
      readonly truncate: boolean;
      /** Scales sine and cosine, so the attention logits by its square. */
      readonly attentionFactor: number;
    }
);

const SUPPORTED = 'default, linear, llama3, yarn';

/** Reads `rope_parameters`, or `rope_theta` and `rope_scaling`. Throws `ModelError`. */
export function parseRope(config: ConfigFields, maxPositions: number): RopeParameters {
  const fields = config.object('rope_parameters') ?? config.object('rope_scaling');
  const source = fields?.has('rope_theta') ? fields : config;
  const theta = source.positive('rope_theta', 10000);
  for (const holder of fields === undefined ? [config] : [config, fields]) {
    if (holder.number('partial_rotary_factor', 1) !== 1) {
      throw holder.expected(
        '1: partial rotary embedding is not supported',
        'partial_rotary_factor',
      );
    }
  }
  if (fields === undefined) return { type: 'default', theta };
  const typeField = fields.has('rope_type') ? 'rope_type' : 'type';
  const type = fields.text(typeField, 'default');
  const originalPositions = () => fields.size('original_max_position_embeddings', maxPositions);
  switch (type) {
    case 'default':
      return { type, theta };
    case 'linear':
      return { type, theta, factor: fields.positive('factor') };
    case 'llama3': {
      const lowFreqFactor = fields.positive('low_freq_factor');
      const highFreqFactor = fields.positive('high_freq_factor');
      if (highFreqFactor <= lowFreqFactor) {
        throw fields.expected(`more than low_freq_factor (${lowFreqFactor})`, 'high_freq_factor');
      }
      const factor = fields.positive('factor');
      return {
        type,
        theta,
        factor,
        lowFreqFactor,
        highFreqFactor,
        originalPositions: originalPositions(),
      };
    }
    case 'yarn': {
      const original = originalPositions();
      const factor = fields.positive('factor', maxPositions / original);
      return {
        type,
        theta,
        factor,
        originalPositions: original,
        betaFast: fields.positive('beta_fast', 32),
        betaSlow: fields.positive('beta_slow', 1),
        truncate: fields.flag('truncate', true),
        attentionFactor: fields.positive('attention_factor', yarnAttentionFactor(fields, factor)),
      };
    }
    default:
      throw new ModelError(
        `${fields.where}: ${typeField} is ${JSON.stringify(type)}, supported are ${SUPPORTED}`,
      );
  }
}

/** The context a model can use: a scaled one may state the length before scaling only. */
export function ropeContextLength(rope: RopeParameters, maxPositions: number): number {
  if (rope.type === 'linear') return Math.floor(maxPositions * Math.max(1, rope.factor));
  if (rope.type === 'yarn') {
    return Math.max(maxPositions, Math.floor(rope.originalPositions * rope.factor));
  }
  return maxPositions;
}

/** The frequency of each of the `headDim / 2` pairs. */
export function ropeTable(rope: RopeParameters, headDim: number): RopeTable {
  const base = Array.from({ length: headDim / 2 }, (_, i) => rope.theta ** ((-2 * i) / headDim));
  switch (rope.type) {
    case 'default':
      return { invFreq: base, scale: 1 };
    case 'linear':
      return { invFreq: base.map((freq) => freq / rope.factor), scale: 1 };
    case 'llama3':
      return { invFreq: base.map((freq) => llama3Frequency(freq, rope)), scale: 1 };
    case 'yarn':
      return { invFreq: yarnFrequencies(base, rope, headDim), scale: rope.attentionFactor };
  }
}

/**
 * Llama 3.1: wavelengths far beyond the original context are stretched by `factor`, short ones
 * stay, those between are interpolated.
 */
function llama3Frequency(freq: number, rope: RopeParameters & { type: 'llama3' }): number {
  const turns = (rope.originalPositions * freq) / (2 * Math.PI);
  const smooth = (turns - rope.lowFreqFactor) / (rope.highFreqFactor - rope.lowFreqFactor);
  const kept = Math.min(1, Math.max(0, smooth));
  return (1 - kept) * (freq / rope.factor) + kept * freq;
}

/**
 * YaRN (arXiv 2309.00071, section 3.2, "NTK-by-parts"): pairs that turn more than `betaFast` times
 * over the original context stay, those under `betaSlow` are interpolated, a ramp between.
 */
function yarnFrequencies(
  base: readonly number[],
  rope: RopeParameters & { type: 'yarn' },
  headDim: number,
): number[] {
  const pairWithTurns = (turns: number) =>
    (headDim * Math.log(rope.originalPositions / (turns * 2 * Math.PI))) /
    (2 * Math.log(rope.theta));
  const round = rope.truncate ? Math : { floor: Number, ceil: Number };
  const low = Math.max(0, round.floor(pairWithTurns(rope.betaFast)));
  const high = Math.min(headDim - 1, round.ceil(pairWithTurns(rope.betaSlow)));
  const width = high === low ? 0.001 : high - low;
  return base.map((freq, i) => {
    const interpolated = Math.min(1, Math.max(0, (i - low) / width));
    return (freq / rope.factor) * interpolated + freq * (1 - interpolated);
  });
}

/** YaRN, section 3.4: attention is sharpened by 0.1 ln(factor) + 1; `mscale` is DeepSeek's refinement. */
function yarnAttentionFactor(fields: ConfigFields, factor: number): number {
  const sharpness = (mscale: number) => (factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1);
  const mscale = fields.number('mscale', 0);
  const mscaleAllDim = fields.number('mscale_all_dim', 0);
  if (mscale === 0 || mscaleAllDim === 0) return sharpness(1);
  return sharpness(mscale) / sharpness(mscaleAllDim);
}
