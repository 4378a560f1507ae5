/**
 * Lowering: the recorded program becomes the list of operations the native interpreter runs. What
 * follows a matrix product and can be done while its results are still in registers is fused with
 * it (residual sums, silu(gate) * up); inputs of products are made in bf16 where the kernels want
 * it. A program with none of these patterns lowers one to one.
 */
import type { MoeOp, Op, Program, RmsNormOp, View, Weight } from '../../model/program.js';

/** One native operation. Operands are views of the program's values; which form they have is below. */
export type LoweredOp =
  | { kind: 'embed'; weight: number; out: View }
  | { kind: 'rms_norm'; x: View; weight: number; eps: number; out: View }
  | {
      kind: 'linear';
      x: View;
      weight: number;
      /** The weight holds gate rows, then up rows; out is silu(gate) * up. */
      gateUp: boolean;
      bias?: number;
      residual?: View;
      out: View;
    }
  | { kind: 'add'; a: View; b: View; out: View }
  | { kind: 'rope'; x: View; headDim: number; table: number; out: View }
  | Extract<Op, { kind: 'attention' }>
  | { kind: 'silu_mul'; x: View; out: View }
  | MoeOp
  | { kind: 'gather'; x: View; out: View }
  /** Makes the bf16 form of a view whose producer cannot write it. */
  | { kind: 'to_bf16'; x: View; out: View };

export type LoweredKind = LoweredOp['kind'];

/** How a weight is packed: a weight used in two ways is kept twice. */
export type WeightLayout = 'vector' | 'matrix' | 'gateUp';

export interface LoweredWeight {
  readonly weight: Weight;
  readonly layout: WeightLayout;
}

/**
 * A matrix of activations: a value of the program, or the bf16 form of a view. `value` is that of
 * the program, or a new id from `program.values.length` on for converted views.
 */
export interface Form {
  readonly value: number;
  readonly bf16: boolean;
}

export interface LoweredProgram {
  /** On the step's tokens, then on the wanted rows. */
  readonly tokenOps: readonly LoweredOp[];
  readonly rowOps: readonly LoweredOp[];
  /** Operations' `weight`, `bias`, `gateUp` and `down` index this list. */
  readonly weights: readonly LoweredWeight[];
  /** Rows and width of each value, the program's first. */
  readonly values: readonly { readonly rows: 'T' | 'R'; readonly width: number }[];
  /** Values needed as float32 and those needed as bf16; a value may be in both. */
  readonly floats: ReadonlySet<number>;
  readonly halves: ReadonlySet<number>;
  /** Whether a product reads its rows as bf16. */
  readonly bf16Input: (product: Product) => boolean;
}

export type Product = Extract<LoweredOp, { kind: 'linear' | 'moe' }>;

/** Lowers `program`; `wantsBf16` says of which weights the kernels want the other factor in bf16. */
export function lower(program: Program, wantsBf16: (weight: Weight) => boolean): LoweredProgram {
  const fused = fuse(program);
  const weights = new WeightList(program.weights);
  const withWeights = fused.map((op) => weights.assign(op));
  const values: { rows: 'T' | 'R'; width: number }[] = program.values.map(({ rows, width }) => ({
    rows,
    width,
  }));
  const halves = new Set<number>();
  const bf16Input = (op: Product) =>
    wantsBf16(weights.list[op.kind === 'moe' ? op.gateUp : op.weight].weight);
  const ops = convertInputs(withWeights, values, halves, bf16Input);
  const floats = new Set(ops.flatMap((op) => floatReads(op, bf16Input)).map(({ value }) => value));
  floats.add(program.logits.value);
  for (const { out } of ops) if (!halves.has(out.value)) floats.add(out.value);
  const rowsOf = (op: LoweredOp) => values[op.out.value].rows;
  return {
    tokenOps: ops.filter((op) => rowsOf(op) === 'T'),
    rowOps: ops.filter((op) => rowsOf(op) === 'R'),
    weights: weights.list,
    values,
    floats,
    halves,
    bf16Input,
  };
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
    case 'attention':
      return [op.q, op.k, op.v];
    case 'moe':
      return [op.x, op.router];
    default:
      return [op.x];
  }
}

