/** Mixtral: Mistral with a mixture of experts in every layer (arXiv 2401.04088). */
import type { ModelConfig } from './config.js';
import { recordDecoder } from './decoder.js';
import { moeMlp } from './moe.js';
import type { Program } from './program.js';
import { windowOfAll } from './sliding-window.js';

export function recordMixtral(config: ModelConfig): Program {
  const { fields } = config;
  return recordDecoder(config, {
    window: windowOfAll(config),
    mlp: moeMlp(config, {
      module: 'block_sparse_moe',
      names: { gate: 'w1', up: 'w3', down: 'w2' },
      experts: fields.size('num_local_experts'),
      topK: fields.size('num_experts_per_tok'),
      inner: config.intermediateSize,
      normalize: true,
    }),
  });
}
