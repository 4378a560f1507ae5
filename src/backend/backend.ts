/**
 * The contract between the engine and an executor. An executor is made once for a program and its
 * weights; after that one call of `step` is one iteration: it writes the KV cache, computes the
 * logits of the wanted rows, and samples from them.
 */
import type { Program } from '../model/program.js';
import type { WeightSource } from '../model/weights.js';
import type { KvDtype } from './kv-dtype.js';

/** What keys and values are kept in: `auto` is the type of the weight source. */
export const KV_CACHE_DTYPES = ['auto', 'int8', 'fp8'] as const;
/**
 * `int8`: symmetric, a scale for each head and token, of keys and of values; not with cuda. `fp8`:
 * e4m3, larger numbers become 448; only with cuda.
 */
export type KvCacheDtype = (typeof KV_CACHE_DTYPES)[number];

/** How an executor lays out its memory. All of it is allocated before `createRunner` returns. */
export interface RunnerOptions {
  /** Tokens per KV block, a multiple of 16. */
  blockSize: number;
  /** KV blocks to allocate. `kvBytesPerBlock` says what one costs. */
  numBlocks: number;
  /** Most tokens in one step. */
  maxTokens: number;
  /** Most sequences in one step. */
  maxSeqs: number;
  /** Longest context of one sequence in tokens. */
  maxModelLen: number;
  /** Keep the logits of every wanted row in `StepResult.logits` (tests, evaluation). Costs R x vocab floats. */
  keepLogits?: boolean;
  /** Default `auto`. */
  kvCacheDtype?: KvCacheDtype;
}

export interface Backend {
  readonly name: string;
  /** Bytes of KV cache of one block over all layers; `dtype` is that of the weight source or a KvCacheDtype. */
  kvBytesPerBlock(program: Program, blockSize: number, dtype: KvDtype): number;
  /** Bytes of the device's own memory; absent where the executor uses the machine's. */
  memory?(): { total: number; free: number };
  /**
   * What `createRunner` will allocate besides the KV cache, before anything is: `reserve` is what
   * the device's libraries take on top, a stated estimate. Absent where nobody needs to know.
   */
  fixedBytes?(
    program: Program,
    weights: WeightSource,
    limits: Omit<RunnerOptions, 'numBlocks'>,
  ): { weights: number; workspace: number; reserve: number };
  /** Loads the weights and allocates everything. `onProgress` is called with the share done, 0 to 1. */
  createRunner(
    program: Program,
    weights: WeightSource,
    options: RunnerOptions,
    onProgress?: (share: number) => void,
  ): ModelRunner;
  /**
   * This executor with runners that have a `profile`, which makes their steps longer. Absent where
   * all runners have one, or none can.
   */
  profiling?(): Backend;
}

export interface ModelRunner {
  /** What was allocated, in bytes. */
  readonly memory: { weights: number; workspace: number; kvCache: number };
  /** One line for the log: instruction set, threads, storage types. */
  readonly description: string;
  /**
   * Runs one step. The result's arrays belong to the runner and are valid until the next call.
   * Throws on a malformed batch (wrong lengths, token or block out of range) before any work;
   * rows whose logits are not finite come back as token -1 and disturb no other row.
   */
  step(batch: StepBatch): StepResult;
  /** Whether `submit` and `collect` are there: the next step can be prepared while one runs. */
  readonly overlaps?: true;
  /**
   * Starts a step and returns at once; what `batch` holds has been taken. At most two submitted
   * steps are uncollected. A token of the batch may be `-1 - r`: the one drawn in row r of the step
   * submitted before this one, which the host need not have seen. Throws as `step` does.
   */
  submit?(batch: StepBatch): void;
  /** Waits for the oldest uncollected step. The result is valid until the next call of `collect`. */
  collect?(): StepResult;
  /** Time since the runner was made, by kind of operation, of collected steps; see `Backend.profiling`. */
  profile?(): Record<string, { seconds: number; calls: number }>;
  /** Frees native memory; the runner cannot be used afterwards. */
  close(): void;
}

