/** The caller's side of an engine that runs in a thread: checks requests, hands out deltas. */
import type { Worker } from 'node:worker_threads';
import {
  ContextLengthError,
  EngineClosedError,
  InvalidParameterError,
  QueueFullError,
} from '../errors.js';
import {
  type Delta,
  type Engine,
  type EngineInfo,
  type EngineRequest,
  type EngineStats,
  now,
  type StepReport,
} from './api.js';
import type { Command, Report } from './engine-protocol.js';
import type { SchedulingPolicy } from './policy.js';
import { QueueMeter } from './queue-meter.js';
import { checkSamplingParams } from './sampling-params.js';
import { readDeltas, type StepOutput } from './step-output.js';

export interface RequestLimits {
  /** Default `fcfs`, which knows no priorities. */
  schedulingPolicy?: SchedulingPolicy;
  maxNumQueuedReqs?: number;
  maxNumQueuedTokens?: number;
}

interface InFlight {
  id: string;
  promptTokens: number;
  arrival: number;
  onDelta: (delta: Delta) => void;
  /** Choices without a finish. */
  open: Set<number>;
  /** Not scheduled yet. */
  queued: boolean;
}

export class ThreadedEngine implements Engine {
  readonly info: EngineInfo;
  readonly failed: Promise<never>;
  readonly #worker: Worker;
  readonly #limits: RequestLimits;
  readonly #queue = new QueueMeter();
  readonly #inFlight = new Map<number, InFlight>();
  readonly #handles = new Map<string, number>();
  readonly #stepListeners = new Set<(report: StepReport) => void>();
  readonly #exited: Promise<void>;
  #idleWaiters: (() => void)[] = [];
  #stats: EngineStats;
  #nextHandle = 0;
  #closed = false;
  #reject!: (error: Error) => void;

