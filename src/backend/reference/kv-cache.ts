/** The paged KV cache of one layer: keys and values by slot, `slot = block * blockSize + offset`. */
import { roundTo } from '../../model/half.js';
import type { DType } from '../../model/weights.js';
import { roundToEven } from './round.js';

export class KvCache {
  /** `[slots, width]`, width = kvHeads * headDim, as the numbers that storage leaves. */
  readonly #keys: Float32Array;
  readonly #values: Float32Array;
  readonly #width: number;
  readonly #headDim: number;
  readonly #dtype: DType | 'int8';

  constructor(slots: number, kvHeads: number, headDim: number, dtype: DType | 'int8') {
    this.#width = kvHeads * headDim;
    this.#headDim = headDim;
    this.#keys = new Float32Array(slots * this.#width);
    this.#values = new Float32Array(slots * this.#width);
    this.#dtype = dtype;
  }

  /** Stores a token's key and value, rounded to the storage type. */
  write(slot: number, key: Float32Array, value: Float32Array): void {
    this.#store(this.key(slot), key);
    this.#store(this.value(slot), value);
  }

  key(slot: number): Float32Array {
    return this.#keys.subarray(slot * this.#width, (slot + 1) * this.#width);
  }

  value(slot: number): Float32Array {
    return this.#values.subarray(slot * this.#width, (slot + 1) * this.#width);
  }

  /** Copies `count` slots. */
  copy(from: number, to: number, count: number): void {
    for (const data of [this.#keys, this.#values]) {
      data.copyWithin(to * this.#width, from * this.#width, (from + count) * this.#width);
    }
  }

  #store(to: Float32Array, from: Float32Array): void {
    for (let at = 0; at < this.#width; at += this.#headDim) {
      const head = from.subarray(at, at + this.#headDim);
      if (this.#dtype === 'int8') to.set(roundToInt8(head), at);
      else for (let i = 0; i < head.length; i++) to[at + i] = roundTo(this.#dtype, head[i]);
    }
  }
}

/** Symmetric int8, one scale a head: what is left of the numbers. */
function roundToInt8(head: Float32Array): Float32Array {
  const largest = head.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  if (!Number.isFinite(largest)) return head.map(() => Number.NaN);
  if (largest < Math.fround(1e-30)) return head.map(() => 0);
  const inverse = Math.fround(127 / largest);
  const scale = Math.fround(largest / 127);
  return head.map((value) => scale * roundToEven(Math.fround(value * inverse)));
}
