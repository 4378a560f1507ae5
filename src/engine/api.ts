/**
 * The engine as its users see it: the HTTP server, the library's `LLM`, the benchmarks. The real
 * one (`startEngine`) runs in its own thread; tests may stand in their own.
 */
import type { SamplingParams } from './sampling-params.js';

export interface EngineRequest {
  /** Unique among the requests in flight. */
  id: string;
  prompt: ArrayLike<number>;
  params: SamplingParams;
  /** Lower is served first, with `schedulingPolicy: 'priority'`. Default 0. */
  priority?: number;
  /** Prefix blocks are shared only among requests with the same salt. */
  cacheSalt?: string;
  /** When the client meant to be served, in ms of `now()`. Default: when `generate` is called. */
  arrivalMs?: number;
}

export interface TokenLogprob {
  token: number;
  logprob: number;
  /** 1 is the likeliest. */
  rank: number;
  /** The likeliest tokens, likeliest first; as many as asked for. */
  top: { token: number; logprob: number }[];
}

/** `abort`: the caller gave up. `error`: this request alone failed; `Delta.error` says why. */
export type FinishReason = 'stop' | 'length' | 'abort' | 'error';

/** What one step added to one choice of a request. */
export interface Delta {
  /** Which of the `n` choices. */
  index: number;
  /** New tokens; empty only with a finish. A stop token that ends the choice is included, `finish.stopToken` names it. */
  tokens: number[];
  /** As long as `tokens`, if asked for. */
  logprobs?: TokenLogprob[];
  /** With the first delta, if asked for: one entry a prompt token, the first null. */
  promptLogprobs?: (TokenLogprob | null)[];
  /** With the choice's first token: when the step that sampled it had ended, in ms of `now()`. */
  firstToken?: number;
  finish?: Finish;
}

export interface Finish {
  reason: FinishReason;
  /** The stop token id that ended it, if one of `stopTokenIds` or the end-of-sequence token did. */
  stopToken?: number;
  error?: { code: string; message: string };
  timing: RequestTiming;
  promptTokens: number;
  /** Tokens of the prompt that came from the prefix cache. */
  cachedTokens: number;
}

/** Moments in ms of `now()`. 0 where it never came to that. */
export interface RequestTiming {
  arrival: number;
  /** First scheduled. */
  scheduled: number;
  firstToken: number;
  finished: number;
}

export interface EngineStats {
  /** Sequences in the running set. */
  running: number;
  /** Requests waiting, preempted ones included. */
  waiting: number;
  /** Share of KV blocks holding tokens of live sequences, 0 to 1. */
  kvUsage: number;
  freeBlocks: number;
  /** Counters since the start. */
  preemptions: number;
  prefixQueries: number;
  prefixHits: number;
  promptTokens: number;
  generationTokens: number;
  steps: number;
}

/** One step, for the metrics: handed out after it was published. */
export interface StepReport {
  stats: EngineStats;
  /** Tokens computed in the step. */
  tokens: number;
  /** Duration of the step in ms, and of the part outside the executor. */
  stepMs: number;
  hostMs: number;
  /** Of that: deciding what to compute, and laying it out for the executor. */
  scheduleMs: number;
  buildMs: number;
}

export interface EngineInfo {
  model: string;
  backend: string;
  maxModelLen: number;
  vocabSize: number;
  blockSize: number;
  numBlocks: number;
  maxNumSeqs: number;
  maxNumBatchedTokens: number;
  enablePrefixCaching: boolean;
  kvCacheBytes: number;
  dtype: string;
  /** Lines of the memory plan, for the log. */
  plan: string[];
}

export interface Engine {
  readonly info: EngineInfo;
  /**
   * Queues a request. Throws at once, without queueing, on invalid parameters
   * (InvalidParameterError), a request that can never fit (ContextLengthError), a full queue
   * (QueueFullError) or a closing engine (EngineClosedError). `onDelta` is called on the caller's
   * thread; every choice ends with exactly one delta that has `finish`.
   */
  generate(request: EngineRequest, onDelta: (delta: Delta) => void): void;
  /**
   * Ends all choices of a request, or only the one with `index`, with reason `abort`; their blocks
   * are free in the next step. Unknown ids and choices that have ended are ignored. The server ends
   * single choices: stop strings are found where text is made.
   */
  abort(id: string, index?: number): void;
  stats(): EngineStats;
  /** Calls `listener` after each step; returns the function that stops it. */
  onStep(listener: (report: StepReport) => void): () => void;
  /** Resolves when nothing is running or waiting any more. */
  idle(): Promise<void>;
  /** Stops the engine; what is still in flight ends with `abort`. */
  close(): Promise<void>;
  /** Rejects if the engine's thread dies; all requests in flight end with `error` before. */
  readonly failed: Promise<never>;
}

/** Milliseconds on a clock that all threads of the process share and that never goes back. */
export function now(): number {
  return Number(process.hrtime.bigint()) / 1e6;
}
