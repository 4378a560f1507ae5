/**
 * Exports a checkpoint of the Llama family, or dummy weights, as a GGUF file that llama.cpp reads,
 * so that it computes the very same model.
 *
 *     node dist/bench/rivals/export-gguf.js MODEL_DIR OUT.gguf [--dtype bfloat16] [--load-format dummy]
 */
import { parseArgs } from 'node:util';
import { ModelError } from '../../src/errors.js';
import { roundTo } from '../../src/model/half.js';
import { type LoadedModel, loadModel } from '../../src/model/load-model.js';
import { readTensor } from '../../src/model/read-tensor.js';
import { BYTES, type DType, dummyValue, type TensorRef } from '../../src/model/weights.js';
import { type GgufTensor, type GgufValue, writeGguf } from './gguf-file.js';
import { tokenizerMetadata } from './gguf-tokenizer.js';

/** Elements of a piece, about; pieces are whole heads or rows. */
const PIECE = 1 << 20;

/** Names of a layer's tensors: ours, llama.cpp's, and whether rows are permuted for its rope. */
const LAYER_TENSORS: readonly (readonly [name: string, gguf: string, rotated?: boolean])[] = [
  ['input_layernorm', 'attn_norm'],
  ['self_attn.q_proj', 'attn_q', true],
  ['self_attn.k_proj', 'attn_k', true],
  ['self_attn.v_proj', 'attn_v'],
  ['self_attn.o_proj', 'attn_output'],
  ['post_attention_layernorm', 'ffn_norm'],
  ['mlp.gate_proj', 'ffn_gate'],
  ['mlp.up_proj', 'ffn_up'],
  ['mlp.down_proj', 'ffn_down'],
];

/**
 * Writes `model` to `path`; matrices in `dtype` (default: the model's own storage type), vectors in
 * float32. Throws `ModelError` for models that llama.cpp's `llama` architecture would compute
 * differently from the way they are written here.
 */
export function exportGguf(model: LoadedModel, path: string, dtype: DType = model.weights.dtype) {
  const { config, program } = model;
  if (config.architecture !== 'LlamaForCausalLM') {
    throw new ModelError(
      `${model.path}: only LlamaForCausalLM is exported, not ${config.architecture}`,
    );
  }
  if (config.rope.type !== 'default') {
    throw new ModelError(`${model.path}: rope scaling (${config.rope.type}) is not exported`);
  }
  const bias = program.weights.find(({ name }) => name.endsWith('.bias'));
  if (bias) throw new ModelError(`${model.path}: biases (${bias.name}) are not exported`);
  const metadata = new Map([
    ...modelMetadata(model, dtype),
    ...tokenizerMetadata(model.path, {
      vocabSize: config.vocabSize,
      bosTokenId: config.bosTokenId,
      eosTokenId: model.eosTokenIds[0],
    }),
  ]);
  writeGguf(path, metadata, tensorsOf(model, dtype));
}

function modelMetadata({ config, path }: LoadedModel, dtype: DType): Map<string, GgufValue> {
  const text = (value: string): GgufValue => ({ type: 'string', value });
  const count = (value: number): GgufValue => ({ type: 'uint32', value });
  const real = (value: number): GgufValue => ({ type: 'float32', value });
  const fileTypes = { float32: 0, float16: 1, bfloat16: 32 };
  return new Map([
    ['general.architecture', text('llama')],
    ['general.name', text(path.split(/[\\/]/).findLast((part) => part !== '') ?? path)],
    ['general.file_type', count(fileTypes[dtype])],
    ['llama.vocab_size', count(config.vocabSize)],
    ['llama.context_length', count(config.maxPositionEmbeddings)],
    ['llama.embedding_length', count(config.hiddenSize)],
    ['llama.block_count', count(config.numLayers)],
    ['llama.feed_forward_length', count(config.intermediateSize)],
    ['llama.attention.head_count', count(config.numHeads)],
    ['llama.attention.head_count_kv', count(config.numKvHeads)],
    ['llama.attention.key_length', count(config.headDim)],
    ['llama.attention.value_length', count(config.headDim)],
    ['llama.attention.layer_norm_rms_epsilon', real(config.rmsNormEps)],
    ['llama.rope.dimension_count', count(config.headDim)],
    ['llama.rope.freq_base', real(config.rope.theta)],
  ]);
}

function tensorsOf({ config, weights }: LoadedModel, dtype: DType): GgufTensor[] {
  const tensor = (name: string, gguf: string, rotated = false) =>
    ggufTensor(weights.tensor(`${name}.weight`), `${gguf}.weight`, {
      dtype,
      headDim: rotated ? config.headDim : undefined,
    });
  const layers = Array.from({ length: config.numLayers }, (_, layer) =>
    LAYER_TENSORS.map(([name, gguf, rotated]) =>
      tensor(`model.layers.${layer}.${name}`, `blk.${layer}.${gguf}`, rotated),
    ),
  );
  return [
    tensor('model.embed_tokens', 'token_embd'),
    ...layers.flat(),
    tensor('model.norm', 'output_norm'),
    // Without an output tensor llama.cpp takes the embedding's.
    ...(config.tieWordEmbeddings ? [] : [tensor('lm_head', 'output')]),
  ];
}

