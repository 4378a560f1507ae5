/** The library: a model in the caller's process, with text in and out. */
import { type Delta, type Engine, type EngineInfo, type Finish, now } from './engine/api.js';
import type { EngineOptions } from './engine/engine-options.js';
import { type SamplingParams, samplingParams } from './engine/sampling-params.js';
import { startEngine } from './engine/start-engine.js';
import { GenerationError, InvalidParameterError } from './errors.js';
import { type GenerationDefaults, loadModel } from './model/load-model.js';
import { IncrementalDecoder } from './tokenizer/incremental-decoder.js';
import { loadTokenizer } from './tokenizer/load-tokenizer.js';
import type { ChatMessage, Tokenizer } from './tokenizer/tokenizer.js';

export interface LoadOptions extends Omit<EngineOptions, 'model'> {
  /** Called with the share of the weights that is loaded, 0 to 1. */
  onProgress?: (share: number) => void;
}

/** Text, or the token ids of one prompt. */
export type Prompt = string | readonly number[];

export interface Progress {
  /** Prompts that are done, of `total`. */
  done: number;
  total: number;
  /** Tokens generated so far, and per second. */
  tokens: number;
  tokensPerSecond: number;
}

export interface GenerateOptions {
  onProgress?: (progress: Progress) => void;
  /** Gives up: unfinished choices end with the reason `abort`. */
  signal?: AbortSignal;
}

export interface Completion {
  text: string;
  tokenIds: number[];
  finishReason: 'stop' | 'length' | 'abort';
  /** The stop string or token id that ended it, if one did. */
  stopReason?: string | number;
  logprobs?: NonNullable<Delta['logprobs']>;
}

export interface Generation {
  prompt: Prompt;
  promptTokenIds: number[];
  promptLogprobs?: NonNullable<Delta['promptLogprobs']>;
  /** Tokens of the prompt that came from the prefix cache. */
  cachedTokens: number;
  /** The first choice's text. */
  text: string;
  /** All `n` choices. */
  choices: Completion[];
}

/** A piece of a streamed answer. */
export interface StreamPart {
  index: number;
  text: string;
  tokenIds: number[];
  /** With the last part of the choice. */
  finishReason?: Completion['finishReason'];
}

/**
 * A loaded model. Calls may overlap; they are batched together.
 *
 * @example
 * const llm = await LLM.load('models/stories-7m');
 * const [answer] = await llm.generate('Once upon a time', { maxTokens: 64 });
 * console.log(answer.text);
 * await llm.close();
 */
export class LLM {
  readonly engine: Engine;
  readonly tokenizer: Tokenizer;
  readonly #defaults: GenerationDefaults;
  #requests = 0;

  private constructor(engine: Engine, tokenizer: Tokenizer, defaults: GenerationDefaults) {
    this.engine = engine;
    this.tokenizer = tokenizer;
    this.#defaults = defaults;
  }

  /** Loads the checkpoint in the directory `model`. Rejects as `startEngine` and `loadTokenizer` do. */
  static async load(model: string, options: LoadOptions = {}): Promise<LLM> {
    const { onProgress, ...engineOptions } = options;
    const { generationDefaults } = loadModel(model, engineOptions);
    const tokenizer = await loadTokenizer(model);
    const engine = await startEngine({ ...engineOptions, model }, { onProgress });
    return new LLM(engine, tokenizer, generationDefaults);
  }

  get info(): EngineInfo {
    return this.engine.info;
  }

