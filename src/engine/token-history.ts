/** The tokens a sequence has seen, each once, for the penalties; kept up token by token. */
export class TokenHistory {
  /** The distinct tokens, `length` of them. */
  tokens: Int32Array;
  /** How often each was generated; 0 if it stands in the prompt only. */
  counts: Int32Array;
  length = 0;
  readonly #at = new Map<number, number>();

  constructor(prompt: Int32Array) {
    this.tokens = new Int32Array(prompt.length + 64);
    this.counts = new Int32Array(prompt.length + 64);
    for (const token of prompt) this.#entry(token);
  }

  /** Counts a generated token. */
  add(token: number): void {
    this.counts[this.#entry(token)]++;
  }

  #entry(token: number): number {
    const known = this.#at.get(token);
    if (known !== undefined) return known;
    if (this.length === this.tokens.length) {
      this.tokens = grown(this.tokens);
      this.counts = grown(this.counts);
    }
    this.tokens[this.length] = token;
    this.#at.set(token, this.length);
    return this.length++;
  }
}

function grown(array: Int32Array): Int32Array {
  const larger = new Int32Array(2 * array.length);
  larger.set(array);
  return larger;
}
