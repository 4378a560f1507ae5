/** The architectures Millrace can run, by the name in config.json. */
import { ModelError } from '../errors.js';
import type { ModelConfig } from './config.js';
import { recordLlama } from './llama.js';
import { recordMistral } from './mistral.js';
import { recordMixtral } from './mixtral.js';
import type { Program } from './program.js';
import { recordQwen2 } from './qwen2.js';
import { recordQwen3 } from './qwen3.js';
import { recordQwen3Moe } from './qwen3-moe.js';

const FAMILIES: ReadonlyMap<string, (config: ModelConfig) => Program> = new Map([
  ['LlamaForCausalLM', recordLlama],
  ['MistralForCausalLM', recordMistral],
  ['MixtralForCausalLM', recordMixtral],
  ['Qwen2ForCausalLM', recordQwen2],
  ['Qwen3ForCausalLM', recordQwen3],
  ['Qwen3MoeForCausalLM', recordQwen3Moe],
]);

export const ARCHITECTURES: readonly string[] = [...FAMILIES.keys()];

/** Records the program of a config. Throws `ModelError` listing what is supported. */
export function recordProgram(config: ModelConfig): Program {
  const record = FAMILIES.get(config.architecture);
  if (record !== undefined) return record(config);
  throw new ModelError(
    `${config.fields.where}: architectures is ${JSON.stringify(config.architecture)}, ` +
      `supported are ${ARCHITECTURES.join(', ')}`,
  );
}
