/**
 * GPTQ for a mixture of experts: each expert is calibrated on the tokens its router sends to it, its
 * down matrix on what its quantized gate and up matrices make of them.
 */
import { silu } from '../backend/reference/activation.js';
import { route } from '../backend/reference/moe.js';
import type { MoeOp, Program, WeightPart } from '../model/program.js';
import { readTensor } from '../model/read-tensor.js';
import type { TensorRef, WeightSource } from '../model/weights.js';
import { type Hessian, prepareHessian } from './code-matrix.js';
import { addOuterProducts } from './linear-algebra.js';

export interface ExpertsOptions {
  readonly program: Program;
  readonly source: WeightSource;
  readonly wanted: (tensor: string) => boolean;
}

/** Of all calibration tokens, `[tokens, width]` and `[tokens, experts]`. */
export interface ExpertInputs {
  readonly inputs: Float32Array;
  readonly router: Float32Array;
}

/**
 * Tokens for each input of a matrix that GPTQ needs; with fewer it makes up for errors in directions
 * that other tokens do not have. Against rounding to nearest the squared error on new inputs was (int4
 * in groups of 32, 256 inputs with variances falling as a power of their rank) with half as many
 * tokens as inputs 1.06 (power 0.5), 0.54 (1) and 0.05 (2), with a quarter 1.23, 0.69 and 0.06.
 */
const TOKENS_PER_INPUT = 0.5;

/**
 * Calls `quantize` for every wanted matrix, without a Hessian where too few tokens came. Quantized
 * matrices are expected in `done` when it returns.
 */
export function quantizeExperts(
  { program, source, wanted }: ExpertsOptions,
  op: MoeOp,
  { inputs, router }: ExpertInputs,
  done: ReadonlyMap<string, TensorRef>,
  quantize: (part: WeightPart, hessian?: Hessian) => void,
): void {
  const { width } = op.x;
  const gateUp = program.weights[op.gateUp].parts;
  const down = program.weights[op.down].parts;
  const values = ({ tensor }: WeightPart) => readTensor(done.get(tensor) ?? source.tensor(tensor));
  const quantizeAll = (parts: readonly WeightPart[], x: Float32Array, n: number) => {
    const chosen = parts.filter(({ tensor }) => wanted(tensor));
    if (chosen.length === 0) return;
    const hessian = hessianOf(x, n);
    for (const part of chosen) quantize(part, hessian);
  };
  tokensByExpert(op, router).forEach((tokens, expert) => {
    const x = new Float32Array(tokens.length * width);
    tokens.forEach((token, n) => {
      x.set(inputs.subarray(token * width, (token + 1) * width), n * width);
    });
    const [gate, up] = gateUp.slice(2 * expert, 2 * expert + 2);
    quantizeAll([gate, up], x, width);
    if (!wanted(down[expert].tensor)) return;
    const hidden = expertHidden(x, values(gate), values(up), width, op.inner);
    quantizeAll([down[expert]], hidden, op.inner);
  });
}

function tokensByExpert({ experts, topK, normalize }: MoeOp, router: Float32Array): number[][] {
  const tokens: number[][] = Array.from({ length: experts }, () => []);
  for (let token = 0; token * experts < router.length; token++) {
    const logits = router.subarray(token * experts, (token + 1) * experts);
    for (const { expert } of route(logits, topK, normalize)) tokens[expert].push(token);
  }
  return tokens;
}

function hessianOf(x: Float32Array, width: number): Hessian | undefined {
  const count = x.length / width;
  if (count < TOKENS_PER_INPUT * width) return undefined;
  const sum = new Float64Array(width * width);
  addOuterProducts(sum, x, count, width, width);
  return prepareHessian(sum, width);
}

/** `silu(gate x) * (up x)` of each row of x, `[rows, inner]`. */
function expertHidden(
  x: Float32Array,
  gate: Float32Array,
  up: Float32Array,
  width: number,
  inner: number,
): Float32Array {
  const hidden = new Float32Array((x.length / width) * inner);
  for (let n = 0; n < hidden.length; n++) {
    const from = Math.floor(n / inner) * width;
    const row = (n % inner) * width;
    let g = 0;
    let u = 0;
    for (let k = 0; k < width; k++) {
      g += gate[row + k] * x[from + k];
      u += up[row + k] * x[from + k];
    }
    hidden[n] = silu(g) * u;
  }
  return hidden;
}
