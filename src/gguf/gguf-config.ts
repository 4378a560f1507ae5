/** The metadata of a GGUF file as the config.json that the checkpoint had before its conversion. */
import { ModelError } from '../errors.js';
import type { JsonObject } from '../model/config-fields.js';
import { readTensor } from '../model/read-tensor.js';
import type { GgufFile, GgufTensor, GgufValue } from './gguf-file.js';

/** `general.architecture` to the name in config.json. Mistral's files say llama. */
const ARCHITECTURES: Readonly<Record<string, string>> = {
  llama: 'LlamaForCausalLM',
  qwen2: 'Qwen2ForCausalLM',
  qwen3: 'Qwen3ForCausalLM',
};

/** Throws `ModelError` for an architecture or a rope scaling that cannot be read. */
export function ggufConfig(file: GgufFile): JsonObject {
  const { path, metadata, tensors } = file;
  const architecture = metadata.get('general.architecture');
  if (typeof architecture !== 'string' || !Object.hasOwn(ARCHITECTURES, architecture)) {
    throw new ModelError(
      `${path}: general.architecture is ${JSON.stringify(architecture)}, ` +
        `supported are ${Object.keys(ARCHITECTURES).join(', ')}`,
    );
  }
  const get = (key: string): GgufValue | undefined => metadata.get(`${architecture}.${key}`);
  const number = (key: string): number | undefined => {
    const value = get(key);
    if (value === undefined) return undefined;
    if (typeof value === 'number' || typeof value === 'bigint') return Number(value);
    throw new ModelError(`${path}: ${architecture}.${key} is not a number`);
  };
  if ((number('expert_count') ?? 0) > 0) {
    throw new ModelError(`${path}: mixtures of experts are not supported in GGUF files`);
  }
  const embedding = tensors.get('token_embd.weight');
  if (embedding === undefined) throw new ModelError(`${path}: token_embd.weight is missing`);
  const tokens = metadata.get('tokenizer.ggml.tokens');
  const heads = number('attention.head_count');
  return {
    architectures: [ARCHITECTURES[architecture]],
    hidden_act: 'silu',
    vocab_size: embedding.shape[0] ?? (Array.isArray(tokens) ? tokens.length : undefined),
    hidden_size: number('embedding_length'),
    intermediate_size: number('feed_forward_length'),
    num_hidden_layers: number('block_count'),
    num_attention_heads: heads,
    num_key_value_heads: number('attention.head_count_kv') ?? heads,
    head_dim: number('attention.key_length') ?? number('rope.dimension_count'),
    rms_norm_eps: number('attention.layer_norm_rms_epsilon'),
    max_position_embeddings: number('context_length'),
    rope_theta: number('rope.freq_base') ?? 10_000,
    rope_scaling: ropeScaling(file, get, number),
    tie_word_embeddings: !tensors.has('output.weight'),
    attention_bias: architecture === 'llama' && tensors.has('blk.0.attn_q.bias'),
    bos_token_id: id(metadata, 'bos'),
    eos_token_id: id(metadata, 'eos'),
    torch_dtype: 'bfloat16',
  };
}

function ropeScaling(
  { path, tensors }: GgufFile,
  get: (key: string) => GgufValue | undefined,
  number: (key: string) => number | undefined,
): JsonObject | undefined {
  const factors = tensors.get(ROPE_FACTORS);
  if (factors !== undefined) return llama3Scaling(factors, number('rope.freq_base') ?? 10_000);
  const type = get('rope.scaling.type') ?? 'none';
  if (type === 'none') return undefined;
  const factor = number('rope.scaling.factor') ?? 1;
  if (type === 'linear') return { rope_type: 'linear', factor };
  if (type === 'yarn') {
    const original = number('rope.scaling.original_context_length');
    return { rope_type: 'yarn', factor, original_max_position_embeddings: original };
  }
  throw new ModelError(
    `${path}: rope.scaling.type is ${JSON.stringify(type)}, expected none, linear or yarn`,
  );
}

/** What Llama 3.1 and later divide their rotary frequencies by, `[headDim / 2]`. */
export const ROPE_FACTORS = 'rope_freqs.weight';

/** The converter writes these factors out; all models have them from the same constants but one. */
const LLAMA3 = { low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 8192 };

/** The scaling that the factors come from. Throws `ModelError` if they are no such ones. */
function llama3Scaling(tensor: GgufTensor, theta: number): JsonObject {
  const { path, offset, shape, type } = tensor;
  if (type !== 'F32' || shape.length !== 1) {
    throw new ModelError(`${path}: ${ROPE_FACTORS} is not a list of F32`);
  }
  const found = readTensor({ kind: 'file', path, offset, dtype: 'float32', shape });
  const factor = found.reduce((most, value) => Math.max(most, value), 1);
  const { low_freq_factor: low, high_freq_factor: high } = LLAMA3;
  found.forEach((value, i) => {
    const wavelength = 2 * Math.PI * theta ** (i / found.length);
    const turns = LLAMA3.original_max_position_embeddings / wavelength;
    const share = Math.min(1, Math.max(0, (turns - low) / (high - low)));
    const expected = 1 / ((1 - share) / factor + share);
    if (Math.abs(value / expected - 1) < 1e-3) return;
    throw new ModelError(
      `${path}: ${ROPE_FACTORS}[${i}] is ${value}, expected ${expected.toFixed(4)} as in Llama 3.1: ` +
        'other scalings are not supported in GGUF files',
    );
  });
  return { rope_type: 'llama3', factor, ...LLAMA3 };
}

function id(metadata: GgufFile['metadata'], name: string): number | undefined {
  const value = metadata.get(`tokenizer.ggml.${name}_token_id`);
  return typeof value === 'number' ? value : undefined;
}
