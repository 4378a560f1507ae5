/**
 * Decides every step anew which sequences compute how many tokens: iteration-level scheduling
 * (Yu et al., "Orca", OSDI 2022) over paged KV blocks (Kwon et al., "PagedAttention", SOSP 2023)
 * with prompts in chunks beside the decodes (Agrawal et al., "Sarathi-Serve", OSDI 2024).
 * Pure: no clock, no I/O, no native code. docs/scheduling.md tells it in prose.
 */
import type { BlockManager } from './block-manager.js';
import { type Batching, type SchedulingPolicy, type ServiceOrder, serviceOrder } from './policy.js';
import type { Sequence } from './sequence.js';
import { SortedSequences } from './sorted-sequences.js';

export interface SchedulerOptions {
  /** Most sequences in the running set, choices to be forked off included. */
  maxNumSeqs: number;
  /** Most tokens in a step; at least `maxNumSeqs`, so that every decode has its place. */
  maxNumBatchedTokens: number;
  policy: SchedulingPolicy;
  /** Default `continuous`. */
  batching?: Batching;
  /**
   * Default true. False: a prompt is computed in one step, unless it is longer than a step that it
   * has for itself.
   */
  enableChunkedPrefill?: boolean;
  /** Tokens a sequence's blocks hold from its admission on, needed or not. Default 0. */
  reservedTokens?: number;
}

/** A new prompt is not admitted for a smaller share of the budget, unless that completes it. */
const SMALLEST_SHARE = 1 / 8;

export class Scheduler {
  /** Counter since the start. */
  preemptions = 0;
  /** Prompt tokens looked up in the prefix cache, and those found. First admissions only. */
  prefixQueries = 0;
  prefixHits = 0;

  readonly #blocks: BlockManager;
  readonly #order: ServiceOrder;
  readonly #maxNumSeqs: number;
  readonly #maxNumBatchedTokens: number;
  readonly #batching: Batching;
  readonly #chunked: boolean;
  readonly #reservedTokens: number;
  readonly #waiting: SortedSequences;
  /** In the order of service: the last is the first to be preempted. */
  #running: Sequence[] = [];
  /** Of the step being made. */
  #scheduled: Sequence[] = [];
  #budget = 0;
  /** How many of the waiting may still join the batch. */
  #open: number;

  constructor(blocks: BlockManager, options: SchedulerOptions) {
    this.#blocks = blocks;
    this.#order = serviceOrder(options.policy);
    this.#maxNumSeqs = options.maxNumSeqs;
    this.#maxNumBatchedTokens = options.maxNumBatchedTokens;
    this.#batching = options.batching ?? 'continuous';
    this.#chunked = options.enableChunkedPrefill ?? true;
    this.#reservedTokens = options.reservedTokens ?? 0;
    this.#waiting = new SortedSequences(this.#order);
    this.#open = this.#batching === 'static' ? 0 : Number.POSITIVE_INFINITY;
  }

  get running(): readonly Sequence[] {
    return this.#running;
  }

  get numWaiting(): number {
    return this.#waiting.length;
  }

  /** Whether `schedule` would find anything to compute, once what is in flight is known. */
  get hasWork(): boolean {
    return this.#running.length > 0 || (this.#waiting.length > 0 && !this.isGathering);
  }

  /** Whether those that wait do so only for others to make up a full static batch with them. */
  get isGathering(): boolean {
    return this.#awaitsBatch && this.#waiting.length > 0 && !this.#fillBatch();
  }

  /** Lets those that wait make up a static batch, full or not. */
  startIncompleteBatch(): void {
    if (this.isGathering) this.#open = this.#waiting.length;
  }

  add(sequence: Sequence): void {
    this.#waiting.insert(sequence);
  }

