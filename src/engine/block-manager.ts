/**
 * Who owns which KV block. Blocks have reference counts: choices of one request and requests with a
 * common prefix share them. A block nobody references keeps its content until it is reused, least
 * recently used first. Blocks only: no tokens are computed and no memory is touched here.
 */
import { FreeList } from './free-list.js';
import { PrefixIndex } from './prefix-index.js';
import type { Sequence } from './sequence.js';

export interface BlockManagerOptions {
  numBlocks: number;
  /** Tokens a block. */
  blockSize: number;
  enablePrefixCaching: boolean;
  /** Key of the prefix index's hash; random in production. */
  hashSeed?: number;
}

export class BlockManager {
  readonly numBlocks: number;
  readonly blockSize: number;
  /** Pairs (source, target) to copy before the step, since `copies` was last emptied. */
  readonly copies: number[] = [];
  readonly #references: Int32Array;
  readonly #free: FreeList;
  readonly #index?: PrefixIndex;
  /** The blocks the latest lookup found. */
  readonly #found: Int32Array;

  constructor({ numBlocks, blockSize, enablePrefixCaching, hashSeed = 0 }: BlockManagerOptions) {
    this.numBlocks = numBlocks;
    this.blockSize = blockSize;
    this.#references = new Int32Array(numBlocks);
    this.#free = new FreeList(numBlocks);
    this.#found = new Int32Array(numBlocks);
    if (enablePrefixCaching) this.#index = new PrefixIndex(numBlocks, blockSize, hashSeed);
  }

  /** Blocks nobody references, cached content or not. */
  get numFree(): number {
    return this.#free.length;
  }

  /** Blocks that hold `tokens` tokens. */
  blocksFor(tokens: number): number {
    return Math.ceil(tokens / this.blockSize);
  }

  /** Free blocks that `grow(sequence, end)` would take. */
  missing(sequence: Sequence, end: number): number {
    const fresh = Math.max(0, this.blocksFor(end) - sequence.numBlocks);
    return this.#writesShared(sequence) ? fresh + 1 : fresh;
  }