  /**
   * Answers one prompt or many, in their order. Defaults are those of the checkpoint's
   * generation_config.json. Rejects with InvalidParameterError, ContextLengthError, or
   * GenerationError if the model failed on a prompt; then the others are given up.
   */
  async generate(
    prompts: Prompt | readonly Prompt[],
    params: Partial<SamplingParams> = {},
    { onProgress, signal }: GenerateOptions = {},
  ): Promise<Generation[]> {
    const complete = this.#params(params);
    const list = asPrompts(prompts);
    const tokens = list.map((prompt) => this.#encode(prompt));
    const start = now();
    let done = 0;
    let generated = 0;
    const aborts: (() => void)[] = [];
    const giveUp = (): void => {
      for (const abort of aborts) abort();
    };
    const one = async (prompt: Prompt, index: number): Promise<Generation> => {
      const generation = await this.#generateOne(prompt, tokens[index], complete, aborts, () => {
        generated++;
      });
      done++;
      const seconds = Math.max(1e-3, (now() - start) / 1000);
      const tokensPerSecond = generated / seconds;
      onProgress?.({ done, total: list.length, tokens: generated, tokensPerSecond });
      return generation;
    };
    try {
      const all = Promise.all(list.map(one));
      signal?.addEventListener('abort', giveUp);
      if (signal?.aborted) giveUp();
      return await all;
    } catch (error) {
      giveUp();
      throw error;
    } finally {
      signal?.removeEventListener('abort', giveUp);
    }
  }

  /** Answers a chat: renders the checkpoint's template, then generates. */
  async chat(
    messages: readonly ChatMessage[],
    params: Partial<SamplingParams> = {},
    options: GenerateOptions = {},
  ): Promise<Generation> {
    const [generation] = await this.generate([this.#chatPrompt(messages)], params, options);
    return generation;
  }

  /**
   * Answers one prompt piece by piece. Leaving the loop early gives the answer up.
   *
   * @example
   * for await (const { text } of llm.stream('Once upon a time')) process.stdout.write(text);
   */
  stream(
    prompt: Prompt | readonly ChatMessage[],
    params: Partial<SamplingParams> = {},
    { signal }: Pick<GenerateOptions, 'signal'> = {},
  ): AsyncGenerator<StreamPart, void, undefined> {
    const tokens = this.#encode(isChat(prompt) ? this.#chatPrompt(prompt) : prompt);
    return this.#stream(tokens, this.#params(params), signal);
  }

  /** Ends everything in flight and frees the model. */
  close(): Promise<void> {
    return this.engine.close();
  }

  async *#stream(
    tokens: readonly number[],
    params: SamplingParams,
    signal?: AbortSignal,
  ): AsyncGenerator<StreamPart, void, undefined> {
    const parts: StreamPart[] = [];
    let open = params.n;
    let failure: Error | undefined;
    let wake = (): void => {};
    const abort = this.#start(tokens, params, {
      onPart(part) {
        parts.push(part);
        if (part.finishReason) open--;
        wake();
      },
      onError(error) {
        failure = error;
        wake();
      },
    });
    signal?.addEventListener('abort', abort, { once: true });
    if (signal?.aborted) abort();
    try {
      while (open > 0 || parts.length > 0) {
        const part = parts.shift();
        if (part) yield part;
        else if (failure) throw failure;
        else {
          await new Promise<void>((resolve) => {
            wake = resolve;
          });
        }
      }
    } finally {
      signal?.removeEventListener('abort', abort);
      abort();
    }
  }

  #generateOne(
    prompt: Prompt,
    promptTokenIds: number[],
    params: SamplingParams,
    aborts: (() => void)[],
    onToken: () => void,
  ): Promise<Generation> {
    return new Promise((resolve, reject) => {
      const choices: Completion[] = Array.from({ length: params.n }, () => ({
        text: '',
        tokenIds: [],
        finishReason: 'abort',
      }));
      let open = params.n;
      let promptLogprobs: Generation['promptLogprobs'];
      const abort = this.#start(promptTokenIds, params, {
        onPart(part, delta, stopReason, finish) {
          const choice = choices[part.index];
          choice.text += part.text;
          choice.tokenIds.push(...part.tokenIds);
          if (delta.logprobs) choice.logprobs = [...(choice.logprobs ?? []), ...delta.logprobs];
          promptLogprobs ??= delta.promptLogprobs;
          for (const _ of part.tokenIds) onToken();
          if (!part.finishReason) return;
          choice.finishReason = part.finishReason;
          if (stopReason !== undefined) choice.stopReason = stopReason;
          if (--open > 0) return;
          const cachedTokens = finish?.cachedTokens ?? 0;
          const { text } = choices[0];
          resolve({ prompt, promptTokenIds, promptLogprobs, cachedTokens, text, choices });
        },
        onError: reject,
      });
      aborts.push(abort);
    });
  }

  /** Queues a request and turns its deltas into text; returns the function that gives it up. */
  #start(
    prompt: readonly number[],
    params: SamplingParams,
    { onPart, onError }: Listener,
  ): () => void {
    const id = `llm-${this.#requests++}`;
    const decoders = Array.from({ length: params.n }, () => {
      return new IncrementalDecoder(this.tokenizer, params);
    });
    const ended = new Set<number>();
    this.engine.generate({ id, prompt, params }, (delta) => {
      const { index, tokens, finish } = delta;
      // After a stop string the engine is still to hear of it; what it made meanwhile is not shown.
      if (ended.has(index)) return;
      if (finish?.reason === 'error') {
        ended.add(index);
        onError(new GenerationError(finish.error?.message ?? 'The model failed on this request'));
        return;
      }
      const decoder = decoders[index];
      let text = '';
      for (const token of tokens) {
        if (token !== finish?.stopToken) text += decoder.push(token);
      }
      const part: StreamPart = { index, text, tokenIds: tokens };
      if (decoder.stopped !== undefined) {
        ended.add(index);
        if (!finish) this.engine.abort(id, index);
        onPart({ ...part, finishReason: 'stop' }, delta, decoder.stopped, finish);
      } else if (finish) {
        ended.add(index);
        const { reason, stopToken } = finish;
        part.text += decoder.flush();
        onPart({ ...part, finishReason: reason as 'stop' }, delta, stopToken, finish);
      } else {
        onPart(part, delta);
      }
    });
    return () => this.engine.abort(id);
  }

  #params(params: Partial<SamplingParams>): SamplingParams {
    return samplingParams({ ...this.#defaults, ...withoutUndefined(params) }, this.info);
  }

  #encode(prompt: Prompt): number[] {
    return typeof prompt === 'string' ? this.tokenizer.encode(prompt) : [...prompt];
  }

  /** The template writes the special tokens itself. */
  #chatPrompt(messages: readonly ChatMessage[]): number[] {
    const text = this.tokenizer.applyChatTemplate(messages, { addGenerationPrompt: true });
    return this.tokenizer.encode(text, { addSpecialTokens: false });
  }
}

interface Listener {
  /** `finish` is missing where a stop string ended the choice before the engine did. */
  onPart(part: StreamPart, delta: Delta, stopReason?: string | number, finish?: Finish): void;
  onError(error: Error): void;
}

function asPrompts(prompts: Prompt | readonly Prompt[]): readonly Prompt[] {
  if (typeof prompts === 'string') return [prompts];
  if (!Array.isArray(prompts)) {
    throw InvalidParameterError.expected('string, strings, token ids or lists', 'prompts', prompts);
  }
  const isTokens = prompts.length > 0 && typeof prompts[0] === 'number';
  return isTokens ? [prompts as readonly number[]] : (prompts as readonly Prompt[]);
}

function isChat(prompt: Prompt | readonly ChatMessage[]): prompt is readonly ChatMessage[] {
  return typeof prompt !== 'string' && typeof prompt[0] === 'object';
}

function withoutUndefined<T extends object>(object: T): T {
  return Object.fromEntries(Object.entries(object).filter(([, value]) => value !== undefined)) as T;
}