  /**
   * The next step: sequences with `scheduled` > 0 tokens to compute and blocks to write them to,
   * valid until the next call. Copies the step needs are in `BlockManager.copies`. One step may be
   * in flight: its sequences stand past it, and those that must wait for its result do. A sequence
   * that is preempted with a token in flight is not admitted before the next call, since a step
   * that preempts admits nobody; by then the token must be known.
   */
  schedule(): readonly Sequence[] {
    this.#blocks.copies.length = 0;
    this.#scheduled = [];
    this.#budget = this.#maxNumBatchedTokens;
    const before = this.preemptions;
    this.#scheduleDecodes();
    this.#schedulePrefills();
    if (this.preemptions === before) this.#admit();
    this.#handOutRest();
    if (this.preemptions !== before) {
      this.#scheduled = this.#scheduled.filter((sequence) => sequence.scheduled > 0);
    }
    return this.#scheduled;
  }

  /** Adds `child`, a choice of the same request, to the running set; it shares the blocks of `parent`. */
  fork(parent: Sequence, child: Sequence): void {
    parent.pendingForks--;
    this.#blocks.fork(parent, child);
    this.#insertRunning(child);
  }

  /** Takes a sequence out, running or waiting, and frees its blocks. */
  remove(sequence: Sequence): void {
    sequence.scheduled = 0;
    if (this.#waiting.delete(sequence)) {
      if (this.#batching === 'static') this.#open = Math.min(this.#open, this.#waiting.length);
      return;
    }
    const at = this.#running.indexOf(sequence);
    if (at !== -1) this.#running.splice(at, 1);
    this.#blocks.free(sequence);
  }

  /** First of all, one token for everyone who is generating. The budget always suffices. */
  #scheduleDecodes(): void {
    for (let i = 0; i < this.#running.length; i++) {
      const sequence = this.#running[i];
      if (isDecoding(sequence) && !sequence.mustWait) this.#run(sequence, 1);
    }
  }

