/** Mixture of experts: every token goes through its `topK` experts. */
import type { MoeOp } from '../../model/program.js';
import { silu } from './activation.js';
import { productsOf } from './linear.js';
import type { Matrix } from './matrix.js';
import type { ReferenceWeight } from './weights.js';

/** gateUp `[experts, 2 * inner, width]`, down `[experts, width, inner]`. */
export function moe(
  op: MoeOp,
  x: Matrix,
  router: Matrix,
  gateUp: ReferenceWeight,
  down: ReferenceWeight,
  out: Matrix,
) {
  const { inner } = op;
  const hidden = new Float32Array(inner);
  for (let t = 0; t < out.rows; t++) {
    const row = x.row(t);
    const products = productsOf(row, gateUp);
    const sum = new Float64Array(out.width);
    for (const { expert, share } of route(router.row(t), op.topK, op.normalize)) {
      const gate = expert * 2 * inner;
      for (let i = 0; i < inner; i++) {
        hidden[i] = silu(products(gate + i)) * products(gate + inner + i);
      }
      const outputs = productsOf(hidden, down);
      for (let o = 0; o < out.width; o++) sum[o] += share * outputs(expert * out.width + o);
    }
    out.row(t).set(sum);
  }
}

/** Softmax over all experts, then the `topK` likeliest, ties to the lower one. */
export function route(
  logits: Float32Array,
  topK: number,
  normalize: boolean,
): { expert: number; share: number }[] {
  const max = logits.reduce((a, b) => Math.max(a, b));
  const powers = Array.from(logits, (logit) => Math.exp(logit - max));
  const experts = Array.from(logits.keys())
    .sort((a, b) => logits[b] - logits[a])
    .slice(0, topK);
  const considered = normalize ? experts.map((expert) => powers[expert]) : powers;
  const total = considered.reduce((a, b) => a + b);
  return experts.map((expert) => ({ expert, share: powers[expert] / total }));
}
