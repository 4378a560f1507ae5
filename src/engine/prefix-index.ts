/**
 * Finds full KV blocks by what they hold. The content of a block is its tokens and everything
 * before them, so an entry is (id of the content before, tokens), and gets a new id of its own: the
 * chain of vLLM's block hashes, with numbers that are never reused in place of hashes.
 *
 * A hash only chooses the bucket; a hit is compared in full, content id and every token. So a
 * collision costs a comparison and never gives another prompt's keys and values. Comparing 16
 * integers is cheaper than a cryptographic hash, and 64 bytes a block are nothing beside its KV. The
 * hash is keyed by a random seed, so that nobody can fill one bucket on purpose.
 */
export class PrefixIndex {
  readonly #blockSize: number;
  readonly #seed: number;
  readonly #mask: number;
  /** First block of each bucket, -1 where empty; `#next` leads on. */
  readonly #heads: Int32Array;
  readonly #next: Int32Array;
  readonly #bucket: Int32Array;
  /** Content ids are whole numbers from 1, exact up to 2^53; 0: the block is not in the index. */
  readonly #id: Float64Array;
  readonly #parent: Float64Array;
  readonly #tokens: Int32Array;
  /** Content ids of the empty prefix, one a salt. */
  readonly #roots = new Map<string, number>();
  #lastId = 0;

  constructor(numBlocks: number, blockSize: number, seed: number) {
    const buckets = 2 ** Math.ceil(Math.log2(Math.max(2, numBlocks)));
    this.#blockSize = blockSize;
    this.#seed = seed | 0;
    this.#mask = buckets - 1;
    this.#heads = new Int32Array(buckets).fill(-1);
    this.#next = new Int32Array(numBlocks);
    this.#bucket = new Int32Array(numBlocks);
    this.#id = new Float64Array(numBlocks);
    this.#parent = new Float64Array(numBlocks);
    this.#tokens = new Int32Array(numBlocks * blockSize);
  }

  /**
   * The content id that chains with this salt start from. Only as many salts as there are blocks
   * are remembered, the latest used: more cannot have cached anything.
   */
  root(salt: string): number {
    const id = this.#roots.get(salt) ?? ++this.#lastId;
    this.#roots.delete(salt);
    this.#roots.set(salt, id);
    if (this.#roots.size > this.#next.length) {
      this.#roots.delete(this.#roots.keys().next().value!);
    }
    return id;
  }

  has(block: number): boolean {
    return this.#id[block] !== 0;
  }

  /** The content id of a block in the index. */
  id(block: number): number {
    return this.#id[block];
  }

  /** The block holding `tokens[start .. start + blockSize]` after the content `parent`, or -1. */
  find(parent: number, tokens: Int32Array, start: number): number {
    const bucket = this.#hash(parent, tokens, start);
    for (let block = this.#heads[bucket]; block !== -1; block = this.#next[block]) {
      if (this.#parent[block] === parent && this.#holds(block, tokens, start)) return block;
    }
    return -1;
  }

  /** Enters a block whose content was not found; returns its content id. */
  insert(block: number, parent: number, tokens: Int32Array, start: number): number {
    const bucket = this.#hash(parent, tokens, start);
    const own = block * this.#blockSize;
    for (let i = 0; i < this.#blockSize; i++) this.#tokens[own + i] = tokens[start + i];
    this.#parent[block] = parent;
    this.#bucket[block] = bucket;
    this.#next[block] = this.#heads[bucket];
    this.#heads[bucket] = block;
    this.#id[block] = ++this.#lastId;
    return this.#lastId;
  }

  /** Takes a block out; its children are found no more and leave by age. */
  remove(block: number): void {
    const bucket = this.#bucket[block];
    if (this.#heads[bucket] === block) {
      this.#heads[bucket] = this.#next[block];
    } else {
      let before = this.#heads[bucket];
      while (this.#next[before] !== block) before = this.#next[before];
      this.#next[before] = this.#next[block];
    }
    this.#id[block] = 0;
  }

  #holds(block: number, tokens: Int32Array, start: number): boolean {
    const own = block * this.#blockSize;
    for (let i = 0; i < this.#blockSize; i++) {
      if (this.#tokens[own + i] !== tokens[start + i]) return false;
    }
    return true;
  }

  /** MurmurHash3's 32-bit mixing (Austin Appleby, public domain) over parent and tokens. */
  #hash(parent: number, tokens: Int32Array, start: number): number {
    let hash = mix(mix(this.#seed, parent | 0), (parent / 4294967296) | 0);
    for (let i = 0; i < this.#blockSize; i++) hash = mix(hash, tokens[start + i]);
    hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
    hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35);
    return (hash ^ (hash >>> 16)) & this.#mask;
  }
}

function mix(hash: number, value: number): number {
  let k = Math.imul(value, 0xcc9e2d51);
  k = Math.imul((k << 15) | (k >>> 17), 0x1b873593);
  hash ^= k;
  return (Math.imul((hash << 13) | (hash >>> 19), 5) + 0xe6546b64) | 0;
}
