/** Llama 2 and 3.x. */
import type { ModelConfig } from './config.js';
import { denseMlp, recordDecoder } from './decoder.js';
import type { Program } from './program.js';

export function recordLlama(config: ModelConfig): Program {
  const bias = config.fields.flag('attention_bias', false);
  return recordDecoder(config, {
    qkvBias: bias,
    outputBias: bias,
    mlp: denseMlp(config, config.fields.flag('mlp_bias', false)),
  });
}
