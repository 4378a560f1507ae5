/** Causal attention over block tables, one query at a time. */
import type { AttentionOp } from '../../model/program.js';
import type { StepBatch } from '../backend.js';
import type { KvCache } from './kv-cache.js';
import type { Matrix } from './matrix.js';

/** Writes k and v of the step's tokens to the cache, then attends: see `AttentionOp`. */
export function attention(
  op: AttentionOp,
  batch: StepBatch,
  blockSize: number,
  cache: KvCache,
  { q, k, v, out }: { q: Matrix; k: Matrix; v: Matrix; out: Matrix },
) {
  for (let t = 0; t < batch.numTokens; t++) cache.write(batch.slots[t], k.row(t), v.row(t));
  for (let seq = 0; seq < batch.numSeqs; seq++) {
    const table = batch.blockTables.subarray(batch.blockTableStart[seq]);
    for (let t = batch.queryStart[seq]; t < batch.queryStart[seq + 1]; t++) {
      const position = batch.positions[t];
      const first = Math.max(0, position + 1 - (op.window ?? Infinity));
      const slots: number[] = [];
      for (let p = first; p <= position; p++) {
        slots.push(table[Math.floor(p / blockSize)] * blockSize + (p % blockSize));
      }
      attendOne(op, q.row(t), slots, cache, out.row(t));
    }
  }
}

/** `softmax(q·kᵀ * scale)·v` of one token over the given slots, all heads. */
function attendOne(
  { heads, kvHeads, headDim, scale }: AttentionOp,
  q: Float32Array,
  slots: readonly number[],
  cache: KvCache,
  out: Float32Array,
) {
  const scores = new Float64Array(slots.length);
  for (let head = 0; head < heads; head++) {
    const at = head * headDim;
    const kvAt = Math.floor(head / (heads / kvHeads)) * headDim;
    for (let i = 0; i < slots.length; i++) {
      const key = cache.key(slots[i]);
      let score = 0;
      for (let d = 0; d < headDim; d++) score += q[at + d] * key[kvAt + d];
      scores[i] = score * scale;
    }
    const max = scores.reduce((a, b) => Math.max(a, b));
    const sum = new Float64Array(headDim);
    let total = 0;
    for (let i = 0; i < slots.length; i++) {
      const power = Math.exp(scores[i] - max);
      const value = cache.value(slots[i]);
      total += power;
      for (let d = 0; d < headDim; d++) sum[d] += power * value[kvAt + d];
    }
    for (let d = 0; d < headDim; d++) out[at + d] = sum[d] / total;
  }
}
