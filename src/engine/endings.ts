/** How requests and their choices end: out of the scheduler, blocks free, and reported exactly once. */
import { MillraceError } from '../errors.js';
import { type Finish, type FinishReason, now } from './api.js';
import type { BlockManager } from './block-manager.js';
import type { Scheduler } from './scheduler.js';
import type { Request, Sequence } from './sequence.js';
import type { DeltaWriter } from './step-output.js';

export class Endings {
  /** The requests with a choice that has not ended, by handle. */
  readonly requests = new Map<number, Request>();
  readonly #scheduler: Scheduler;
  readonly #blocks: BlockManager;
  readonly #writer: DeltaWriter;

  constructor(scheduler: Scheduler, blocks: BlockManager, writer: DeltaWriter) {
    this.#scheduler = scheduler;
    this.#blocks = blocks;
    this.#writer = writer;
  }

  /** Ends a sequence whose computation failed; nothing of it stays in the prefix cache. */
  fail(sequence: Sequence, error: unknown): void {
    this.#blocks.forget(sequence);
    if (sequence.pendingForks > 0) this.endAll(sequence.request, 'error', error);
    else this.end(sequence, 'error', error);
  }

  /** Ends all choices, those not forked yet included. */
  endAll(request: Request, reason: FinishReason, error?: unknown): void {
    for (const sequence of request.sequences) {
      const { pendingForks } = sequence;
      this.end(sequence, reason, error);
      for (let choice = 1; choice <= pendingForks; choice++) {
        this.#report(request, choice, this.#finish(request, reason, now(), error));
      }
    }
  }

  /** Ends one sequence without a token, if it has not ended. */
  end(sequence: Sequence, reason: FinishReason, error?: unknown): void {
    if (sequence.finished) return;
    const finish = this.close(sequence, reason, now(), error);
    this.#report(sequence.request, sequence.index, finish);
  }

  /** Ends one sequence; its finish is for the caller to report. */
  close(sequence: Sequence, reason: FinishReason, time: number, error?: unknown): Finish {
    sequence.finished = true;
    this.#scheduler.remove(sequence);
    return this.#finish(sequence.request, reason, time, error);
  }

  #report(request: Request, index: number, finish: Finish): void {
    this.#writer.add(request.handle, index, undefined, { finish });
  }

  /** The finish of one choice; forgets the request with its last. */
  #finish(request: Request, reason: FinishReason, time: number, error?: unknown): Finish {
    if (--request.open === 0) this.requests.delete(request.handle);
    const finish: Finish = {
      reason,
      timing: { ...request.timing, finished: time },
      promptTokens: request.prompt.length,
      cachedTokens: request.cachedTokens,
    };
    if (error !== undefined) finish.error = describe(error);
    return finish;
  }
}

function describe(error: unknown): { code: string; message: string } {
  if (error instanceof MillraceError) return { code: error.code, message: error.message };
  const message = error instanceof Error ? error.message : String(error);
  return { code: 'generation_failed', message: `The model failed on this request: ${message}` };
}