/**
 * One step over S sequences, T tokens and R wanted rows. Arrays may be longer than their
 * meaningful part, so that the engine can reuse them; the sizes here say how much counts.
 */
export interface StepBatch {
  numTokens: number;
  numSeqs: number;
  numRows: number;
  /** `[T]` token ids, sequence after sequence; `ModelRunner.submit` says what negative ones mean. */
  tokens: Int32Array;
  /** `[T]` position of each token in its sequence, from 0. */
  positions: Int32Array;
  /** `[T]` where each token's key and value go: `block * blockSize + offset`. */
  slots: Int32Array;
  /** `[S + 1]` tokens of sequence s are `queryStart[s] .. queryStart[s + 1]`. */
  queryStart: Int32Array;
  /** `[S]` keys in the cache after this step's tokens are written: last position + 1. */
  contextLens: Int32Array;
  /** Block ids of all sequences, one after the other; `blockTableStart` `[S + 1]` says whose. */
  blockTables: Int32Array;
  blockTableStart: Int32Array;
  /**
   * `[R]` index into the step's tokens of each row whose logits are wanted. Never descending; an
   * index stands n times in a row where n choices draw their first token from the same logits.
   * R is at most `maxTokens`.
   */
  rows: Int32Array;
  /** Pairs (source block, target block) to copy, in this order, before anything else (copy-on-write). */
  copies: Int32Array;
  numCopies: number;
  sampling: SamplingBatch;
}

/**
 * How each of the R rows becomes a token. Order of the operations, as in vLLM: bias, penalties,
 * temperature, min_p, top_k, top_p, draw. Logprobs are of the raw logits, before any of it.
 * The arithmetic is written down in docs/sampling.md.
 */
export interface SamplingBatch {
  /** `[R]` 0 is greedy: the largest logit after bias and penalties, lowest id among equals. */
  temperature: Float32Array;
  /** `[R]` 0 is off. */
  topK: Int32Array;
  /** `[R]` 1 is off. */
  topP: Float32Array;
  /** `[R]` 0 is off. */
  minP: Float32Array;
  /** `[2R]` low and high word of the row's seed: the key of the Philox4x32-10 generator. */
  seed: Uint32Array;
  /** `[R]` index of the draw: tokens generated so far. The counter of the generator. */
  draw: Uint32Array;
  /** `[R]` 1 is off. */
  repetitionPenalty: Float32Array;
  /** `[R]` 0 is off. */
  presencePenalty: Float32Array;
  /** `[R]` 0 is off. */
  frequencyPenalty: Float32Array;
  /**
   * `[R + 1]` tokens seen by row r are `historyTokens[historyStart[r] .. historyStart[r + 1]]`, each once;
   * `historyCounts` is how often it was generated, 0 if it stands in the prompt only.
   * Empty for rows without penalties.
   */
  historyStart: Int32Array;
  historyTokens: Int32Array;
  historyCounts: Int32Array;
  /** `[R + 1]` entries added to the logits: logit_bias, and -Infinity for banned tokens (min_tokens). */
  biasStart: Int32Array;
  biasTokens: Int32Array;
  biasValues: Float32Array;
  /** `[R]` -1: no logprobs; n >= 0: that of the token and of the n most likely. */
  logprobs: Int32Array;
  /** `[R]` -1: sample; otherwise report this token's logprob instead of drawing (prompt_logprobs). */
  targets: Int32Array;
}

/** Most alternatives `SamplingBatch.logprobs` may ask for. */
export const MAX_LOGPROBS = 20;

export interface StepResult {
  /** `[R]` the token drawn (or the target); -1 where the row's logits were not finite. */
  tokens: Int32Array;
  /** `[R]` natural log of the probability of that token, where asked for. */
  logprobs: Float32Array;
  /** `[R]` how many tokens were more likely, plus 1, where asked for. */
  ranks: Int32Array;
  /** `[R * MAX_LOGPROBS]` the most likely tokens, likeliest first; row r starts at `r * MAX_LOGPROBS`. */
  topTokens: Int32Array;
  topLogprobs: Float32Array;
  /** `[R * vocab]` raw logits, only with `keepLogits`. */
  logits?: Float32Array;
}
