/**
 * The unreferenced blocks in the order they will be reused, as a doubly linked list over block
 * numbers: every operation is O(1) and allocates nothing.
 */
export class FreeList {
  readonly #next: Int32Array;
  readonly #previous: Int32Array;
  /** The list is a ring through this extra node. */
  readonly #ends: number;
  #length = 0;

  /** Starts with all blocks, 0 first. */
  constructor(numBlocks: number) {
    this.#ends = numBlocks;
    this.#next = new Int32Array(numBlocks + 1);
    this.#previous = new Int32Array(numBlocks + 1);
    this.#next[numBlocks] = numBlocks;
    this.#previous[numBlocks] = numBlocks;
    for (let block = 0; block < numBlocks; block++) this.pushLast(block);
  }

  get length(): number {
    return this.#length;
  }

  /** Takes the block that is to be reused first. The list must not be empty. */
  shift(): number {
    const block = this.#next[this.#ends];
    this.remove(block);
    return block;
  }

  /** `block` must be in the list. */
  remove(block: number): void {
    const next = this.#next[block];
    const previous = this.#previous[block];
    this.#next[previous] = next;
    this.#previous[next] = previous;
    this.#length--;
  }

  pushFirst(block: number): void {
    this.#insertAfter(this.#ends, block);
  }

  pushLast(block: number): void {
    this.#insertAfter(this.#previous[this.#ends], block);
  }

  /** The blocks in order, for checks. */
  *[Symbol.iterator](): Generator<number> {
    for (let block = this.#next[this.#ends]; block !== this.#ends; block = this.#next[block]) {
      yield block;
    }
  }

  #insertAfter(previous: number, block: number): void {
    const next = this.#next[previous];
    this.#next[previous] = block;
    this.#previous[block] = previous;
    this.#next[block] = next;
    this.#previous[next] = block;
    this.#length++;
  }
}
