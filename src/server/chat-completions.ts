/**
 * POST /v1/chat/completions.
 *
 * https://platform.openai.com/docs/api-reference/chat, with the extras of vLLM.
 */
import { randomUUID } from 'node:crypto';
import { InvalidParameterError } from '../errors.js';
import { type AnswerFormat, answer, eventHead } from './answer.js';
import { readChatPrompt } from './chat-prompt.js';
import type { Choice, Piece } from './choice.js';
import { checkModel, type ServerContext } from './context.js';
import type { Exchange } from './exchange.js';
import { Fields } from './fields.js';
import type { Generation, Usage } from './generation.js';
import { chatLogprobs, promptLogprobs, TokenNames } from './logprobs.js';
import type { Prompt } from './prompt.js';
import { readJsonBody } from './request-body.js';
import { maxTokensFor, readCommonFields, readStreamOptions } from './request-fields.js';
import { MAX_LOGPROBS, readSamplingFields } from './sampling-fields.js';

export async function chatCompletions(context: ServerContext, exchange: Exchange): Promise<void> {
  const body = await readJsonBody(exchange.request, context.maxBodySize);
  const fields = new Fields(body);
  const model = checkModel(context, fields);
  refuseUnsupported(fields);
  const common = readCommonFields(fields, context);
  const stream = readStreamOptions(fields);
  const sampling = readSamplingFields(fields, context.generationDefaults, context.engine.info);
  const logprobs = readLogprobs(fields);
  const asked =
    fields.integer('max_completion_tokens', { min: 1 }) ?? fields.integer('max_tokens', { min: 1 });
  if (common.promptLogprobs !== undefined && stream) {
    throw new InvalidParameterError('prompt_logprobs is not supported with stream', {
      param: 'prompt_logprobs',
    });
  }
  const prompt = readChatPrompt(fields, context);
  const maxTokens = maxTokensFor(
    prompt.ids.length,
    { asked, minTokens: sampling.minTokens },
    context,
  );
  const format = new ChatFormat({
    id: `chatcmpl-${randomUUID()}`,
    model,
    prompt,
    names: new TokenNames(context.tokenizer, common.tokensAsIds),
    logprobs: logprobs !== undefined,
    tokenIds: common.returnTokenIds,
    usage: stream && { every: stream.continuousUsage, last: stream.includeUsage },
  });
  exchange.logFields.id = format.id;
  answer(
    context,
    exchange,
    {
      prompts: [prompt],
      params: [{ ...sampling, logprobs, promptLogprobs: common.promptLogprobs, maxTokens }],
      arrivalMs: exchange.arrivalMs,
      ...common.scheduling,
    },
    format,
    stream,
  );
}

/** OpenAI's pair: `logprobs` switches, `top_logprobs` counts. */
function readLogprobs(fields: Fields): number | undefined {
  const wanted = fields.boolean('logprobs') ?? false;
  const top = fields.integer('top_logprobs', { min: 0, max: MAX_LOGPROBS });
  if (top !== undefined && top > 0 && !wanted) {
    throw new InvalidParameterError('top_logprobs is only allowed with logprobs', {
      param: 'top_logprobs',
    });
  }
  return wanted ? (top ?? 0) : undefined;
}

function refuseUnsupported(fields: Fields): void {
  fields.refuse('tools', 'there is no tool parser');
  fields.refuse('functions', 'there is no tool parser');
  const harmlessChoice = (value: unknown): boolean => value === 'none' || value === 'auto';
  fields.refuse('tool_choice', 'there is no tool parser', harmlessChoice);
  fields.refuse('function_call', 'there is no tool parser', harmlessChoice);
  fields.refuse('modalities', 'only text is', (value) => JSON.stringify(value) === '["text"]');
  fields.refuse('audio', 'only text is');
  fields.refuse('prediction', 'there is no predicted output');
  fields.refuse('web_search_options', 'there is no web search');
  fields.refuse('reasoning_effort', 'give it to the template with chat_template_kwargs');
  fields.refuse('verbosity', 'give it to the template with chat_template_kwargs');
  fields.refuse('documents', 'give them to the template with chat_template_kwargs');
  fields.refuse('store', 'answers are not stored');
  fields.refuse('echo', 'only /v1/completions has it');
  fields.refuse('continue_final_message', 'send the rendered prompt to /v1/completions');
  fields.refuse('mm_processor_kwargs', 'only text is');
}

