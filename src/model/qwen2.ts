/** Qwen2 and Qwen2.5: biases on query, key and value; a sliding window on some layers. */
import type { ModelConfig } from './config.js';
import { recordDecoder } from './decoder.js';
import type { Program } from './program.js';
import { windowByLayer } from './sliding-window.js';

export function recordQwen2(config: ModelConfig): Program {
  return recordDecoder(config, { qkvBias: true, window: windowByLayer(config) });
}