function floatReads(op: LoweredOp, bf16Input: (product: Product) => boolean): View[] {
  if (!isProduct(op) || !bf16Input(op)) return reads(op);
  return reads(op).filter((view) => view !== op.x);
}

function isProduct(op: LoweredOp): op is Product {
  return op.kind === 'linear' || op.kind === 'moe';
}

/**
 * Fuses linear + silu_mul and linear + add. The fused operation stands where the second stood:
 * all it reads has been computed by then.
 */
function fuse(program: Program): LoweredOp[] {
  const uses = new Map<number, number>();
  const use = ({ value }: View) => uses.set(value, (uses.get(value) ?? 0) + 1);
  for (const op of program.ops) reads(op).forEach(use);
  use(program.logits);

  const producer = new Map<number, number>();
  const ops: (LoweredOp | undefined)[] = [];
  /** The linear that alone makes all of `view`, which is read nowhere else. */
  const onlyFor = (view: View) => {
    const index = producer.get(view.value);
    if (index === undefined || uses.get(view.value) !== 1) return undefined;
    const op = ops[index];
    const whole = view.offset === 0 && view.width === program.values[view.value].width;
    return op?.kind === 'linear' && !op.gateUp && !op.residual && whole ? { index, op } : undefined;
  };
  for (const op of program.ops) {
    let lowered: LoweredOp = op.kind === 'linear' ? { ...op, gateUp: false } : op;
    if (op.kind === 'silu_mul') {
      const found = onlyFor(op.x);
      if (found) {
        lowered = { ...found.op, gateUp: true, out: op.out };
        ops[found.index] = undefined;
      }
    } else if (op.kind === 'add' && op.a.value !== op.b.value) {
      const [found, residual] = onlyFor(op.b) ? [onlyFor(op.b), op.a] : [onlyFor(op.a), op.b];
      if (found) {
        lowered = { ...found.op, residual, out: op.out };
        ops[found.index] = undefined;
      }
    }
    producer.set(op.out.value, ops.push(lowered) - 1);
  }
  return ops.filter((op) => op !== undefined);
}

/** Gives each use of a weight its place in the list of packed weights. */
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
          weight: this.#id(op.weight, op.gateUp ? 'gateUp' : 'matrix'),
          bias: op.bias === undefined ? undefined : this.#id(op.bias, 'vector'),
        };
      case 'moe':
        return {
          ...op,
          gateUp: this.#id(op.gateUp, 'gateUp'),
          down: this.#id(op.down, 'matrix'),
        };
      default:
        return op;
    }
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

/**
 * Makes the inputs of matrix products bf16 where they are wanted so: written so by its producer where that can (norms,
 * products, silu_mul, and the whole value is read), by a conversion before the product otherwise.
 */
function convertInputs(
  ops: readonly LoweredOp[],
  values: { rows: 'T' | 'R'; width: number }[],
  halves: Set<number>,
  bf16Input: (product: Product) => boolean,
): LoweredOp[] {
  const producers = new Map(ops.map((op) => [op.out.value, op.kind]));
  const converted = new Map<string, View>();
  const result: LoweredOp[] = [];
  for (const op of ops) {
    if (isProduct(op) && bf16Input(op)) {
      const { x } = op;
      const { rows, width } = values[x.value];
      const whole = x.offset === 0 && x.width === width;
      if (whole && WRITES_BF16.has(producers.get(x.value) as LoweredKind)) {
        halves.add(x.value);
        result.push(op);
        continue;
      }
      const key = `${x.value} ${x.offset} ${x.width}`;
      let view = converted.get(key);
      if (!view) {
        view = { value: values.push({ rows, width: x.width }) - 1, offset: 0, width: x.width };
        halves.add(view.value);
        converted.set(key, view);
        result.push({ kind: 'to_bf16', x, out: view });
      }
      result.push({ ...op, x: view });
    } else {
      result.push(op);
    }
  }
  return result;
}

const WRITES_BF16: ReadonlySet<LoweredKind> = new Set<RmsNormOp['kind'] | LoweredKind>([
  'rms_norm',
  'linear',
  'silu_mul',
]);
