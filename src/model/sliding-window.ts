/** Which layers attend over a sliding window. Configs say it in two ways. */
import type { ModelConfig } from './config.js';

export type WindowOfLayer = (layer: number) => number | undefined;

/** Mistral's way: `sliding_window` is that of every layer; null or absent is full attention. */
export function windowOfAll({ fields }: ModelConfig): WindowOfLayer {
  const window = fields.has('sliding_window') ? fields.size('sliding_window') : undefined;
  return () => window;
}

const KINDS = ['full_attention', 'sliding_attention'];

/**
 * Qwen's way: `layer_types` names the layers that have the window; without it those from
 * `max_window_layers` on have. None has unless `use_sliding_window` is set.
 */
export function windowByLayer(config: ModelConfig): WindowOfLayer {
  const { fields, numLayers } = config;
  const types = fields.texts('layer_types');
  if (
    types !== undefined &&
    (types.length !== numLayers || types.some((t) => !KINDS.includes(t)))
  ) {
    throw fields.expected(`${numLayers} entries out of ${KINDS.join(', ')}`, 'layer_types');
  }
  const first = fields.number('max_window_layers', 28);
  if (!fields.flag('use_sliding_window', false)) return () => undefined;
  const window = windowOfAll(config);
  const slides = (layer: number) =>
    types === undefined ? layer >= first : types[layer] === 'sliding_attention';
  return (layer) => (slides(layer) ? window(layer) : undefined);
}
