/** The tensors of a GGUF file under the names and in the row order of the original checkpoint. */
import { ModelError } from '../errors.js';
import type { WeightPart } from '../model/program.js';
import { readTensor } from '../model/read-tensor.js';
import type { DType, QuantizedMatrix, TensorRef } from '../model/weights.js';
import { BLOCK_STORAGE, type QuantizedBlockType, readBlocks } from './blocks.js';
import { ROPE_FACTORS } from './gguf-config.js';
import type { GgufFile, GgufTensor } from './gguf-file.js';

/** Names outside the layers; llama.cpp, gguf-py/gguf/constants.py, `TENSOR_NAMES`. */
const NAMES: Readonly<Record<string, string>> = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  lm_head: 'output',
};
const LAYER_NAMES: Readonly<Record<string, string>> = {
  input_layernorm: 'attn_norm',
  post_attention_layernorm: 'ffn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
};

const DTYPES: Readonly<Record<string, DType>> = {
  F32: 'float32',
  F16: 'float16',
  BF16: 'bfloat16',
};

export interface GgufHeads {
  readonly numHeads: number;
  readonly numKvHeads: number;
}

/** The tensor of a part. Throws `ModelError` if it is missing or has another shape. */
export function ggufTensor(file: GgufFile, part: WeightPart, heads: GgufHeads): TensorRef {
  const name = ggufName(part.tensor);
  const tensor = file.tensors.get(name);
  if (tensor === undefined) {
    throw new ModelError(`missing ${name} [${part.shape.join(', ')}] (${part.tensor})`);
  }
  if (tensor.shape.join() !== part.shape.join()) {
    throw new ModelError(
      `${name} is [${tensor.shape.join(', ')}], expected [${part.shape.join(', ')}]`,
    );
  }
  const order = rowOrder(file, name, part.shape[0], heads);
  const dtype = DTYPES[tensor.type];
  if (dtype !== undefined) {
    const { path, offset, shape } = tensor;
    const plain: TensorRef = { kind: 'file', path, offset, dtype, shape };
    if (order === undefined) return plain;
    return { kind: 'computed', shape, read: () => reordered(readTensor(plain), order) };
  }
  return quantizedTensor(tensor, order);
}

/** Names of the file that a program with these parts leaves unread. */
export function unreadTensors(file: GgufFile, parts: readonly WeightPart[]): string[] {
  const read = new Set(parts.map(({ tensor }) => ggufName(tensor)));
  return [...file.tensors.keys()].filter((name) => !read.has(name) && name !== ROPE_FACTORS);
}

function ggufName(tensor: string): string {
  const [, layer, module, suffix] = /^(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)$/.exec(
    tensor,
  )!;
  return layer === undefined
    ? `${NAMES[module]}.${suffix}`
    : `blk.${layer}.${LAYER_NAMES[module]}.${suffix}`;
}

/**
 * llama.cpp's converter turns the rows of each head of query and key from half-split to interleaved
 * rotary order, for Llama only: row 2i + h of a head was row h * half + i. The result says for each
 * row of ours which row of the file it is.
 */
function rowOrder(
  { metadata }: GgufFile,
  name: string,
  rows: number,
  { numHeads, numKvHeads }: GgufHeads,
): Int32Array | undefined {
  const which = /\.attn_([qk])\.(weight|bias)$/.exec(name)?.[1];
  if (which === undefined || metadata.get('general.architecture') !== 'llama') return undefined;
  const size = rows / (which === 'q' ? numHeads : numKvHeads);
  const half = size / 2;
  return Int32Array.from({ length: rows }, (_, row) => {
    const head = Math.floor(row / size);
    const inside = row % size;
    return head * size + 2 * (inside % half) + Math.floor(inside / half);
  });
}

function quantizedTensor(tensor: GgufTensor, order: Int32Array | undefined): TensorRef {
  const storage = BLOCK_STORAGE[tensor.type as QuantizedBlockType];
  const { shape } = tensor;
  const read = (): QuantizedMatrix => {
    const matrix = readBlocks(tensor);
    if (order === undefined) return matrix;
    const { codes, scales, offsets } = matrix;
    return {
      codes: reordered(codes, order),
      scales: reordered(scales, order),
      offsets: offsets && reordered(offsets, order),
    };
  };
  return { kind: 'quantized', shape, storage, read };
}

/** Row r of the result is row `order[r]` of `values`. */
function reordered<T extends Int8Array | Float32Array>(values: T, order: Int32Array): T {
  const width = values.length / order.length;
  const out = values.slice() as T;
  order.forEach((from, row) => {
    out.set(values.subarray(from * width, (from + 1) * width), row * width);
  });
  return out;
}
