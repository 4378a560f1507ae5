/** Mistral 7B and its successors: Llama with an optional sliding window in every layer. */
import type { ModelConfig } from './config.js';
import { recordDecoder } from './decoder.js';
import type { Program } from './program.js';
import { windowOfAll } from './sliding-window.js';

export function recordMistral(config: ModelConfig): Program {
  return recordDecoder(config, { window: windowOfAll(config) });
}
