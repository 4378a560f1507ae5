/**
 * Which weights are kept as integers or 8-bit floats: `--quantization` and `--quantization-overrides`.
 *
 * Every linear and every expert takes the scheme asked for, but fp8, for which experts have no
 * kernels: they and the head stay float. Norms, biases and routers stay float
 * (small, and what they decide is not forgiving), and so do embeddings that are not the head as well:
 * a step reads a few of their rows. The head is read whole in each step, so it becomes integer too,
 * but never less than 8 bits unless an override says so: its errors reach the logits directly.
 */
import { InvalidParameterError } from '../errors.js';
import type { Program, Weight } from './program.js';
import { asFloats } from './unite-parts.js';
import type { Fp8Storage, IntegerStorage, MatrixStorage, WeightSource } from './weights.js';

export interface QuantizationOptions {
  /** `fp8`, or `int8` or `int4` with `-g32`, `-g64`, `-g128` for groups and `-asym` for offsets. */
  quantization?: string;
  /** `PATTERN=SCHEME,...` for single weights; `*` in a pattern is any text, the first match counts. */
  quantizationOverrides?: string;
}

const SCHEME = /^int([48])(?:-g(32|64|128))?(-asym)?$/;
const FLOAT: MatrixStorage = { kind: 'float' };
const FP8: Fp8Storage = { kind: 'fp8' };
const HEAD: IntegerStorage = {
  kind: 'integer',
  bits: 8,
  group: 0,
  symmetric: true,
  unasked: true,
};
/** Of plain `int4`. Its plain form has groups, plain `int8` has one scale a row. */
const INT4_GROUP = 32;

/** Throws `InvalidParameterError` for `param`. `int4` means `int4-g32`, `int8` one scale a row. */
export function parseScheme(scheme: string, param = 'quantization'): IntegerStorage {
  const match = SCHEME.exec(scheme);
  if (!match) {
    throw InvalidParameterError.expected(
      'int8 or int4, then -g32, -g64 or -g128 and -asym if wanted',
      param,
      scheme,
    );
  }
  const bits = match[1] === '4' ? 4 : 8;
  const group = (Number(match[2] ?? 0) || (bits === 4 ? INT4_GROUP : 0)) as IntegerStorage['group'];
  return { kind: 'integer', bits, group, symmetric: match[3] === undefined };
}

/** The same, and `fp8`. */
function parseStorage(scheme: string, param?: string): IntegerStorage | Fp8Storage {
  if (scheme === 'fp8') return FP8;
  if (SCHEME.test(scheme)) return parseScheme(scheme, param);
  const known = 'int8 or int4, then -g32, -g64 or -g128 and -asym if wanted; or fp8';
  throw InvalidParameterError.expected(known, param ?? 'quantization', scheme);
}

/** The name `parseScheme` reads, groups spelled out; `int4-row` for 4 bits and one scale a row. */
export function schemeName({ bits, group, symmetric }: IntegerStorage): string {
  const grouping = group > 0 ? `-g${group}` : bits === 4 ? '-row' : '';
  return `int${bits}${grouping}${symmetric ? '' : '-asym'}`;
}

/**
 * The source with the storage these options ask for, and what a person should know of it. Matrices the
 * checkpoint has as integers keep their own unless an override names them. Throws
 * `InvalidParameterError`, also for an option that would change nothing.
 */
