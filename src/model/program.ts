/**
 * The recorded program of a model: a flat list of typed operations over named weights and two
 * symbolic sizes. A family file records it once, at load; every executor reads it.
 *
 * Symbolic sizes of a step: `T`, the tokens computed in the step, and `R`, the rows whose logits
 * are wanted. Every value is a row-major float matrix `[T or R, width]`. Operations read and write
 * *views*: column ranges of a value, so a fused QKV projection needs no split operation.
 *
 * docs/program.md is the one-page table of the operations.
 */

export type Rows = 'T' | 'R';

/** A matrix `[rows, width]` of activations, written by exactly one operation. */
export interface Value {
  readonly id: number;
  readonly rows: Rows;
  readonly width: number;
}

/** Columns `offset .. offset + width` of a value. */
export interface View {
  readonly value: number;
  readonly offset: number;
  readonly width: number;
}

/**
 * A weight as the program uses it: the named tensors of the checkpoint, concatenated along their
 * first dimension (row-major, so a plain concatenation of their elements).
 */
export interface Weight {
  readonly id: number;
  /** Name for messages and per-layer overrides: that of its only part, or a joined one (`...qkv_proj.weight`). */
  readonly name: string;
  /** `[width]` for norms and biases, `[out, in]` for linears and embeddings, `[experts, out, in]` for MoE. */
  readonly shape: readonly number[];
  /** Tensor names in the checkpoint with their shapes, in order of concatenation. */
  readonly parts: readonly WeightPart[];
}

export interface WeightPart {
  readonly tensor: string;
  readonly shape: readonly number[];
}

/** `out[t] = weight[tokens[t]]`. weight `[vocab, width]`. */
export interface EmbedOp {
  readonly kind: 'embed';
  readonly weight: number;
  readonly out: View;
}

/**
 * Root-mean-square norm over each run of `group` columns: `x / sqrt(mean(x^2) + eps) * weight`.
 * `group` equals the width for the ordinary norm and the head size for QK-norm; weight `[group]`.
 */
export interface RmsNormOp {
  readonly kind: 'rms_norm';
  readonly x: View;
  readonly weight: number;
  readonly eps: number;
  readonly group: number;
  readonly out: View;
}

/** `out = x · weightᵀ (+ bias)`. weight `[out.width, x.width]`, bias `[out.width]`. */
export interface LinearOp {
  readonly kind: 'linear';
  readonly x: View;
  readonly weight: number;
  readonly bias?: number;
  readonly out: View;
}

/** `out = a + b`. */
export interface AddOp {
  readonly kind: 'add';
  readonly a: View;
  readonly b: View;
  readonly out: View;
}

/**
 * Rotary embedding of heads of `headDim` columns, half-split layout (rotate_half): column i pairs
 * with `i + headDim / 2`; the angle of pair i at position p is `p * table.invFreq[i]`, and sine and
 * cosine are scaled by `table.scale` (yarn's attention factor, otherwise 1).
 */
export interface RopeOp {
  readonly kind: 'rope';
  readonly x: View;
  readonly headDim: number;
  /** Index into `Program.ropeTables`. */
  readonly table: number;
  readonly out: View;
}

/**
 * Writes k and v of the step's tokens to the layer's cache at the step's slots, then attends:
 * causal, over the block table of each token's sequence, `softmax(q·kᵀ * scale)·v`.
 * q, out `[T, heads * headDim]`; k, v `[T, kvHeads * headDim]`. With `window` w a token at position
 * p sees the keys `p - w + 1 .. p`.
 */
export interface AttentionOp {
  readonly kind: 'attention';
  readonly layer: number;
  readonly q: View;
  readonly k: View;
  readonly v: View;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly scale: number;
  readonly window?: number;
  readonly out: View;
}

/** `out = silu(x[:, :w]) * x[:, w:]`, w = out.width; x holds gate, then up. */
export interface SiluMulOp {
  readonly kind: 'silu_mul';
  readonly x: View;
  readonly out: View;
}

/**
 * Mixture of experts. Softmax over the router's logits (`router` `[n, experts]`, computed by a
 * linear before), the `topK` largest (ties: lower expert first), renormalised to sum 1 if
 * `normalize`; the output is the weighted sum of `down_e(silu(gate_e x) * (up_e x))`.
 * gateUp `[experts, 2 * inner, width]` (gate rows, then up rows), down `[experts, width, inner]`.
 */
export interface MoeOp {
  readonly kind: 'moe';
  readonly x: View;
  readonly router: View;
  readonly gateUp: number;
  readonly down: number;
  readonly experts: number;
  readonly inner: number;
  readonly topK: number;
  readonly normalize: boolean;
  readonly out: View;
}

