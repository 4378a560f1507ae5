/**
 * The engine without its thread: requests in, steps, deltas out. Everything is synchronous, and
 * nothing here knows where the requests come from. A step is
 *
 *     schedule -> build the batch -> run it -> apply the sampled tokens -> report
 *
 * @example
 * const core = new EngineCore(runner, options);
 * core.add(request);
 * while (core.hasWork) readDeltas(core.step(), (handle, delta) => ...);
 */
import { MAX_LOGPROBS, type ModelRunner, type StepResult } from '../backend/backend.js';
import { GenerationError, MillraceError } from '../errors.js';
import {
  type EngineStats,
  type Finish,
  type FinishReason,
  now,
  type StepReport,
  type TokenLogprob,
} from './api.js';
import { BlockManager } from './block-manager.js';
import type { Batching, KvReservation, SchedulingPolicy } from './policy.js';
import { Scheduler } from './scheduler.js';
import { randomSeed } from './seed.js';
import { type NewRequest, Request, Sequence } from './sequence.js';
import { promptRows, StepBatchBuilder } from './step-batch.js';
import { DeltaWriter, deltaDetail, type StepOutput } from './step-output.js';

export interface EngineCoreOptions {
  /** As the runner was made with. */
  numBlocks: number;
  blockSize: number;
  /** At most `numBlocks * blockSize`. */
  maxModelLen: number;
  maxNumSeqs: number;
  maxNumBatchedTokens: number;
  enablePrefixCaching: boolean;
  schedulingPolicy: SchedulingPolicy;
  /** Default `continuous`. */
  batching?: Batching;
  /** Default true. */
  enableChunkedPrefill?: boolean;
  /** Default `by-block`. */
  kvReservation?: KvReservation;
  /** Tokens that end a sequence unless it has `ignoreEos`. */
  eosTokenIds: readonly number[];
  /** Key of the prefix index's hash. */
  hashSeed?: number;
}

export class EngineCore {
  readonly #runner: ModelRunner;
  readonly #maxModelLen: number;
  readonly #eos: ReadonlySet<number>;
  readonly #blocks: BlockManager;
  readonly #scheduler: Scheduler;
  readonly #builder: StepBatchBuilder;
  readonly #requests = new Map<number, Request>();
  readonly #writer = new DeltaWriter();
  #started: number[] = [];
  #arrivals = 0;
  #promptTokens = 0;
  #generationTokens = 0;
  #steps = 0;
  /** Of the current step: tokens computed, time in the runner and in making its batches. */
  #stepTokens = 0;
  #runMs = 0;
  #buildMs = 0;