  constructor(worker: Worker, info: EngineInfo, limits: RequestLimits) {
    this.info = info;
    this.#worker = worker;
    this.#limits = limits;
    this.#stats = {
      ...{ running: 0, waiting: 0, kvUsage: 0, freeBlocks: info.numBlocks, preemptions: 0 },
      ...{ prefixQueries: 0, prefixHits: 0, promptTokens: 0, generationTokens: 0, steps: 0 },
    };
    this.failed = new Promise((_, reject) => {
      this.#reject = reject;
    });
    // Nobody has to listen; whoever does gets the rejection all the same.
    this.failed.catch(() => {});
    worker.on('message', (report: Report) => {
      if (report.type === 'step') this.#publish(report.output);
    });
    worker.on('error', (error) => this.#die(error));
    worker.unref();
    this.#exited = new Promise((resolve) => {
      worker.on('exit', (code) => {
        if (!this.#closed) this.#die(new Error(`The engine's thread ended with code ${code}`));
        resolve();
      });
    });
  }

  generate(request: EngineRequest, onDelta: (delta: Delta) => void): void {
    const prompt = this.#check(request);
    const { id, params, priority = 0, cacheSalt = '', arrivalMs: arrival = now() } = request;
    // What is in flight keeps the process alive; an engine with nothing to do does not.
    if (this.#inFlight.size === 0) this.#worker.ref();
    const handle = this.#nextHandle++;
    this.#handles.set(id, handle);
    this.#queue.enter(prompt.length);
    this.#inFlight.set(handle, {
      ...{ id, promptTokens: prompt.length, arrival, onDelta, queued: true },
      open: new Set(Array.from({ length: params.n }, (_, index) => index)),
    });
    this.#post(
      { type: 'add', request: { handle, prompt, params, priority, cacheSalt, arrival } },
      prompt.buffer,
    );
  }

  abort(id: string, index?: number): void {
    const handle = this.#handles.get(id);
    if (handle !== undefined && !this.#closed) this.#post({ type: 'abort', handle, index });
  }

  stats(): EngineStats {
    return this.#stats;
  }

  onStep(listener: (report: StepReport) => void): () => void {
    this.#stepListeners.add(listener);
    return () => this.#stepListeners.delete(listener);
  }

  idle(): Promise<void> {
    if (this.#inFlight.size === 0) return Promise.resolve();
    return new Promise((resolve) => this.#idleWaiters.push(resolve));
  }

  close(): Promise<void> {
    if (!this.#closed) {
      this.#closed = true;
      // Whoever awaits the end must live to see it.
      this.#worker.ref();
      this.#post({ type: 'close' });
    }
    return this.#exited;
  }

  /** The request's prompt as an array of its own. Throws what `Engine.generate` says. */
  #check({ id, prompt, params, priority = 0 }: EngineRequest): Int32Array<ArrayBuffer> {
    if (this.#closed) throw new EngineClosedError('The engine is closed');
    const { vocabSize, maxModelLen } = this.info;
    if (this.#handles.has(id)) {
      throw InvalidParameterError.expected('id that no request in flight has', 'id', id);
    }
    checkSamplingParams(params, this.info);
    if (!Number.isFinite(priority)) {
      throw InvalidParameterError.expected('finite number', 'priority', priority);
    }
    if (priority !== 0 && this.#limits.schedulingPolicy !== 'priority') {
      throw new InvalidParameterError(
        `priority is ${priority}, but requests are served in the order they come; start with the scheduling policy "priority"`,
        { param: 'priority' },
      );
    }
    if (prompt.length === 0) {
      throw new InvalidParameterError('Expected at least one token for prompt but received none', {
        param: 'prompt',
      });
    }
    for (let i = 0; i < prompt.length; i++) {
      const token = prompt[i];
      if (!(Number.isInteger(token) && token >= 0 && token < vocabSize)) {
        throw InvalidParameterError.expected(
          `token ids between 0 and ${vocabSize - 1}`,
          'prompt',
          token,
        );
      }
    }
    if (prompt.length + 1 > maxModelLen) {
      throw new ContextLengthError(
        `The prompt has ${prompt.length} tokens; with at least one token of answer that is more ` +
          `than the ${maxModelLen} tokens of context this server has`,
        { param: 'prompt' },
      );
    }
    this.#checkQueue(prompt.length);
    return Int32Array.from(prompt);
  }

  #checkQueue(tokens: number): void {
    const { maxNumQueuedReqs = Infinity, maxNumQueuedTokens = Infinity } = this.#limits;
    const overReqs = this.#queue.requests + 1 - this.#freeSeats() - maxNumQueuedReqs;
    const overTokens = this.#queue.tokens + tokens - maxNumQueuedTokens;
    // A prompt longer than the limit is taken when nothing else waits: trying again would not help.
    if (overReqs <= 0 && (overTokens <= 0 || this.#queue.requests === 0)) return;
    const wait = this.#queue.retryAfter(Math.max(0, overReqs), Math.max(0, overTokens), now());
    throw new QueueFullError(
      `${this.#queue.requests} requests with ${this.#queue.tokens} prompt tokens are waiting; ` +
        `the limit is ${
          overReqs > 0 ? `${maxNumQueuedReqs} requests` : `${maxNumQueuedTokens} tokens`
        }. Try again in ${wait} s`,
      wait,
    );
  }

  /**
   * Requests that the next step will take from the queue, as far as the last one tells: those do not
   * wait, they have only not been picked up. Without this a burst would be refused by an idle engine.
   */
  #freeSeats(): number {
    const { running, waiting } = this.#stats;
    return waiting > 0 ? 0 : Math.max(0, this.info.maxNumSeqs - running);
  }

  #publish(output: StepOutput): void {
    this.#stats = output.report.stats;
    for (const handle of output.started) this.#leaveQueue(this.#inFlight.get(handle));
    readDeltas(output, (handle, delta) => this.#deliver(handle, delta));
    for (const listener of this.#stepListeners) guarded(() => listener(output.report));
    this.#notifyIdle();
  }

  #deliver(handle: number, delta: Delta): void {
    const request = this.#inFlight.get(handle);
    if (!request) return;
    if (delta.finish) {
      request.open.delete(delta.index);
      if (request.open.size === 0) {
        this.#leaveQueue(request);
        this.#inFlight.delete(handle);
        this.#handles.delete(request.id);
      }
    }
    guarded(() => request.onDelta(delta));
  }

  #leaveQueue(request: InFlight | undefined): void {
    if (!request?.queued) return;
    request.queued = false;
    this.#queue.leave(request.promptTokens, now());
  }

  #notifyIdle(): void {
    if (this.#inFlight.size > 0) return;
    if (!this.#closed) this.#worker.unref();
    for (const resolve of this.#idleWaiters.splice(0)) resolve();
  }

  /** The thread is gone: ends everything in flight. */
  #die(cause: Error): void {
    this.#closed = true;
    const error = { code: 'engine_failed', message: `The engine stopped: ${cause.message}` };
    for (const [handle, { open, promptTokens, arrival }] of [...this.#inFlight]) {
      for (const index of [...open]) {
        const timing = { arrival, scheduled: 0, firstToken: 0, finished: now() };
        const finish = { reason: 'error' as const, error, timing, promptTokens, cachedTokens: 0 };
        this.#deliver(handle, { index, tokens: [], finish });
      }
    }
    this.#notifyIdle();
    this.#reject(cause);
  }

  #post(command: Command, transfer?: ArrayBuffer): void {
    this.#worker.postMessage(command, transfer ? [transfer] : []);
  }
}

/** One listener's exception must not keep the others from their deltas; it is thrown on its own. */
function guarded(call: () => void): void {
  try {
    call();
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}
