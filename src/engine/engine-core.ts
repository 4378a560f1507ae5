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
import type { ModelRunner } from '../backend/backend.js';
import { type EngineStats, now, type StepReport } from './api.js';
import { BlockManager } from './block-manager.js';
import { Endings } from './endings.js';
import type { Batching, KvReservation, SchedulingPolicy } from './policy.js';
import { Scheduler } from './scheduler.js';
import { randomSeed } from './seed.js';
import { type NewRequest, Request, Sequence } from './sequence.js';
import { StepBatchBuilder } from './step-batch.js';
import { DeltaWriter, type StepOutput } from './step-output.js';
import { StepResults } from './step-results.js';

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
  readonly #blocks: BlockManager;
  readonly #scheduler: Scheduler;
  readonly #builder: StepBatchBuilder;
  readonly #writer = new DeltaWriter();
  readonly #endings: Endings;
  readonly #results: StepResults;
  #started: number[] = [];
  #arrivals = 0;
  #steps = 0;
  /** Of the current step: tokens computed, time in the runner and in making its batches. */
  #stepTokens = 0;
  #runMs = 0;
  #buildMs = 0;

  constructor(runner: ModelRunner, options: EngineCoreOptions) {
    this.#runner = runner;
    this.#maxModelLen = options.maxModelLen;
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
    const eosTokens = new Set(options.eosTokenIds);
    this.#builder = new StepBatchBuilder({ ...options, ...limits }, eosTokens);
    this.#endings = new Endings(this.#scheduler, this.#blocks, this.#writer);
    this.#results = new StepResults(this.#scheduler, this.#endings, this.#writer, {
      eosTokens,
      maxModelLen: options.maxModelLen,
    });
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
    this.#endings.requests.set(request.handle, request);
    this.#scheduler.add(sequence);
  }

  /** Ends a request, or one choice of it. Its blocks are free at once. */
  abort(handle: number, index?: number): void {
    const request = this.#endings.requests.get(handle);
    if (!request) return;
    const [leader] = request.sequences;
    if (index !== undefined && leader.pendingForks > 0) {
      // The choices still share the computation of the prompt; each ends when it is on its own.
      if (index < request.params.n) request.unwanted.add(index);
      if (request.unwanted.size === request.params.n) this.#endings.endAll(request, 'abort');
      return;
    }
    if (index === undefined) {
      this.#endings.endAll(request, 'abort');
    } else {
      const sequence = request.sequences.find((each) => each.index === index);
      if (sequence) this.#endings.end(sequence, 'abort');
    }
  }

  abortAll(): void {
    for (const request of [...this.#endings.requests.values()])
      this.#endings.endAll(request, 'abort');
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
      promptTokens: this.#results.promptTokens,
      generationTokens: this.#results.generationTokens,
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
      else this.#endings.fail(sequences[0], error);
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
        this.#endings.fail(sequence, error);
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
    this.#results.apply(sequences, result, end);
  }

  #noteStart(request: Request, time: number): void {
    if (request.timing.scheduled !== 0) return;
    request.timing.scheduled = time;
    this.#started.push(request.handle);
  }
}
