/**
 * Lowering: the recorded program becomes the list of operations the CUDA executor launches. A sum
 * after a matrix product is that product's; norms of heads, rotary embeddings and the writing of
 * the KV cache are one pass before attention. Everything is in the storage type but the logits.
 */
import { ModelError } from '../../errors.js';
import type {
  AttentionOp,
  EmbedOp,
  GatherOp,
  MoeOp,
  Op,
  Program,
  RmsNormOp,
  RopeOp,
  View,
  Weight,
} from '../../model/program.js';

/** One launch. Operands are views of `LoweredProgram.values`, weights index its list. */
export type LoweredOp =
  | EmbedOp
  | RmsNormOp
  | { kind: 'linear'; x: View; weight: number; bias?: number; residual?: View; out: View }
  | { kind: 'add'; a: View; b: View; out: View }
  | QkvStoreOp
  | {
      kind: 'attention';
      layer: number;
      q: View;
      heads: number;
      window?: number;
      scale: number;
      out: View;
    }
  | { kind: 'silu_mul'; x: View; out: View }
  | MoeOp
  | GatherOp;

/** Norms and rotates queries and keys, writes keys and values to the cache, queries to `out`. */
export interface QkvStoreOp {
  readonly kind: 'qkv_store';
  readonly layer: number;
  readonly q: View;
  readonly k: View;
  readonly v: View;
  readonly qNorm?: number;
  readonly kNorm?: number;
  readonly eps: number;
  readonly table?: number;
  readonly heads: number;
  /** May be `q`. */
  readonly out: View;
}

export type LoweredKind = LoweredOp['kind'];

/** Vectors are float32; a bias is kept in the storage type, too. */
export type WeightLayout = 'vector' | 'bias' | 'matrix';

export interface LoweredWeight {
  readonly weight: Weight;
  readonly layout: WeightLayout;
}

export interface LoweredProgram {
  /** On the step's tokens, then on the wanted rows. */
  readonly tokenOps: readonly LoweredOp[];
  readonly rowOps: readonly LoweredOp[];
  readonly weights: readonly LoweredWeight[];
  /** Rows and width of each value, the program's first. */
  readonly values: readonly { readonly rows: 'T' | 'R'; readonly width: number }[];
  /** The one value in float32. */
  readonly logits: number;
}

/** Throws ModelError for a program that has operations the executor has no kernel for. */
export function lower(program: Program): LoweredProgram {
  checkSizes(program);
  const fusion = new Fusion(program);
  for (const op of program.ops) fusion.add(op);
  const { ops, values } = fusion.finish();
  const weights = new WeightList(program.weights);
  const lowered = ops.map((op) => weights.assign(op));
  const rowsOf = (op: LoweredOp) => values[op.out.value].rows;
  return {
    tokenOps: lowered.filter((op) => rowsOf(op) === 'T'),
    rowOps: lowered.filter((op) => rowsOf(op) === 'R'),
    weights: weights.list,
    values,
    logits: program.logits.value,
  };
}

/** What the kernels can do: native/cuda/kernels.h. */
const MAX_VOCAB = 2 ** 18;
const MAX_HEAD_DIM = 256;
const MAX_EXPERTS = 512;
const MAX_TOP_K = 32;

function checkSizes({ vocabSize, kvLayers, ops }: Program): void {
  const most = (what: string, value: number, max: number) => {
    if (value <= max) return;
    throw new ModelError(
      `The CUDA executor has kernels for up to ${max} ${what}, not for ${value}`,
    );
  };
  most('tokens in the vocabulary', vocabSize, MAX_VOCAB);
  for (const { headDim } of kvLayers) {
    most('columns in a head', headDim, MAX_HEAD_DIM);
    if (headDim % 2 === 0) continue;
    throw new ModelError(`The CUDA executor has kernels for even head sizes, not for ${headDim}`);
  }
  for (const op of ops) {
    if (op.kind !== 'moe') continue;
    most('experts in a layer', op.experts, MAX_EXPERTS);
    most('experts for each token', op.topK, MAX_TOP_K);
  }
}

