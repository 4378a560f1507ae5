/**
 * Sequences sorted by the order they are served in. An array with binary search: insertion moves
 * pointers in one memmove, which at thousands of entries is still microseconds, and new arrivals
 * mostly go to the end.
 */
import type { ServiceOrder } from './policy.js';
import type { Sequence } from './sequence.js';

export class SortedSequences {
  readonly #order: ServiceOrder;
  /** First served last, so that taking it moves nothing. */
  readonly #items: Sequence[] = [];

  constructor(order: ServiceOrder) {
    this.#order = order;
  }

  get length(): number {
    return this.#items.length;
  }

  /** The one served first. */
  get first(): Sequence | undefined {
    return this.#items[this.#items.length - 1];
  }

  /** In the order they are served in. */
  *[Symbol.iterator](): Iterator<Sequence> {
    for (let i = this.#items.length - 1; i >= 0; i--) yield this.#items[i];
  }

  insert(sequence: Sequence): void {
    this.#items.splice(this.#position(sequence), 0, sequence);
  }

  /** Takes the first out. */
  shift(): Sequence | undefined {
    return this.#items.pop();
  }

  /** Takes a sequence out if it is there; says whether it was. */
  delete(sequence: Sequence): boolean {
    const at = this.#position(sequence);
    if (this.#items[at] !== sequence) return false;
    this.#items.splice(at, 1);
    return true;
  }

  /** Where `sequence` stands or belongs: before it are only those served later. */
  #position(sequence: Sequence): number {
    let low = 0;
    let high = this.#items.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#order(this.#items[middle], sequence) > 0) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