/**
 * llama.cpp rotates columns 2i and 2i + 1 of a query or key head by the angle of pair i (the layout
 * of Meta's own checkpoints), transformers' checkpoints columns i and i + headDim / 2. The order of
 * a head's columns does not matter to q·k as long as both have the same, so it is enough to permute
 * the rows of the two projections: row i goes to 2i, row i + headDim / 2 to 2i + 1 (`permute` in
 * ggml's docs/gguf.md).
 */
function ggufTensor(
  source: TensorRef,
  name: string,
  { dtype, headDim }: { dtype: DType; headDim?: number },
): GgufTensor {
  const { shape } = source;
  const type =
    shape.length === 1
      ? 'F32'
      : ({ float32: 'F32', float16: 'F16', bfloat16: 'BF16' } as const)[dtype];
  const rows = shape[0];
  const width = shape[1] ?? 1;
  const step = headDim ?? Math.max(1, Math.floor(PIECE / width));
  return {
    name,
    shape,
    type,
    *pieces() {
      for (let row = 0; row < rows; row += step) {
        const count = Math.min(step, rows - row);
        // What our executors compute with: the weight rounded to the model's storage type.
        const values = readElements(source, row * width, count * width, type);
        yield encode(headDim ? interleaveHalves(values, width) : values, type);
      }
    },
  };
}

function readElements(
  tensor: TensorRef,
  start: number,
  count: number,
  type: GgufTensor['type'],
): Float32Array {
  if (tensor.kind === 'dummy') {
    const values = new Float32Array(count);
    for (let i = 0; i < count; i++) values[i] = dummyValue(tensor, start + i);
    // To the model's own type first, as the executors do; bfloat16 is rounded to once, by `encode`.
    const once = tensor.dtype === 'float32' || (tensor.dtype === 'bfloat16' && type === 'BF16');
    if (tensor.shape.length > 1 && !once) {
      for (let i = 0; i < count; i++) values[i] = roundTo(tensor.dtype, values[i]);
    }
    return values;
  }
  // Decoded whole each time: such checkpoints are small enough here.
  if (tensor.kind !== 'file') return readTensor(tensor).subarray(start, start + count);
  const offset = tensor.offset + start * BYTES[tensor.dtype];
  return readTensor({ ...tensor, offset, shape: [count] });
}

/** The rows of one head: the first half to even places, the second to odd ones. */
function interleaveHalves(values: Float32Array, width: number): Float32Array {
  const half = values.length / width / 2;
  const result = new Float32Array(values.length);
  for (let i = 0; i < half; i++) {
    result.set(values.subarray(i * width, (i + 1) * width), 2 * i * width);
    const other = i + half;
    result.set(values.subarray(other * width, (other + 1) * width), (2 * i + 1) * width);
  }
  return result;
}

/** Little-endian bytes of the values, rounded to nearest even. */
function encode(values: Float32Array, type: GgufTensor['type']): Uint8Array {
  if (type === 'F32') return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const halves = type === 'BF16' ? bfloat16Halves(values) : Uint16Array.from(values, float16Bits);
  return new Uint8Array(halves.buffer);
}

/** As `roundTo('bfloat16')`, without a call for each of a model's many elements; weights are finite. */
function bfloat16Halves(values: Float32Array): Uint16Array {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const halves = new Uint16Array(values.length);
  for (let i = 0; i < values.length; i++) {
    halves[i] = (words[i] + 0x7fff + ((words[i] >>> 16) & 1)) >>> 16;
  }
  return halves;
}

function float16Bits(value: number): number {
  const rounded = roundTo('float16', value);
  const sign = Object.is(rounded, -0) || rounded < 0 ? 0x8000 : 0;
  const size = Math.abs(rounded);
  if (!Number.isFinite(size)) return sign | 0x7c00 | (Number.isNaN(size) ? 0x200 : 0);
  if (size < 2 ** -14) return sign | (size * 2 ** 24);
  const exponent = Math.floor(Math.log2(size));
  return sign | (((exponent + 15) << 10) + (size / 2 ** exponent - 1) * 1024);
}

if (process.argv[1] === import.meta.filename) main();

function main(): void {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      dtype: { type: 'string' },
      'load-format': { type: 'string', default: 'auto' },
      seed: { type: 'string', default: '0' },
    },
  });
  const [directory, path] = positionals;
  if (path === undefined) throw new Error('usage: export-gguf MODEL_DIR OUT.gguf [--dtype D]');
  const model = loadModel(directory, {
    dtype: values.dtype as DType | undefined,
    loadFormat: values['load-format'] as 'auto',
    seed: Number(values.seed),
  });
  exportGguf(model, path);
  console.log(path);
}
