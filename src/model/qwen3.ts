/** Qwen3: QK-norm instead of Qwen2's biases. */
import type { ModelConfig } from './config.js';
import { recordDecoder } from './decoder.js';
import type { Program } from './program.js';
import { windowByLayer } from './sliding-window.js';

export function recordQwen3(config: ModelConfig): Program {
  const bias = config.fields.flag('attention_bias', false);
  return recordDecoder(config, {
    qkvBias: bias,
    outputBias: bias,
    qkNorm: true,
    window: windowByLayer(config),
  });
}
