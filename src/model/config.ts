/**
 * config.json of a checkpoint, in the layout transformers 4 wrote (rope_theta, rope_scaling,
 * torch_dtype) and the one of transformers 5 (rope_parameters, dtype).
 */
import { ModelError } from '../errors.js';
import { ConfigFields, type JsonObject } from './config-fields.js';
import { parseRope, type RopeParameters, ropeContextLength } from './rope.js';
import type { DType } from './weights.js';

/** What all decoder families have in common. A family reads the rest from `fields`. */
export interface ModelConfig {
  readonly architecture: string;
  readonly vocabSize: number;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly numLayers: number;
  readonly numHeads: number;
  readonly numKvHeads: number;
  readonly headDim: number;
  readonly rmsNormEps: number;
  readonly rope: RopeParameters;
  readonly tieWordEmbeddings: boolean;
  /** Longest context the model was made for, its rope scaling included. */
  readonly maxPositionEmbeddings: number;
  /** Longest context to serve: the above, or less where the operator says so. */
  readonly maxModelLen: number;
  /** The type the checkpoint says it is in. */
  readonly dtype?: DType;
  readonly bosTokenId?: number;
  readonly eosTokenIds: readonly number[];
  readonly fields: ConfigFields;
}

/** Parses and validates config.json. `file` is for the messages. Throws `ModelError`. */
export function parseConfig(file: string, json: JsonObject): ModelConfig {
  const fields = new ConfigFields(file, json);
  const activation = fields.text('hidden_act', 'silu');
  if (activation !== 'silu' && activation !== 'swish') {
    throw fields.expected('silu, the only activation supported', 'hidden_act');
  }
  const hiddenSize = fields.size('hidden_size');
  const numHeads = fields.size('num_attention_heads');
  const numKvHeads = fields.size('num_key_value_heads', numHeads);
  if (numHeads % numKvHeads !== 0) {
    throw fields.expected(`a divisor of num_attention_heads (${numHeads})`, 'num_key_value_heads');
  }
  const headDim = parseHeadDim(fields, hiddenSize, numHeads);
  const positions = fields.size('max_position_embeddings', 2048);
  const rope = parseRope(fields, positions);
  const maxPositionEmbeddings = ropeContextLength(rope, positions);
  return {
    architecture: parseArchitecture(fields),
    vocabSize: fields.size('vocab_size'),
    hiddenSize,
    intermediateSize: fields.size('intermediate_size'),
    numLayers: fields.size('num_hidden_layers'),
    numHeads,
    numKvHeads,
    headDim,
    rmsNormEps: fields.positive('rms_norm_eps', 1e-6),
    rope,
    tieWordEmbeddings: fields.flag('tie_word_embeddings', false),
    maxPositionEmbeddings,
    maxModelLen: maxPositionEmbeddings,
    dtype: parseDType(fields),
    bosTokenId: fields.ids('bos_token_id')[0],
    eosTokenIds: fields.ids('eos_token_id'),
    fields,
  };
}

function parseArchitecture(fields: ConfigFields): string {
  const names = fields.texts('architectures');
  if (names?.length === 1) return names[0];
  throw fields.expected('a list with the name of one architecture', 'architectures');
}

function parseHeadDim(fields: ConfigFields, hiddenSize: number, numHeads: number): number {
  if (!fields.has('head_dim') && hiddenSize % numHeads !== 0) {
    throw fields.expected(
      `a multiple of num_attention_heads (${numHeads}) where head_dim is absent`,
      'hidden_size',
    );
  }
  const headDim = fields.size('head_dim', hiddenSize / numHeads);
  if (headDim % 2 === 0) return headDim;
  throw new ModelError(
    `${fields.where}: head_dim is ${headDim}, expected an even number: rotary embedding turns pairs`,
  );
}

function parseDType(fields: ConfigFields): DType | undefined {
  const name = fields.has('dtype') ? 'dtype' : 'torch_dtype';
  if (!fields.has(name)) return undefined;
  const dtype = fields.text(name).replace(/^torch\./, '');
  if (dtype === 'float32' || dtype === 'float16' || dtype === 'bfloat16') return dtype;
  throw fields.expected('float32, float16 or bfloat16', name);
}