  /**
   * Gives a sequence without blocks the cached blocks of its prefix, if then `needed` blocks in all,
   * beside `reserved` free ones for others, can be had; otherwise changes nothing and returns false.
   * At least the last token is left to compute, because its logits are wanted.
   */
  admit(sequence: Sequence, needed: number, reserved: number): boolean {
    const hits = sequence.readsPrefixCache ? this.#lookUp(sequence) : 0;
    const cached = Math.min(hits * this.blockSize, sequence.numTokens - 1);
    let taken = 0;
    let sharesLast = false;
    for (let i = 0; i < hits; i++) {
      if (this.#references[this.#found[i]] === 0) taken++;
      else if (i === hits - 1) sharesLast = hits * this.blockSize > cached;
    }
    const fresh = needed - hits + (sharesLast ? 1 : 0);
    if (taken + fresh + reserved > this.#free.length) return false;

    sequence.reserveBlocks(needed);
    for (let i = 0; i < hits; i++) {
      const block = this.#found[i];
      if (this.#references[block]++ === 0) this.#free.remove(block);
      sequence.blocks[i] = block;
    }
    sequence.numBlocks = hits;
    sequence.numComputed = cached;
    sequence.numIndexed = hits;
    if (this.#index) {
      sequence.contentId =
        hits > 0
          ? this.#index.id(this.#found[hits - 1])
          : this.#index.root(sequence.request.cacheSalt);
    }
    return true;
  }

  /**
   * Makes the positions `numComputed .. end` writable: appends blocks, and replaces the block that
   * would be written first by a copy if others reference it too. Returns false, changing nothing,
   * if too few blocks are free.
   */
  grow(sequence: Sequence, end: number): boolean {
    if (this.missing(sequence, end) > this.#free.length) return false;
    if (this.#writesShared(sequence)) {
      const at = Math.floor(sequence.numComputed / this.blockSize);
      const source = sequence.blocks[at];
      const target = this.#take();
      this.#references[source]--;
      this.copies.push(source, target);
      sequence.blocks[at] = target;
    }
    const count = this.blocksFor(end);
    if (count > sequence.numBlocks) {
      sequence.reserveBlocks(count);
      while (sequence.numBlocks < count) sequence.blocks[sequence.numBlocks++] = this.#take();
    }
    return true;
  }

  /**
   * Enters the blocks that are full before position `end` into the prefix index. Call when the step
   * that wrote them has succeeded: by then every token before `end` is known. Of two blocks with the
   * same content only the first is entered; the chain goes on from it.
   */
  commit(sequence: Sequence, end: number): void {
    const index = this.#index;
    if (!index) return;
    while ((sequence.numIndexed + 1) * this.blockSize <= end) {
      const start = sequence.numIndexed * this.blockSize;
      const known = index.find(sequence.contentId, sequence.tokens, start);
      sequence.contentId =
        known === -1
          ? index.insert(
              sequence.blocks[sequence.numIndexed],
              sequence.contentId,
              sequence.tokens,
              start,
            )
          : index.id(known);
      sequence.numIndexed++;
    }
  }

  /** Lets `child`, a sequence without blocks, share all blocks of `parent`, a partial last one included. */
  fork(parent: Sequence, child: Sequence): void {
    child.reserveBlocks(parent.numBlocks);
    for (let i = 0; i < parent.numBlocks; i++) {
      child.blocks[i] = parent.blocks[i];
      this.#references[parent.blocks[i]]++;
    }
    child.numBlocks = parent.numBlocks;
    child.numComputed = parent.numComputed;
    child.numIndexed = parent.numIndexed;
    child.contentId = parent.contentId;
  }

  /** Gives all blocks of a sequence back; what is cached of them stays findable until reused. */
  free(sequence: Sequence): void {
    // The end of a prefix goes first: it is useless without its beginning, not the other way round.
    for (let i = sequence.numBlocks - 1; i >= 0; i--) {
      const block = sequence.blocks[i];
      if (--this.#references[block] > 0) continue;
      if (this.#index?.has(block)) this.#free.pushLast(block);
      else this.#free.pushFirst(block);
    }
    sequence.numBlocks = 0;
    sequence.numComputed = 0;
    sequence.numIndexed = 0;
  }

  /**
   * Makes the content of a sequence's blocks unfindable, because it cannot be trusted; of one that
   * was preempted before that was known, what the index has of it.
   */
  forget(sequence: Sequence): void {
    const index = this.#index;
    if (!index) return;
    const gone = sequence.numBlocks === 0;
    const blocks = gone ? this.#found : sequence.blocks;
    const count = gone ? this.#lookUp(sequence) : sequence.numBlocks;
    for (let i = 0; i < count; i++) if (index.has(blocks[i])) index.remove(blocks[i]);
  }

  /** Throws unless the counts are exactly those of `sequences` and every other block is free. For tests. */
  verify(sequences: Iterable<Sequence>): void {
    const expected = new Int32Array(this.numBlocks);
    for (const sequence of sequences) {
      for (let i = 0; i < sequence.numBlocks; i++) expected[sequence.blocks[i]]++;
    }
    let free = 0;
    for (const block of this.#free) {
      free++;
      if (expected[block] !== 0) throw new Error(`block ${block} is free and in use`);
      expected[block] = -1;
    }
    if (free !== this.#free.length) throw new Error(`${free} free blocks, not ${this.numFree}`);
    for (let block = 0; block < this.numBlocks; block++) {
      if (expected[block] === 0) throw new Error(`block ${block} is lost`);
      if (Math.max(0, expected[block]) !== this.#references[block]) {
        throw new Error(
          `block ${block} has ${expected[block]} owners, but counts ${this.#references[block]}`,
        );
      }
    }
  }

  /** Whether the next write goes to a block with other owners. Only ever the block of `numComputed` can. */
  #writesShared(sequence: Sequence): boolean {
    const at = Math.floor(sequence.numComputed / this.blockSize);
    return at < sequence.numBlocks && this.#references[sequence.blocks[at]] > 1;
  }

  /** Fills `#found` with the cached blocks of the sequence's prefix; returns how many there are. */
  #lookUp(sequence: Sequence): number {
    const index = this.#index;
    if (!index) return 0;
    const full = Math.floor(sequence.numTokens / this.blockSize);
    let content = index.root(sequence.request.cacheSalt);
    let hits = 0;
    while (hits < full) {
      const block = index.find(content, sequence.tokens, hits * this.blockSize);
      if (block === -1) break;
      this.#found[hits++] = block;
      content = index.id(block);
    }
    return hits;
  }

  #take(): number {
    const block = this.#free.shift();
    if (this.#index?.has(block)) this.#index.remove(block);
    this.#references[block] = 1;
    return block;
  }
}
