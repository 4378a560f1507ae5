/**
 * An engine that computes nothing: its tokens are scripted. It keeps the contract of
 * src/engine/api.ts, so that the server can be tested without a model, and its failures at will.
 */
import type {
  Delta,
  Engine,
  EngineInfo,
  EngineRequest,
  EngineStats,
  FinishReason,
  StepReport,
  TokenLogprob,
} from '../../src/engine/api.js';
import { now } from '../../src/engine/api.js';
import { EngineClosedError, QueueFullError } from '../../src/errors.js';

export interface FakeEngineOptions {
  /**
   * The tokens of one choice; after the last comes the end-of-sequence token, unless ignored.
   * Default: the prompt's tokens over and over, without end.
   */
  script?: (request: EngineRequest, index: number) => Iterable<number>;
  /** The engine fails a request with this message instead of producing its token `at`. */
  failure?: (request: EngineRequest) => { at: number; message: string } | undefined;
  /** Milliseconds from one step to the next; 0 (default) is as fast as the loop turns. */
  stepMs?: number;
  /** Sequences at once; further requests wait. */
  maxNumSeqs?: number;
  /** Requests waiting before `generate` throws QueueFullError. */
  maxQueued?: number;
  info?: Partial<EngineInfo>;
}

export const FAKE_EOS = 256;
const BLOCK_SIZE = 16;

interface Running {
  request: EngineRequest;
  index: number;
  onDelta: (delta: Delta) => void;
  tokens: Iterator<number>;
  count: number;
  arrival: number;
  scheduled: number;
  firstToken: number;
}

export class FakeEngine implements Engine {
  readonly info: EngineInfo;
  readonly failed: Promise<never>;
  /** Every request that was accepted. */
  readonly requests: EngineRequest[] = [];
  /** Calls of `abort`. */
  readonly aborts: [id: string, index?: number][] = [];
  /** No step is made while true. */
  paused = false;
  readonly #options: FakeEngineOptions;
  readonly #listeners = new Set<(report: StepReport) => void>();
  #running: Running[] = [];
  #waiting: Running[] = [];
  #fail!: (error: Error) => void;
  #closed = false;
  #scheduled = false;
  #steps = 0;
  #promptTokens = 0;
  #generationTokens = 0;
  #idle: (() => void)[] = [];

  constructor(options: FakeEngineOptions = {}) {
    this.#options = options;
    this.info = {
      model: 'fake',
      backend: 'fake',
      maxModelLen: 4096,
      vocabSize: 257,
      blockSize: BLOCK_SIZE,
      numBlocks: 65_536,
      maxNumSeqs: options.maxNumSeqs ?? 2048,
      maxNumBatchedTokens: 8192,
      enablePrefixCaching: true,
      kvCacheBytes: 2 ** 20,
      dtype: 'float32',
      plan: [],
      ...options.info,
    };
    this.failed = new Promise((_, reject) => {
      this.#fail = reject;
    });
    this.failed.catch(() => {});
  }