/** Every view an operation reads. */
export function reads(op: LoweredOp | Op): View[] {
  switch (op.kind) {
    case 'embed':
      return [];
    case 'linear':
      return 'residual' in op && op.residual ? [op.x, op.residual] : [op.x];
    case 'add':
      return [op.a, op.b];
    case 'qkv_store':
      return [op.q, op.k, op.v];
    case 'attention':
      return 'k' in op ? [op.q, op.k, op.v] : [op.q];
    case 'moe':
      return [op.x, op.router];
    default:
      return [op.x];
  }
}

/** What becomes of queries or keys before attention, from the last operation back. */
interface Preparation {
  readonly x: View;
  readonly norm?: RmsNormOp;
  readonly rope?: RopeOp;
}

class Fusion {
  readonly #program: Program;
  readonly #values: { rows: 'T' | 'R'; width: number }[];
  /** The lowered operations so far; undefined where one became part of a later one. */
  readonly #ops: (LoweredOp | RopeOp | undefined)[] = [];
  /** Index into #ops of what makes a value. */
  readonly #producer = new Map<number, number>();
  readonly #uses = new Map<number, number>();

  constructor(program: Program) {
    this.#program = program;
    this.#values = program.values.map(({ rows, width }) => ({ rows, width }));
    const views = [...program.ops.flatMap(reads), program.logits];
    for (const { value } of views) this.#uses.set(value, (this.#uses.get(value) ?? 0) + 1);
  }

  add(op: Op): void {
    if (op.kind === 'attention') this.#attention(op);
    else if (op.kind === 'add') this.#push(this.#sum(op.a, op.b, op.out));
    else this.#push(op);
  }

  finish(): { ops: LoweredOp[]; values: { rows: 'T' | 'R'; width: number }[] } {
    const ops: LoweredOp[] = [];
    for (const op of this.#ops) {
      if (op?.kind === 'rope') {
        throw new ModelError(
          'The CUDA executor turns queries and keys right before attention, both by the same rope ' +
            `table; value ${op.x.value} of this model's program is turned elsewhere`,
        );
      }
      if (op) ops.push(op);
    }
    const { value } = this.#program.logits;
    const last = this.#ops[this.#producer.get(value) ?? -1];
    if (
      last?.kind !== 'linear' ||
      this.#values[value].rows !== 'R' ||
      this.#uses.get(value) !== 1
    ) {
      throw new ModelError(
        'The CUDA executor needs the logits to be the product of a matrix and the wanted rows, read by nothing else',
      );
    }
    return { ops, values: this.#values };
  }

  #push(op: LoweredOp | RopeOp): void {
    this.#producer.set(op.out.value, this.#ops.push(op) - 1);
  }

  /** The operation that alone makes all of `view`, which is read nowhere else. */
  #onlyFor<Kind extends LoweredKind | 'rope'>(view: View, kind: Kind) {
    const index = this.#producer.get(view.value);
    if (index === undefined || this.#uses.get(view.value) !== 1) return undefined;
    const op = this.#ops[index];
    const whole = view.offset === 0 && view.width === this.#values[view.value].width;
    if (op?.kind !== kind || !whole) return undefined;
    return op as Extract<LoweredOp | RopeOp, { kind: Kind }>;
  }

