/**
 * The building block that all families share: a pre-norm decoder with rotary attention. A family
 * says in what its layers differ.
 */
import type { ModelConfig } from './config.js';
import { type Program, ProgramBuilder, slice, type View, type WeightPart } from './program.js';
import { ropeTable } from './rope.js';

/** What a family may vary. Absent: no biases, no QK-norm, full attention, a dense SwiGLU MLP. */
export interface DecoderTraits {
  readonly qkvBias?: boolean;
  readonly outputBias?: boolean;
  /** Root-mean-square norm of each head's query and key before the rotary embedding. */
  readonly qkNorm?: boolean;
  /** The sliding window of a layer in tokens; undefined is full attention. */
  readonly window?: (layer: number) => number | undefined;
  /** Records the layer's feed-forward part: `x` and the result are `[n, hiddenSize]`. */
  readonly mlp?: (builder: ProgramBuilder, x: View, layer: number) => View;
}

export function recordDecoder(config: ModelConfig, traits: DecoderTraits): Program {
  const b = new ProgramBuilder();
  const table = b.ropeTable(ropeTable(config.rope, config.headDim));
  const embedding = matrix(b, 'model.embed_tokens.weight', config.vocabSize, config.hiddenSize);
  const mlp = traits.mlp ?? denseMlp(config);
  const norm = (x: View, name: string) =>
    b.rmsNorm(x, vector(b, name, config.hiddenSize), config.rmsNormEps);

  let x = b.embed(embedding);
  for (let layer = 0; layer < config.numLayers; layer++) {
    const prefix = layerPrefix(layer);
    let attended = attention(b, config, traits, {
      x: norm(x, `${prefix}.input_layernorm.weight`),
      layer,
      table,
    });
    // Attention alone mixes rows: after the last one those that nobody wants are of no use.
    if (layer === config.numLayers - 1) [x, attended] = [b.gather(x), b.gather(attended)];
    x = b.add(x, outputProjection(b, config, traits, attended, layer));
    x = b.add(x, mlp(b, norm(x, `${prefix}.post_attention_layernorm.weight`), layer));
  }
  const head = config.tieWordEmbeddings
    ? embedding
    : matrix(b, 'lm_head.weight', config.vocabSize, config.hiddenSize);
  return b.finish(b.linear(norm(x, 'model.norm.weight'), head));
}

function attention(
  b: ProgramBuilder,
  config: ModelConfig,
  traits: DecoderTraits,
  { x, layer, table }: { x: View; layer: number; table: number },
): View {
  const { numHeads: heads, numKvHeads: kvHeads, headDim } = config;
  const prefix = `${layerPrefix(layer)}.self_attn`;
  const qWidth = heads * headDim;
  const kvWidth = kvHeads * headDim;
  const qkv = linear(b, x, `${prefix}.qkv_proj`, traits.qkvBias, [
    [`${prefix}.q_proj`, qWidth],
    [`${prefix}.k_proj`, kvWidth],
    [`${prefix}.v_proj`, kvWidth],
  ]);
  const headNorm = (view: View, name: string) =>
    traits.qkNorm
      ? b.rmsNorm(view, vector(b, `${prefix}.${name}.weight`, headDim), config.rmsNormEps)
      : view;
  const q = headNorm(slice(qkv, 0, qWidth), 'q_norm');
  const k = headNorm(slice(qkv, qWidth, kvWidth), 'k_norm');
  return b.attention({
    q: b.rope(q, headDim, table),
    k: b.rope(k, headDim, table),
    v: slice(qkv, qWidth + kvWidth, kvWidth),
    heads,
    kvHeads,
    headDim,
    scale: headDim ** -0.5,
    window: traits.window?.(layer),
  });
}

function outputProjection(
  b: ProgramBuilder,
  config: ModelConfig,
  traits: DecoderTraits,
  attended: View,
  layer: number,
): View {
  const name = `${layerPrefix(layer)}.self_attn.o_proj`;
  return linear(b, attended, name, traits.outputBias, [[name, config.hiddenSize]]);
}

/** `down(silu(gate x) * up x)` (SwiGLU, arXiv 2002.05202). */
export function denseMlp(config: ModelConfig, bias = false): NonNullable<DecoderTraits['mlp']> {
  return (b, x, layer) => {
    const prefix = `${layerPrefix(layer)}.mlp`;
    const gateUp = linear(b, x, `${prefix}.gate_up_proj`, bias, [
      [`${prefix}.gate_proj`, config.intermediateSize],
      [`${prefix}.up_proj`, config.intermediateSize],
    ]);
    const down = `${prefix}.down_proj`;
    return linear(b, b.siluMul(gateUp), down, bias, [[down, config.hiddenSize]]);
  };
}

export function layerPrefix(layer: number): string {
  return `model.layers.${layer}`;
}

/** A weight `[rows, columns]` that is one tensor. */
export function matrix(b: ProgramBuilder, tensor: string, rows: number, columns: number): number {
  const shape = [rows, columns];
  return b.weight([{ tensor, shape }], shape);
}

function vector(b: ProgramBuilder, tensor: string, width: number): number {
  return b.weight([{ tensor, shape: [width] }], [width]);
}

/** A linear whose rows are those of `parts`, `[module, rows]` each, one after the other. */
function linear(
  b: ProgramBuilder,
  x: View,
  name: string,
  bias: boolean | undefined,
  parts: readonly (readonly [module: string, rows: number])[],
): View {
  const rows = parts.reduce((sum, [, count]) => sum + count, 0);
  const stack = (suffix: string, columns: readonly number[]) =>
    b.weight(
      parts.map(
        ([module, count]): WeightPart => ({
          tensor: `${module}.${suffix}`,
          shape: [count, ...columns],
        }),
      ),
      [rows, ...columns],
      `${name}.${suffix}`,
    );
  return b.linear(x, stack('weight', [x.width]), bias ? stack('bias', []) : undefined);
}