export function withQuantization(
  source: WeightSource,
  program: Program,
  { quantization, quantizationOverrides }: QuantizationOptions,
): { weights: WeightSource; notes: string[] } {
  if (quantization === undefined && quantizationOverrides === undefined) {
    return { weights: source, notes: [] };
  }
  const scheme = quantization === undefined ? undefined : parseStorage(quantization);
  const overrides = parseOverrides(quantizationOverrides ?? '');
  const candidates = quantizable(program);
  const used = new Set<Override>();
  const storages = new Map<number, MatrixStorage>();
  /** Tensors whose codes are given up for what an override asks. */
  const widened = new Set<string>();
  const kept: string[] = [];
  let asked = 0;
  for (const [weight, isHead] of candidates) {
    const own = source.storage(weight);
    const override = overrides.find(({ pattern }) => matches(pattern, weight, isHead));
    if (override) {
      used.add(override);
      storages.set(weight.id, override.storage);
      if (own.kind !== override.storage.kind || own.kind === 'integer') {
        for (const { tensor } of weight.parts) widened.add(tensor);
      }
    } else if (scheme && own.kind === 'integer') {
      kept.push(schemeName(own));
    } else if (scheme) {
      const storage = schemeFor(scheme, weight, isHead, own);
      storages.set(weight.id, storage);
      if (storage.kind === scheme.kind) asked++;
    }
  }
  const idle = overrides.find((override) => !used.has(override));
  if (idle) {
    throw InvalidParameterError.expected(
      `pattern of a linear, an expert or the head (such as ${candidates[0]?.[0].name})`,
      'quantizationOverrides',
      idle.text,
    );
  }
  const names = [...new Set(kept)].join(' and ');
  if (scheme && asked === 0 && kept.length > 0) {
    throw new InvalidParameterError(
      `quantization ${quantization} changes nothing: all matrices of the checkpoint are ${names}, ` +
        'and only overrides round them anew',
      { param: 'quantization' },
    );
  }
  const notes = [];
  if (kept.length > 0) {
    notes.push(`${kept.length} matrices stay ${names}, as the checkpoint has them`);
  }
  if (scheme?.kind === 'fp8' && candidates.some(([weight]) => isExperts(weight))) {
    notes.push('experts are not in fp8: there are no kernels for it');
  }
  const weights: WeightSource = {
    dtype: source.dtype,
    storage: (weight) => storages.get(weight.id) ?? source.storage(weight),
    tensor: (name) => (widened.has(name) ? asFloats(source.tensor(name)) : source.tensor(name)),
  };
  return { weights, notes };
}

/** What a scheme for all matrices makes of one. */
function schemeFor(
  scheme: IntegerStorage | Fp8Storage,
  weight: Weight,
  isHead: boolean,
  own: MatrixStorage,
): MatrixStorage {
  if (scheme.kind === 'integer') return isHead ? HEAD : scheme;
  return isHead || isExperts(weight) ? own : scheme;
}

interface Override {
  readonly text: string;
  readonly pattern: RegExp;
  readonly storage: MatrixStorage;
}

function parseOverrides(text: string): Override[] {
  const entries = text.split(',').filter((entry) => entry.trim() !== '');
  return entries.map((entry) => {
    const [name, scheme, ...rest] = entry.split('=').map((part) => part.trim());
    if (!name || !scheme || rest.length > 0) {
      throw InvalidParameterError.expected('PATTERN=SCHEME', 'quantizationOverrides', entry);
    }
    const parts = name.split('*').map((part) => part.replace(/[.+?^${}()|[\]\\]/g, '\\$&'));
    const storage = scheme === 'float' ? FLOAT : parseStorage(scheme, 'quantizationOverrides');
    return { text: entry, pattern: new RegExp(`^${parts.join('.*')}$`), storage };
  });
}

/** Tensors are also called by their module, and a head that is the embedding `lm_head`. */
function matches(pattern: RegExp, { name, parts }: Weight, isHead: boolean): boolean {
  const names = [name, ...parts.map(({ tensor }) => tensor), ...(isHead ? ['lm_head.weight'] : [])];
  return names.some((each) => pattern.test(each) || pattern.test(each.replace(/\.weight$/, '')));
}

function isExperts({ shape }: Weight): boolean {
  return shape.length === 3;
}

/** Weights that need not be floats, and whether each makes the logits. */
function quantizable(program: Program): [Weight, boolean][] {
  const routers = new Set(program.ops.flatMap((op) => (op.kind === 'moe' ? op.router.value : [])));
  const found = new Map<number, boolean>();
  for (const op of program.ops) {
    if (op.kind === 'linear' && !routers.has(op.out.value)) {
      const isHead = op.out.value === program.logits.value;
      found.set(op.weight, isHead || (found.get(op.weight) ?? false));
    } else if (op.kind === 'moe') {
      found.set(op.gateUp, false).set(op.down, false);
    }
  }
  return [...found].map(([id, isHead]) => [program.weights[id], isHead]);
}