  #take(op: LoweredOp | RopeOp | undefined): void {
    if (op) this.#ops[this.#producer.get(op.out.value) as number] = undefined;
  }

  /** A product with a sum after it takes the other summand as its residual. */
  #sum(a: View, b: View, out: View): LoweredOp {
    for (const [view, residual] of [[b, a] as const, [a, b] as const]) {
      const product = this.#onlyFor(view, 'linear');
      if (!product || product.residual || out.value === this.#program.logits.value) continue;
      this.#take(product);
      return { ...product, residual, out };
    }
    return { kind: 'add', a, b, out };
  }

  #attention(op: AttentionOp): void {
    const { layer, heads, headDim, window, scale, out } = op;
    let [q, k] = [this.#preparation(op.q, headDim), this.#preparation(op.k, headDim)];
    if (q.rope?.table !== k.rope?.table) [q, k] = [{ x: op.q }, { x: op.k }];
    if (q.norm && k.norm && q.norm.eps !== k.norm.eps) k = { ...k, x: k.norm.out, norm: undefined };
    for (const each of [q.norm, k.norm, q.rope, k.rope]) this.#take(each);
    const queries = this.#alone(q, [k.x, op.v]) ? q.x : this.#newValue(q.x.width);
    this.#push({
      kind: 'qkv_store',
      layer,
      ...{ q: q.x, k: k.x, v: op.v },
      ...{ qNorm: q.norm?.weight, kNorm: k.norm?.weight, eps: q.norm?.eps ?? k.norm?.eps ?? 0 },
      table: q.rope?.table,
      heads,
      out: queries,
    });
    this.#push({ kind: 'attention', layer, q: queries, heads, window, scale, out });
  }

  #preparation(view: View, headDim: number): Preparation {
    const found = this.#onlyFor(view, 'rope');
    const rope = found?.headDim === headDim ? found : undefined;
    const x = rope?.x ?? view;
    const norm = this.#onlyFor(x, 'rms_norm');
    if (norm?.group !== headDim) return { x, rope };
    return { x: norm.x, norm, rope };
  }

  /** Whether the queries' columns are read for this attention only, so that they may be overwritten. */
  #alone({ x, norm, rope }: Preparation, others: readonly View[]): boolean {
    const overlaps = (view: View) =>
      view.value === x.value &&
      view.offset < x.offset + x.width &&
      x.offset < view.offset + view.width;
    if ([...others, this.#program.logits].some(overlaps)) return false;
    if (!norm && !rope) return this.#program.ops.flatMap(reads).filter(overlaps).length === 1;
    const first = norm ?? rope;
    const readers = this.#program.ops.filter((op) => reads(op).some(overlaps));
    return readers.every(({ out }) => out.value === first?.out.value);
  }

  #newValue(width: number): View {
    return { value: this.#values.push({ rows: 'T', width }) - 1, offset: 0, width };
  }
}

/** Gives each use of a weight its place in the list of weights to load. */
class WeightList {
  readonly list: LoweredWeight[] = [];
  readonly #known = new Map<string, number>();
  readonly #weights: readonly Weight[];

  constructor(weights: readonly Weight[]) {
    this.#weights = weights;
  }

  assign(op: LoweredOp): LoweredOp {
    switch (op.kind) {
      case 'embed':
        return { ...op, weight: this.#id(op.weight, 'matrix') };
      case 'rms_norm':
        return { ...op, weight: this.#id(op.weight, 'vector') };
      case 'linear':
        return {
          ...op,
          weight: this.#id(op.weight, 'matrix'),
          bias: this.#optional(op.bias, 'bias'),
        };
      case 'qkv_store':
        return {
          ...op,
          qNorm: this.#optional(op.qNorm, 'vector'),
          kNorm: this.#optional(op.kNorm, 'vector'),
        };
      case 'moe':
        return {
          ...op,
          gateUp: this.#id(op.gateUp, 'matrix'),
          down: this.#id(op.down, 'matrix'),
        };
      default:
        return op;
    }
  }

  #optional(weight: number | undefined, layout: WeightLayout): number | undefined {
    return weight === undefined ? undefined : this.#id(weight, layout);
  }

  #id(weight: number, layout: WeightLayout): number {
    const key = `${weight} ${layout}`;
    const known = this.#known.get(key);
    if (known !== undefined) return known;
    const id = this.list.push({ weight: this.#weights[weight], layout }) - 1;
    this.#known.set(key, id);
    return id;
  }
}
