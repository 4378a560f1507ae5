/**
 * One generation request on its way through the engine: each prompt becomes an engine request, each
 * of its deltas a piece of a choice. Knows nothing of HTTP.
 */
import { randomUUID } from 'node:crypto';
import { type Delta, type Engine, now } from '../engine/api.js';
import type { SamplingParams } from '../engine/sampling-params.js';
import { EngineClosedError, GenerationError } from '../errors.js';
import type { Tokenizer } from '../tokenizer/tokenizer.js';
import { Choice, type Piece } from './choice.js';
import type { Metrics } from './metrics.js';
import type { Prompt } from './prompt.js';

export interface GenerationRequest {
  prompts: readonly Prompt[];
  /** One for each prompt; they differ in nothing but `maxTokens`. */
  params: readonly SamplingParams[];
  priority?: number;
  cacheSalt?: string;
  /** The one token that was made counts as none. */
  scoreOnly?: boolean;
  /** When the request arrived, in ms of `now()`. */
  arrivalMs: number;
}

/** Calls come one at a time; after `done` or `failed` there are none. */
export interface GenerationSink {
  piece(choice: Choice, piece: Piece): void;
  /** Every choice has ended. */
  done(): void;
  /** The request failed; what was still running has been aborted. */
  failed(error: Error): void;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
  prompt_tokens_details?: { cached_tokens: number };
}

export class Generation {
  readonly request: GenerationRequest;
  readonly choices: Choice[] = [];
  readonly #engine: Engine;
  readonly #metrics: Metrics;
  readonly #sink: GenerationSink;
  readonly #ids: string[] = [];
  readonly #lastDelta: number[] = [];
  #running = 0;
  #closed = false;

  /** Queues all prompts, or throws what `Engine.generate` throws, with none of them queued. */
  constructor(
    engine: Engine,
    tokenizer: Tokenizer | undefined,
    metrics: Metrics,
    request: GenerationRequest,
    sink: GenerationSink,
  ) {
    this.#engine = engine;
    this.#metrics = metrics;
    this.#sink = sink;
    this.request = request;
    const { n } = request.params[0];
    for (let i = 0; i < request.prompts.length * n; i++) {
      const promptIndex = Math.floor(i / n);
      this.choices.push(new Choice(i, promptIndex, request.params[promptIndex], tokenizer));
    }
    this.#running = this.choices.length;
    try {
      for (const [promptIndex, prompt] of request.prompts.entries()) {
        const id = randomUUID();
        engine.generate(
          {
            id,
            prompt: prompt.ids,
            params: request.params[promptIndex],
            priority: request.priority,
            cacheSalt: request.cacheSalt,
            arrivalMs: request.arrivalMs,
          },
          (delta) => this.#onDelta(promptIndex * n + delta.index, delta),
        );
        this.#ids.push(id);
      }
    } catch (error) {
      this.abort();
      throw error;
    }
  }

  /** Tokens so far; `cached_tokens` once every choice has ended. */
  usage(): Usage {
    const prompt = this.request.prompts.reduce((sum, { ids }) => sum + ids.length, 0);
    const generated = this.choices.reduce((sum, choice) => sum + choice.completionTokens, 0);
    const completion = this.request.scoreOnly ? 0 : generated;
    const usage: Usage = {
      prompt_tokens: prompt,
      completion_tokens: completion,
      total_tokens: prompt + completion,
    };
    if (this.#running === 0) {
      // The n choices of a prompt share one prefill: it counts once.
      const { n } = this.request.params[0];
      const first = this.choices.filter((choice) => choice.index % n === 0);
      const cached = first.reduce((sum, choice) => sum + (choice.finish?.cachedTokens ?? 0), 0);
      usage.prompt_tokens_details = { cached_tokens: cached };
    }
    return usage;
  }

  /** The client is gone or nobody wants the rest: nothing more is reported. */
  abort(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const id of this.#ids) this.#engine.abort(id);
  }

  /** Ends the request with an error, from outside (the server stops). */
  fail(error: Error): void {
    if (this.#closed) return;
    this.abort();
    this.#sink.failed(error);
  }

  #onDelta(index: number, delta: Delta): void {
    const choice = this.choices[index];
    const before = choice.completionTokens;
    const wasStopped = choice.stopped !== undefined;
    if (delta.firstToken !== undefined) {
      this.#metrics.firstToken((delta.firstToken - this.request.arrivalMs) / 1000);
    }
    if (delta.tokens.length > 0 && !wasStopped) {
      const time = now();
      const last = this.#lastDelta[index];
      if (last !== undefined) this.#metrics.interToken((time - last) / 1000);
      this.#lastDelta[index] = time;
    }
    const piece = choice.push(delta);
    if (delta.finish) {
      this.#running--;
      const reason = choice.stopped === undefined ? delta.finish.reason : 'stop';
      this.#metrics.finished(reason, delta.finish.timing, choice.completionTokens);
    }
    if (this.#closed) return;
    if (delta.finish && choice.stopped === undefined) {
      const error = failure(delta);
      if (error) {
        this.fail(error);
        return;
      }
    }
    if (!wasStopped && choice.stopped !== undefined && !delta.finish) {
      const { promptIndex } = choice;
      this.#engine.abort(this.#ids[promptIndex], index % this.request.params[0].n);
    }
    if (piece && (piece.finishReason || choice.completionTokens > before || piece.promptLogprobs)) {
      this.#sink.piece(choice, piece);
    }
    if (this.#running === 0 && !this.#closed) {
      this.#closed = true;
      this.#sink.done();
    }
  }
}

function failure({ finish }: Delta): Error | undefined {
  if (finish?.reason === 'error') {
    return new GenerationError(finish.error?.message ?? 'The request failed in the engine');
  }
  // Aborts of our own are not reported; this one is the engine's, which is closing.
  if (finish?.reason === 'abort') return new EngineClosedError('The server is shutting down');
  return undefined;
}
