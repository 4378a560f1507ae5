/** A request in the engine, and its sequences: one for each choice. Plain data; others decide. */
import type { RequestTiming, TokenLogprob } from './api.js';
import type { SamplingParams } from './sampling-params.js';
import { choiceSeed } from './seed.js';
import { TokenHistory } from './token-history.js';

/** A request as it crosses to the engine's thread; checked before. */
export interface NewRequest {
  /** Number the caller knows the request by. */
  handle: number;
  prompt: Int32Array;
  params: SamplingParams;
  priority: number;
  cacheSalt: string;
  /** In ms of `now()`. */
  arrival: number;
}

export class Request {
  readonly handle: number;
  readonly prompt: Int32Array;
  readonly params: SamplingParams;
  readonly priority: number;
  readonly cacheSalt: string;
  /** Place among all requests in the order they came. */
  readonly order: number;
  readonly seed: bigint;
  readonly timing: RequestTiming;
  /** The choices that run; those not forked yet are missing. */
  readonly sequences: Sequence[] = [];
  /** Choices without a finish. */
  open: number;
  cachedTokens = 0;
  /** Choices aborted before they were forked off. */
  readonly unwanted = new Set<number>();
  /** Collected until the prompt is done, if asked for. */
  readonly promptLogprobs?: (TokenLogprob | null)[];
  #promptLogprobsTaken = false;

  constructor(request: NewRequest, order: number, seed: bigint) {
    this.handle = request.handle;
    this.prompt = request.prompt;
    this.params = request.params;
    this.priority = request.priority;
    this.cacheSalt = request.cacheSalt;
    this.order = order;
    this.seed = seed;
    this.timing = { arrival: request.arrival, scheduled: 0, firstToken: 0, finished: 0 };
    this.open = request.params.n;
    if (request.params.promptLogprobs !== undefined) this.promptLogprobs = [null];
  }

  /** The prompt's logprobs, if asked for, once. */
  takePromptLogprobs(): (TokenLogprob | null)[] | undefined {
    if (this.#promptLogprobsTaken) return undefined;
    this.#promptLogprobsTaken = true;
    return this.promptLogprobs;
  }
}

export class Sequence {
  readonly request: Request;
  /** Which choice of the request. */
  readonly index: number;
  /**
   * Prompt and generated tokens, `numTokens` of them. The last `numExpected` are placeholders for
   * tokens that steps in flight will draw: `-1 - row` of the step, as `ModelRunner.submit` has it.
   */
  tokens: Int32Array;
  numTokens: number;
  numExpected = 0;
  /** Most tokens it can come to: prompt + max_tokens, or the context's length. */
  readonly maxTokens: number;
  /** Tokens whose keys and values are in the cache, or will be when the steps in flight are done. */
  numComputed = 0;
  /** Tokens to compute in the step being made. */
  scheduled = 0;
  /** Choices that will be forked off when the prompt is computed. */
  pendingForks: number;
  finished = false;
  preemptions = 0;

  /** Block table: `numBlocks` block ids. */
  blocks = new Int32Array(0);
  numBlocks = 0;
  /** Full blocks that passed through the prefix index, and the content id of the last. */
  numIndexed = 0;
  contentId = 0;

  /** Key of the sampler's generator. */
  readonly seedLow: number;
  readonly seedHigh: number;
  /** Only with penalties. */
  readonly history?: TokenHistory;

  constructor(request: Request, index: number, maxModelLen: number) {
    const { params, prompt } = request;
    this.request = request;
    this.index = index;
    this.numTokens = prompt.length;
    this.maxTokens = Math.min(maxModelLen, prompt.length + (params.maxTokens ?? maxModelLen));
    this.tokens = new Int32Array(Math.min(this.maxTokens, prompt.length + 64));
    this.tokens.set(prompt);
    this.pendingForks = index === 0 ? params.n - 1 : 0;
    const seed = choiceSeed(request.seed, index);
    this.seedLow = Number(seed & 0xffffffffn);
    this.seedHigh = Number(seed >> 32n);
    if (
      params.repetitionPenalty !== 1 ||
      params.presencePenalty !== 0 ||
      params.frequencyPenalty !== 0
    ) {
      this.history = new TokenHistory(prompt);
    }
  }

  get numGenerated(): number {
    return this.numTokens - this.request.prompt.length;
  }

  /** Tokens still to compute: 1 while decoding. */
  get remaining(): number {
    return this.numTokens - this.numComputed;
  }

  /** Places among `maxNumSeqs`: its own and those of the choices to fork off. */
  get seats(): number {
    return 1 + this.pendingForks;
  }

  /** Whether the prefix may come from the cache: not if the logits of its tokens are still wanted. */
  get readsPrefixCache(): boolean {
    const { promptLogprobs, prompt } = this.request;
    return promptLogprobs === undefined || promptLogprobs.length >= prompt.length;
  }

  /**
   * Whether it must not be scheduled before the token in flight is known: the token counts in the
   * penalties of the next draw, or other choices fork off with it, or it is the last one.
   */
  get mustWait(): boolean {
    if (this.numExpected === 0) return false;
    return this.history !== undefined || this.pendingForks > 0 || this.numTokens >= this.maxTokens;
  }

  /** Appends a placeholder for the token drawn in `row` of the step that is being submitted. */
  expect(row: number): void {
    if (this.numTokens === this.tokens.length) {
      const larger = new Int32Array(Math.min(this.maxTokens, 2 * this.tokens.length));
      larger.set(this.tokens);
      this.tokens = larger;
    }
    this.tokens[this.numTokens++] = -1 - row;
    this.numExpected++;
  }

  /** Replaces the oldest placeholder by the token; returns its position. */
  settle(token: number): number {
    const position = this.numTokens - this.numExpected--;
    this.tokens[position] = token;
    this.history?.add(token);
    return position;
  }

  /** Takes back the only placeholder: its token will be drawn again. */
  forgo(): void {
    this.numTokens--;
    this.numExpected--;
  }

  /** Makes room for a block table of `count` entries. */
  reserveBlocks(count: number): void {
    if (count <= this.blocks.length) return;
    const larger = new Int32Array(Math.max(count, 2 * this.blocks.length));
    larger.set(this.blocks);
    this.blocks = larger;
  }
}
