/** Qwen3-MoE: Qwen3 with a mixture of experts in all or some layers. */
import type { ModelConfig } from './config.js';
import { denseMlp, recordDecoder } from './decoder.js';
import { moeMlp } from './moe.js';
import type { Program } from './program.js';
import { windowOfAll } from './sliding-window.js';

export function recordQwen3Moe(config: ModelConfig): Program {
  const { fields } = config;
  const bias = fields.flag('attention_bias', false);
  const dense = denseMlp(config);
  const sparse = moeMlp(config, {
    module: 'mlp',
    names: { gate: 'gate_proj', up: 'up_proj', down: 'down_proj' },
    // transformers 5 writes num_local_experts, the hub's checkpoints have num_experts.
    experts: fields.size(fields.has('num_experts') ? 'num_experts' : 'num_local_experts'),
    topK: fields.size('num_experts_per_tok'),
    inner: fields.size('moe_intermediate_size'),
    normalize: fields.flag('norm_topk_prob', false),
  });
  const step = fields.size('decoder_sparse_step', 1);
  const denseLayers = new Set(fields.ids('mlp_only_layers'));
  const isSparse = (layer: number) => !denseLayers.has(layer) && (layer + 1) % step === 0;
  return recordDecoder(config, {
    qkvBias: bias,
    outputBias: bias,
    qkNorm: true,
    window: fields.flag('use_sliding_window', false) ? windowOfAll(config) : undefined,
    mlp: (b, x, layer) => (isSparse(layer) ? sparse : dense)(b, x, layer),
  });
}