  constructor(runner: ModelRunner, options: EngineCoreOptions) {
    this.#runner = runner;
    this.#maxModelLen = options.maxModelLen;
    this.#eos = new Set(options.eosTokenIds);
    this.#blocks = new BlockManager(options);
    this.#scheduler = new Scheduler(this.#blocks, {
      maxNumSeqs: options.maxNumSeqs,
      maxNumBatchedTokens: options.maxNumBatchedTokens,
      policy: options.schedulingPolicy,
      batching: options.batching,
      enableChunkedPrefill: options.enableChunkedPrefill,
      reservedTokens: options.kvReservation === 'worst-case' ? options.maxModelLen : 0,
    });
    const limits = { maxTokens: options.maxNumBatchedTokens, maxSeqs: options.maxNumSeqs };
    this.#builder = new StepBatchBuilder({ ...options, ...limits }, this.#eos);
  }

  /** Whether a step would do anything: compute, or report what ended outside a step. */
  get hasWork(): boolean {
    return this.#scheduler.hasWork || !this.#writer.isEmpty;
  }

  /** Queues a request, which must fit: its prompt is shorter than `maxModelLen`. */
  add(input: NewRequest): void {
    const seed = input.params.seed;
    const request = new Request(
      input,
      this.#arrivals++,
      seed === undefined ? randomSeed() : BigInt.asUintN(64, BigInt(seed)),
    );
    const sequence = new Sequence(request, 0, this.#maxModelLen);
    request.sequences.push(sequence);
    this.#requests.set(request.handle, request);
    this.#scheduler.add(sequence);
  }

  /** Ends a request, or one choice of it. Its blocks are free at once. */
  abort(handle: number, index?: number): void {
    const request = this.#requests.get(handle);
    if (!request) return;
    const [leader] = request.sequences;
    if (index !== undefined && leader.pendingForks > 0) {
      // The choices still share the computation of the prompt; each ends when it is on its own.
      if (index < request.params.n) request.unwanted.add(index);
      if (request.unwanted.size === request.params.n) this.#endAll(request, 'abort');
      return;
    }
    if (index === undefined) {
      this.#endAll(request, 'abort');
    } else {
      const sequence = request.sequences.find((each) => each.index === index);
      if (sequence) this.#end(sequence, 'abort');
    }
  }

  abortAll(): void {
    for (const request of [...this.#requests.values()]) this.#endAll(request, 'abort');
  }

  /** One iteration. Whatever the runner does, every sequence in it goes on or ends with an error. */
  step(): StepOutput {
    const start = now();
    this.#stepTokens = 0;
    this.#runMs = 0;
    this.#buildMs = 0;
    const sequences = this.#scheduler.schedule();
    const scheduleMs = now() - start;
    for (const { request } of sequences) this.#noteStart(request, start);
    if (sequences.length > 0) {
      this.#compute(sequences);
      this.#steps++;
    }
    const stepMs = now() - start;
    const report: StepReport = {
      stats: this.stats(),
      tokens: this.#stepTokens,
      stepMs,
      hostMs: stepMs - this.#runMs,
      scheduleMs,
      buildMs: this.#buildMs,
    };
    const started = this.#started;
    this.#started = [];
    return { ...this.#writer.take(), started, report };
  }

  stats(): EngineStats {
    const { numBlocks, numFree } = this.#blocks;
    return {
      running: this.#scheduler.running.length,
      waiting: this.#scheduler.numWaiting,
      kvUsage: (numBlocks - numFree) / numBlocks,
      freeBlocks: numFree,
      preemptions: this.#scheduler.preemptions,
      prefixQueries: this.#scheduler.prefixQueries,
      prefixHits: this.#scheduler.prefixHits,
      promptTokens: this.#promptTokens,
      generationTokens: this.#generationTokens,
      steps: this.#steps,
    };
  }

  /** Throws if a block is lost or has a wrong count of owners. For tests; linear in all blocks. */
  verify(): void {
    this.#blocks.verify(this.#scheduler.running);
  }

  #compute(sequences: readonly Sequence[]): void {
    try {
      this.#runAndApply(sequences, this.#blocks.copies);
    } catch (error) {
      if (sequences.length > 1) this.#computeOneByOne(sequences);
      else this.#fail(sequences[0], error);
    }
  }

  /**
   * After a step that threw: who is to blame is found by running each sequence alone. That is safe,
   * because a step only writes slots its own sequences will read, and writes them again the same.
   */
  #computeOneByOne(sequences: readonly Sequence[]): void {
    let copies: readonly number[] = this.#blocks.copies.slice();
    for (const sequence of sequences) {
      if (sequence.finished || sequence.scheduled === 0) continue;
      try {
        this.#runAndApply([sequence], copies);
        copies = [];
      } catch (error) {
        this.#fail(sequence, error);
      }
    }
  }

  #runAndApply(sequences: readonly Sequence[], copies: readonly number[]): void {
    const begin = now();
    const batch = this.#builder.build(sequences, copies);
    const start = now();
    this.#buildMs += start - begin;
    const result = this.#runner.step(batch);
    const end = now();
    this.#runMs += end - start;
    this.#stepTokens += batch.numTokens;
    let row = 0;
    for (const sequence of sequences) row = this.#apply(sequence, result, row, end);
  }

  /** Takes over what a step computed for one sequence; returns the row after its last. */
  #apply(sequence: Sequence, result: StepResult, firstRow: number, time: number): number {
    const { request } = sequence;
    let row = firstRow;
    const [from, to] = promptRows(sequence);
    const drawn = sequence.scheduled === sequence.remaining;
    const end = row + to - from + (drawn ? sequence.seats : 0);
    for (let i = row; i < end; i++) {
      if (result.tokens[i] !== -1) continue;
      const error = new GenerationError('The model gave no finite logits for this request');
      this.#fail(sequence, error);
      return end;
    }
    for (let i = from; i < to; i++) {
      const count = request.params.promptLogprobs!;
      request.promptLogprobs!.push(tokenLogprob(result, row++, count));
    }
    this.#scheduler.computed(sequence);
    if (!drawn) return end;
    if (request.timing.firstToken === 0) {
      request.timing.firstToken = time;
      this.#promptTokens += request.prompt.length;
    }
    if (sequence.pendingForks === 0) {
      this.#take(sequence, result, row, time);
      return end;
    }
    for (const choice of [sequence, ...this.#fork(sequence)]) {
      if (request.unwanted.delete(choice.index)) this.#end(choice, 'abort');
      else this.#take(choice, result, row, time);
      row++;
    }
    return end;
  }

  /** Makes the choices that waited for the prompt; they share its blocks. */
  #fork(leader: Sequence): Sequence[] {
    const forks: Sequence[] = [];
    while (leader.pendingForks > 0) {
      const fork = new Sequence(leader.request, forks.length + 1, this.#maxModelLen);
      leader.request.sequences.push(fork);
      this.#scheduler.fork(leader, fork);
      forks.push(fork);
    }
    return forks;
  }

  /** Appends the token drawn in `row` and reports it; ends the sequence where it is time. */
  #take(sequence: Sequence, result: StepResult, row: number, time: number): void {
    const { request } = sequence;
    const { params } = request;
    const token = result.tokens[row];
    sequence.append(token);
    this.#generationTokens++;
    let finish: Finish | undefined;
    if (params.stopTokenIds.includes(token) || (!params.ignoreEos && this.#eos.has(token))) {
      finish = this.#close(sequence, 'stop', time);
      finish.stopToken = token;
    } else if (sequence.numTokens >= sequence.maxTokens) {
      finish = this.#close(sequence, 'length', time);
    }
    const detail = deltaDetail({
      logprobs:
        params.logprobs === undefined ? undefined : [tokenLogprob(result, row, params.logprobs)],
      promptLogprobs: request.takePromptLogprobs(),
      firstToken: sequence.numGenerated === 1 ? time : undefined,
      finish,
    });
    this.#writer.add(request.handle, sequence.index, token, detail);
  }

  /** Ends a sequence whose computation failed; nothing of it stays in the prefix cache. */
  #fail(sequence: Sequence, error: unknown): void {
    this.#blocks.forget(sequence);
    if (sequence.pendingForks > 0) this.#endAll(sequence.request, 'error', error);
    else this.#end(sequence, 'error', error);
  }

  /** Ends all choices, those not forked yet included. */
  #endAll(request: Request, reason: FinishReason, error?: unknown): void {
    for (const sequence of request.sequences) {
      const { pendingForks } = sequence;
      this.#end(sequence, reason, error);
      for (let choice = 1; choice <= pendingForks; choice++) {
        this.#reportEnd(request, choice, this.#finish(request, reason, now(), error));
      }
    }
  }

  /** Ends one sequence without a token, if it has not ended. */
  #end(sequence: Sequence, reason: FinishReason, error?: unknown): void {
    if (sequence.finished) return;
    const finish = this.#close(sequence, reason, now(), error);
    this.#reportEnd(sequence.request, sequence.index, finish);
  }

  #reportEnd(request: Request, index: number, finish: Finish): void {
    this.#writer.add(request.handle, index, undefined, { finish });
  }

  #close(sequence: Sequence, reason: FinishReason, time: number, error?: unknown): Finish {
    sequence.finished = true;
    this.#scheduler.remove(sequence);
    return this.#finish(sequence.request, reason, time, error);
  }

  /** The finish of one choice; forgets the request with its last. */
  #finish(request: Request, reason: FinishReason, time: number, error?: unknown): Finish {
    if (--request.open === 0) this.#requests.delete(request.handle);
    const finish: Finish = {
      reason,
      timing: { ...request.timing, finished: time },
      promptTokens: request.prompt.length,
      cachedTokens: request.cachedTokens,
    };
    if (error !== undefined) finish.error = describe(error);
    return finish;
  }

  #noteStart(request: Request, time: number): void {
    if (request.timing.scheduled !== 0) return;
    request.timing.scheduled = time;
    this.#started.push(request.handle);
  }
}

function tokenLogprob(result: StepResult, row: number, count: number): TokenLogprob {
  const top: TokenLogprob['top'] = [];
  for (let i = row * MAX_LOGPROBS; i < row * MAX_LOGPROBS + count; i++) {
    top.push({ token: result.topTokens[i], logprob: result.topLogprobs[i] });
  }
  return { token: result.tokens[row], logprob: result.logprobs[row], rank: result.ranks[row], top };
}

function describe(error: unknown): { code: string; message: string } {
  if (error instanceof MillraceError) return { code: error.code, message: error.message };
  const message = error instanceof Error ? error.message : String(error);
  return { code: 'generation_failed', message: `The model failed on this request: ${message}` };
}