  /** Then the prompts already begun. */
  #schedulePrefills(): void {
    for (let i = 0; i < this.#running.length && this.#budget > 0; i++) {
      const sequence = this.#running[i];
      if (isDecoding(sequence) || sequence.mustWait) continue;
      const contested = this.#waiting.length > 0 || i + 1 < this.#running.length;
      const chunk = this.#chunk(sequence, contested && this.#chunked);
      if (chunk > 0) this.#run(sequence, chunk);
    }
  }

  /** Then new and preempted sequences, strictly in order: nobody overtakes one that waits for room. */
  #admit(): void {
    if (this.#waiting.length === 0 || this.isGathering) return;
    if (this.#awaitsBatch) this.#open = this.#waiting.length;
    let seats = this.#maxNumSeqs;
    let promised = 0;
    for (const sequence of this.#running) {
      seats -= sequence.seats;
      promised += this.#soonMissing(sequence);
    }
    for (let next = this.#waiting.first; next && this.#budget > 0; next = this.#waiting.first) {
      if (this.#open === 0) return;
      if (next.seats > seats) {
        this.#closeBatch();
        return;
      }
      const alone = this.#running.length === 0;
      const soon = alone ? next.numTokens : this.#soon(next);
      const needed = this.#blocks.blocksFor(Math.max(soon, this.#reservedTokens));
      const reserved = alone ? 0 : promised + next.pendingForks;
      if (!this.#blocks.admit(next, needed, reserved)) {
        this.#closeBatch();
        return;
      }
      const cached = next.numComputed;
      const chunk = this.#chunk(next, this.#waiting.length > 1 && this.#chunked);
      const cut = chunk < next.remaining;
      const smallest = Math.ceil(this.#maxNumBatchedTokens * SMALLEST_SHARE);
      const tooSmall = cut && (this.#chunked ? chunk < smallest : !alone);
      if (chunk === 0 || tooSmall) {
        this.#blocks.free(next);
        return;
      }
      if (next.preemptions === 0 && next.readsPrefixCache) {
        this.prefixQueries += next.numTokens;
        this.prefixHits += cached;
        next.request.cachedTokens = cached;
      }
      this.#waiting.shift();
      this.#open--;
      this.#insertRunning(next);
      this.#run(next, chunk);
      seats -= next.seats;
      promised += this.#soonMissing(next);
    }
  }

  /** Whether the last static batch has ended and the next has not begun. */
  get #awaitsBatch(): boolean {
    return this.#batching === 'static' && this.#running.length === 0 && this.#open === 0;
  }

  /** Whether those that wait need all seats or all blocks, by what admission asks without cached blocks. */
  #fillBatch(): boolean {
    let seats = this.#maxNumSeqs;
    let blocks = this.#blocks.numBlocks;
    for (const sequence of this.#waiting) {
      const tokens = Math.max(this.#soon(sequence), this.#reservedTokens);
      seats -= sequence.seats;
      blocks -= this.#blocks.blocksFor(tokens) + sequence.pendingForks;
      if (seats <= 0 || blocks <= 0) return true;
    }
    return false;
  }

  /** Nobody else joins a static batch, once seats or blocks have run out. */
  #closeBatch(): void {
    if (this.#batching === 'static') this.#open = 0;
  }

  /** What nobody else could use goes to the prompts that were cut short, in order. */
  #handOutRest(): void {
    for (let i = 0; i < this.#running.length && this.#budget > 0; i++) {
      const sequence = this.#running[i];
      const given = sequence.scheduled;
      if (given === 0 || given === sequence.remaining) continue;
      this.#budget += given;
      const chunk = this.#chunk(sequence, false);
      const fits = this.#blocks.grow(sequence, sequence.numComputed + chunk);
      sequence.scheduled = fits ? chunk : given;
      this.#budget -= cost(sequence, sequence.scheduled);
    }
  }

  /**
   * How many tokens a prompt may compute now. One that this step cannot complete takes at most half
   * of what is left if others want some too, so that a short prompt seldom waits behind a long one.
   */
  #chunk(sequence: Sequence, contested: boolean): number {
    const { remaining } = sequence;
    if (cost(sequence, remaining) <= this.#budget) return remaining;
    const most = contested
      ? Math.min(this.#budget, Math.max(this.#blocks.blockSize, Math.ceil(this.#budget / 2)))
      : this.#budget;
    return Math.min(remaining - 1, most);
  }

  /** Schedules `count` tokens of a running sequence, preempting from the end of the order for blocks. */
  #run(sequence: Sequence, count: number): void {
    const end = Math.max(sequence.numComputed + count, this.#reservedTokens);
    while (!this.#blocks.grow(sequence, end)) {
      const victim = this.#running.pop()!;
      this.#preempt(victim);
      if (victim === sequence) return;
    }
    sequence.scheduled = count;
    this.#budget -= cost(sequence, count);
    this.#scheduled.push(sequence);
  }

  /** Sends a sequence back to be computed anew; what the cache keeps of it till then is not lost. */
  #preempt(sequence: Sequence): void {
    if (sequence.scheduled > 0) this.#budget += cost(sequence, sequence.scheduled);
    sequence.scheduled = 0;
    sequence.preemptions++;
    this.preemptions++;
    this.#blocks.free(sequence);
    this.#waiting.insert(sequence);
  }

  /** Tokens a sequence will hold before long: a block more than now, unless it ends earlier. */
  #soon(sequence: Sequence): number {
    const { numTokens, maxTokens } = sequence;
    return Math.max(numTokens, Math.min(numTokens + this.#blocks.blockSize, maxTokens - 1));
  }

  /** Blocks a running sequence will want before long. They are kept free from newcomers: no thrashing. */
  #soonMissing(sequence: Sequence): number {
    return this.#blocks.missing(sequence, this.#soon(sequence)) + sequence.pendingForks;
  }

  #insertRunning(sequence: Sequence): void {
    let at = this.#running.length;
    while (at > 0 && this.#order(this.#running[at - 1], sequence) > 0) at--;
    this.#running.splice(at, 0, sequence);
  }
}

function isDecoding(sequence: Sequence): boolean {
  return sequence.remaining === 1 && sequence.pendingForks === 0;
}

/** What computing `count` tokens takes of the budget: the first draws of forked choices cost a row each. */
function cost(sequence: Sequence, count: number): number {
  return count === sequence.remaining ? count + sequence.pendingForks : count;
}