interface FormatOptions {
  id: string;
  model: string;
  prompt: Prompt;
  names: TokenNames;
  logprobs: boolean;
  tokenIds: boolean;
  usage?: { every: boolean; last: boolean };
}

class ChatFormat implements AnswerFormat {
  readonly id: string;
  readonly #options: FormatOptions;
  readonly #created = Math.floor(Date.now() / 1000);
  readonly #head: string;
  /** What ends an event that has nothing but text. */
  readonly #plainTail: string;
  readonly #usageTail: string;
  /** Choices that have begun. */
  readonly #begun = new Set<number>();

  constructor(options: FormatOptions) {
    this.id = options.id;
    this.#options = options;
    const { id, model } = options;
    this.#head = eventHead({ id, object: 'chat.completion.chunk', created: this.#created, model });
    this.#usageTail = options.usage?.last ? ',"usage":null' : '';
    this.#plainTail = `},"logprobs":null,"finish_reason":null}]${this.#usageTail}}\n\n`;
  }

  body(pieces: readonly Piece[], generation: Generation): unknown {
    const { names, prompt, tokenIds } = this.#options;
    const prompted = pieces[0].promptLogprobs;
    return {
      id: this.id,
      object: 'chat.completion',
      created: this.#created,
      model: this.#options.model,
      choices: pieces.map((piece, index) => ({
        index,
        message: { role: 'assistant', content: piece.text, refusal: null },
        ...this.#details(piece),
      })),
      usage: generation.usage(),
      ...(prompted && { prompt_logprobs: promptLogprobs(prompted, names) }),
      ...(tokenIds && { prompt_token_ids: prompt.ids }),
    };
  }

  events(choice: Choice, piece: Piece, generation: Generation): string {
    const { logprobs, tokenIds, usage } = this.#options;
    if (piece.text === '' && !piece.finishReason && !logprobs && !tokenIds) return '';
    const opening = this.#begun.has(choice.index) ? '' : this.#opening(choice);
    const start = `${opening}${this.#head}{"index":${choice.index},"delta":{"content":${JSON.stringify(piece.text)}`;
    if (!piece.finishReason && !logprobs && !tokenIds && !usage?.every) {
      return start + this.#plainTail;
    }
    const details = JSON.stringify(this.#details(piece)).slice(1);
    const tail = usage?.every ? `,"usage":${JSON.stringify(generation.usage())}` : this.#usageTail;
    return `${start}},${details}]${tail}}\n\n`;
  }

  usageEvent(usage: Usage): string {
    return `${this.#head}],"usage":${JSON.stringify(usage)}}\n\n`;
  }

  /** OpenAI opens every choice with its role; vLLM sends the prompt's ids along. */
  #opening(choice: Choice): string {
    const { tokenIds, prompt } = this.#options;
    const ids = tokenIds && this.#begun.size === 0 ? `,"prompt_token_ids":[${prompt.ids}]` : '';
    this.#begun.add(choice.index);
    return `${this.#head}{"index":${choice.index},"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]${this.#usageTail}${ids}}\n\n`;
  }

  /** What follows the message or delta of a choice. */
  #details(piece: Piece): Record<string, unknown> {
    const { names, logprobs, tokenIds } = this.#options;
    return {
      logprobs: logprobs ? chatLogprobs(piece.logprobs ?? [], names) : null,
      finish_reason: piece.finishReason ?? null,
      stop_reason: piece.stopReason ?? null,
      ...(tokenIds && { token_ids: piece.tokenIds }),
    };
  }
}
