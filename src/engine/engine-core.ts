/**
 * The engine without its thread: requests in, steps, deltas out. Everything is synchronous, and
 * nothing here knows where the requests come from. A step is
 *
 *     schedule -> build the batch -> submit it -> collect the result -> apply the sampled tokens -> report
 *
 * With an executor that overlaps, the next step is scheduled, built and submitted before the result
 * of this one is collected (docs/scheduling.md, "Overlap").
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
import { StepPipeline } from './step-pipeline.js';
import { StepResults } from './step-results.js';
import { shareOut } from './step-share.js';

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
  readonly #pipeline: StepPipeline;
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
  /** Since the last report: tokens computed, time spent in `begin`, on schedules and on batches. */
  #stepTokens = 0;
  #begunMs = 0;
  #scheduleMs = 0;
  #buildMs = 0;

  constructor(runner: ModelRunner, options: EngineCoreOptions) {
    this.#pipeline = new StepPipeline(runner);
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
    this.#results = new StepResults(this.#scheduler, this.#blocks, this.#endings, this.#writer, {
      eosTokens,
      maxModelLen: options.maxModelLen,
    });
  }

  /** Whether a step would do anything: compute, or report what ended outside a step. */
  get hasWork(): boolean {
    return this.#scheduler.hasWork || !this.#pipeline.isEmpty || !this.#writer.isEmpty;
  }

  /** Whether requests wait only for others to make up a full batch with them (`batching: 'static'`). */
  get isGathering(): boolean {
    return this.#scheduler.isGathering;
  }

  /** Stops waiting for others; there is no clock here to tell when. */
  startIncompleteBatch(): void {
    this.#scheduler.startIncompleteBatch();
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

  /**
   * Starts a step if none is on its way and the next one is made before its result is there. Whoever
   * calls this before `step` gives requests of a burst the time to come for that next step: it would
   * else be made at once, of the few that came first. False if there is nothing to do but `step`.
   */
  begin(): boolean {
    if (!this.#pipeline.overlaps || !this.#pipeline.isEmpty) return false;
    const start = now();
    const begun = this.#startNext();
    this.#begunMs += now() - start;
    return begun;
  }

  /**
   * One iteration: the result of one step. Whatever the runner thinks of a batch, every sequence in
   * it goes on or ends with an error. Throws if the device is lost; then the core is of no use.
   */
  step(): StepOutput {
    const start = now() - this.#begunMs;
    while (!this.#pipeline.isFull && this.#startNext());
    if (!this.#pipeline.isEmpty) this.#finishOldest();
    const stepMs = now() - start;
    const report: StepReport = {
      stats: this.stats(),
      tokens: this.#stepTokens,
      stepMs,
      hostMs: stepMs - this.#pipeline.runMs,
      scheduleMs: this.#scheduleMs,
      buildMs: this.#buildMs,
    };
    const started = this.#started;
    this.#started = [];
    this.#stepTokens = this.#begunMs = this.#scheduleMs = this.#buildMs = 0;
    this.#pipeline.runMs = 0;
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

  /** Schedules and submits a step; false if there is nothing to submit. */
  #startNext(): boolean {
    const start = now();
    const sequences = this.#scheduler.schedule();
    this.#scheduleMs += now() - start;
    if (sequences.length === 0) return false;
    for (const { request } of sequences) this.#noteStart(request, start);
    this.#steps++;
    try {
      this.#submit(sequences, this.#blocks.copies);
      return true;
    } catch (error) {
      while (!this.#pipeline.isEmpty) this.#finishOldest();
      if (sequences.length > 1) this.#computeOneByOne(sequences);
      else if (!sequences[0].finished) this.#endings.fail(sequences[0], error);
      return false;
    }
  }

  /**
   * After a batch was refused: who is to blame is found by running each sequence alone. That is safe,
   * because a step only writes slots its own sequences will read, and writes them again the same.
   */
  #computeOneByOne(sequences: readonly Sequence[]): void {
    let copies: readonly number[] = this.#blocks.copies.slice();
    for (const sequence of sequences) {
      if (sequence.finished || sequence.scheduled === 0) continue;
      try {
        this.#submit([sequence], copies);
      } catch (error) {
        this.#endings.fail(sequence, error);
        continue;
      }
      copies = [];
      this.#finishOldest();
    }
  }

  #submit(sequences: readonly Sequence[], copies: readonly number[]): void {
    const start = now();
    const batch = this.#builder.build(sequences, copies);
    this.#buildMs += now() - start;
    this.#pipeline.submit(batch, () => shareOut(sequences));
  }

  #finishOldest(): void {
    const step = this.#pipeline.collect();
    this.#stepTokens += step.numTokens;
    this.#results.apply(step, now());
  }

  #noteStart(request: Request, time: number): void {
    if (request.timing.scheduled !== 0) return;
    request.timing.scheduled = time;
    this.#started.push(request.handle);
  }
}