  generate(request: EngineRequest, onDelta: (delta: Delta) => void): void {
    if (this.#closed) throw new EngineClosedError('The engine is closed');
    if (this.#waiting.length >= (this.#options.maxQueued ?? Infinity)) {
      throw new QueueFullError('The queue is full', 7);
    }
    this.requests.push(request);
    for (let index = 0; index < request.params.n; index++) {
      const tokens = this.#options.script?.(request, index) ?? repeat(request.prompt);
      const arrival = request.arrivalMs ?? now();
      this.#waiting.push({
        ...{ request, index, onDelta, tokens: tokens[Symbol.iterator](), count: 0 },
        ...{ arrival, scheduled: 0, firstToken: 0 },
      });
    }
    this.#schedule();
  }

  abort(id: string, index?: number): void {
    this.aborts.push([id, index]);
    const hit = (item: Running): boolean =>
      item.request.id === id && (index === undefined || item.index === index);
    const ended = [...this.#running, ...this.#waiting].filter(hit);
    this.#running = this.#running.filter((item) => !hit(item));
    this.#waiting = this.#waiting.filter((item) => !hit(item));
    // As in the real engine, the answer comes later, never within the call.
    setImmediate(() => {
      for (const item of ended) this.#emit(item, [], 'abort');
    });
    this.#schedule();
  }

  stats(): EngineStats {
    const blocks = this.#running.reduce((sum, item) => {
      return sum + Math.ceil((item.request.prompt.length + item.count) / BLOCK_SIZE);
    }, 0);
    return {
      running: this.#running.length,
      waiting: this.#waiting.length,
      kvUsage: blocks / this.info.numBlocks,
      freeBlocks: this.info.numBlocks - blocks,
      preemptions: 0,
      prefixQueries: this.#promptTokens,
      prefixHits: 0,
      promptTokens: this.#promptTokens,
      generationTokens: this.#generationTokens,
      steps: this.#steps,
    };
  }

  onStep(listener: (report: StepReport) => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  idle(): Promise<void> {
    if (this.#running.length + this.#waiting.length === 0) return Promise.resolve();
    return new Promise((resolve) => this.#idle.push(resolve));
  }

  async close(): Promise<void> {
    this.#closed = true;
    const all = [...this.#running, ...this.#waiting];
    this.#running = [];
    this.#waiting = [];
    for (const item of all) this.#emit(item, [], 'abort');
  }

  /** The engine's thread dies: all requests end with an error. */
  die(error: Error): void {
    this.#closed = true;
    const all = [...this.#running, ...this.#waiting];
    this.#running = [];
    this.#waiting = [];
    for (const item of all) this.#emit(item, [], 'error', { message: error.message });
    this.#fail(error);
  }

  resume(): void {
    this.paused = false;
    this.#schedule();
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    const run = (): void => {
      this.#scheduled = false;
      if (!this.paused && !this.#closed) this.#step();
    };
    if (this.#options.stepMs) setTimeout(run, this.#options.stepMs);
    else setImmediate(run);
  }

  #step(): void {
    let computed = 0;
    while (this.#waiting.length > 0 && this.#running.length < this.info.maxNumSeqs) {
      const item = this.#waiting.shift() as Running;
      item.scheduled = now();
      if (item.index === 0) {
        this.#promptTokens += item.request.prompt.length;
        computed += item.request.prompt.length;
      }
      this.#running.push(item);
    }
    this.#steps++;
    for (const item of [...this.#running]) {
      if (!this.#running.includes(item)) continue;
      computed++;
      this.#advance(item);
    }
    const report = {
      stats: this.stats(),
      tokens: computed,
      stepMs: 1,
      hostMs: 0.1,
      scheduleMs: 0,
      buildMs: 0,
    };
    for (const listener of this.#listeners) listener(report);
    if (this.#running.length + this.#waiting.length > 0) this.#schedule();
    else for (const resolve of this.#idle.splice(0)) resolve();
  }

  #advance(item: Running): void {
    const { request } = item;
    const { params } = request;
    const failure = this.#options.failure?.(request);
    if (failure && failure.at === item.count) {
      this.#end(item, [], 'error', { message: failure.message });
      return;
    }
    const next = item.tokens.next();
    const token = next.done ? FAKE_EOS : next.value;
    item.count++;
    this.#generationTokens++;
    if (item.count === 1) item.firstToken = now();
    const stops = params.stopTokenIds.includes(token) || (token === FAKE_EOS && !params.ignoreEos);
    if (stops && item.count > params.minTokens)
      this.#end(item, [token], 'stop', { stopToken: token });
    else if (item.count === params.maxTokens) this.#end(item, [token], 'length');
    else this.#emit(item, [token]);
  }

  #end(
    item: Running,
    tokens: number[],
    reason: FinishReason,
    more: { stopToken?: number; message?: string } = {},
  ): void {
    this.#running.splice(this.#running.indexOf(item), 1);
    this.#emit(item, tokens, reason, more);
  }

  #emit(
    item: Running,
    tokens: number[],
    reason?: FinishReason,
    { stopToken, message }: { stopToken?: number; message?: string } = {},
  ): void {
    const { request, index, arrival, scheduled, firstToken } = item;
    const { logprobs, promptLogprobs } = request.params;
    const delta: Delta = { index, tokens };
    if (logprobs !== undefined) delta.logprobs = tokens.map((id) => fakeLogprob(id, logprobs));
    if (promptLogprobs !== undefined && item.count === 1) {
      delta.promptLogprobs = Array.from(request.prompt, (id, i) =>
        i === 0 ? null : fakeLogprob(id, promptLogprobs),
      );
    }
    if (item.count === 1) delta.firstToken = firstToken;
    if (reason) {
      delta.finish = {
        reason,
        stopToken,
        error: message === undefined ? undefined : { code: 'generation_failed', message },
        timing: { arrival, scheduled, firstToken, finished: now() },
        promptTokens: request.prompt.length,
        cachedTokens: Math.floor((request.prompt.length - 1) / BLOCK_SIZE) * BLOCK_SIZE,
      };
    }
    item.onDelta(delta);
  }
}

/** Token `id` has rank 2 and log probability -id/100; the tokens before it are the likelier ones. */
export function fakeLogprob(id: number, top: number): TokenLogprob {
  const one = (token: number) => ({ token, logprob: -token / 100 });
  return {
    ...one(id),
    rank: 2,
    top: Array.from({ length: top }, (_, i) => one((id + i + 255) % 256)),
  };
}

function* repeat(prompt: ArrayLike<number>): Generator<number> {
  for (let i = 0; ; i = (i + 1) % prompt.length) yield prompt[i];
}