/** `out[r] = x[rows[r]]`: from `T` rows to the `R` rows whose logits are wanted. */
export interface GatherOp {
  readonly kind: 'gather';
  readonly x: View;
  readonly out: View;
}

export type Op =
  | EmbedOp
  | RmsNormOp
  | LinearOp
  | AddOp
  | RopeOp
  | AttentionOp
  | SiluMulOp
  | MoeOp
  | GatherOp;

export interface RopeTable {
  /** Angular frequency of each pair, `headDim / 2` of them, radians per position. */
  readonly invFreq: readonly number[];
  readonly scale: number;
}

/** Everything an executor needs to know of a model besides the bytes of its weights. */
export interface Program {
  readonly values: readonly Value[];
  readonly weights: readonly Weight[];
  readonly ropeTables: readonly RopeTable[];
  readonly ops: readonly Op[];
  /** The logits, `[R, vocabSize]`. */
  readonly logits: View;
  readonly vocabSize: number;
  /** The KV cache the attention operations need, one entry a layer. */
  readonly kvLayers: readonly KvLayer[];
}

export interface KvLayer {
  readonly kvHeads: number;
  readonly headDim: number;
}

/** Records a program. Each method appends one operation and returns the view it writes. */
export class ProgramBuilder {
  readonly #values: Value[] = [];
  readonly #weights: Weight[] = [];
  readonly #weightIds = new Map<string, number>();
  readonly #ropeTables: RopeTable[] = [];
  readonly #ops: Op[] = [];
  readonly #kvLayers: KvLayer[] = [];

  /** Declares a weight; the same parts declared twice are one weight (tied embeddings). */
  weight(parts: readonly WeightPart[], shape: readonly number[], name?: string): number {
    const key = parts.map((part) => part.tensor).join('+');
    const known = this.#weightIds.get(key);
    if (known !== undefined) return known;
    const id = this.#weights.length;
    this.#weights.push({ id, name: name ?? parts[0].tensor, shape, parts });
    this.#weightIds.set(key, id);
    return id;
  }

  ropeTable(table: RopeTable): number {
    return this.#ropeTables.push(table) - 1;
  }

  embed(weight: number): View {
    const out = this.#value('T', this.#weights[weight].shape[1]);
    this.#ops.push({ kind: 'embed', weight, out });
    return out;
  }

  rmsNorm(x: View, weight: number, eps: number): View {
    const group = this.#weights[weight].shape[0];
    const out = this.#value(this.#rows(x), x.width);
    this.#ops.push({ kind: 'rms_norm', x, weight, eps, group, out });
    return out;
  }

  linear(x: View, weight: number, bias?: number): View {
    const out = this.#value(this.#rows(x), this.#weights[weight].shape[0]);
    this.#ops.push({ kind: 'linear', x, weight, bias, out });
    return out;
  }

  add(a: View, b: View): View {
    const out = this.#value(this.#rows(a), a.width);
    this.#ops.push({ kind: 'add', a, b, out });
    return out;
  }

  rope(x: View, headDim: number, table: number): View {
    const out = this.#value(this.#rows(x), x.width);
    this.#ops.push({ kind: 'rope', x, headDim, table, out });
    return out;
  }

  /** Attention of the next layer: layers are numbered in the order they are recorded. */
  attention(options: Omit<AttentionOp, 'kind' | 'layer' | 'out'>): View {
    const { heads, headDim, kvHeads } = options;
    const layer = this.#kvLayers.push({ kvHeads, headDim }) - 1;
    const out = this.#value('T', heads * headDim);
    this.#ops.push({ kind: 'attention', layer, ...options, out });
    return out;
  }

  siluMul(x: View): View {
    const out = this.#value(this.#rows(x), x.width / 2);
    this.#ops.push({ kind: 'silu_mul', x, out });
    return out;
  }

  moe(options: Omit<MoeOp, 'kind' | 'out'>): View {
    const out = this.#value(this.#rows(options.x), options.x.width);
    this.#ops.push({ kind: 'moe', ...options, out });
    return out;
  }

  gather(x: View): View {
    const out = this.#value('R', x.width);
    this.#ops.push({ kind: 'gather', x, out });
    return out;
  }

  finish(logits: View): Program {
    return {
      values: this.#values,
      weights: this.#weights,
      ropeTables: this.#ropeTables,
      ops: this.#ops,
      logits,
      vocabSize: logits.width,
      kvLayers: this.#kvLayers,
    };
  }

  #value(rows: Rows, width: number): View {
    const id = this.#values.push({ id: this.#values.length, rows, width }) - 1;
    return { value: id, offset: 0, width };
  }

  #rows(view: View): Rows {
    return this.#values[view.value].rows;
  }
}

/** Columns `offset .. offset + width` of a view. */
export function slice(view: View, offset: number, width: number): View {
  return { value: view.value, offset: view.offset + offset, width };
}
