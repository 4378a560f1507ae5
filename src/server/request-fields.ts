/** Fields of a generation request that are about the request, not about sampling. */
import { ContextLengthError, InvalidParameterError } from '../errors.js';
import type { ServerContext } from './context.js';
import { Fields } from './fields.js';
import { MAX_LOGPROBS } from './sampling-fields.js';

export interface CommonFields {
  promptLogprobs?: number;
  returnTokenIds: boolean;
  tokensAsIds: boolean;
  scheduling: { priority?: number; cacheSalt?: string };
}

export function readCommonFields(fields: Fields, context: ServerContext): CommonFields {
  if (!context.tokenizer) {
    fields.refuse('stop', 'stop strings need a tokenizer and the server runs without one');
  }
  const cacheSalt = fields.string('cache_salt');
  if (cacheSalt === '') fields.fail('cache_salt', 'string that is not empty');
  return {
    promptLogprobs: fields.integer('prompt_logprobs', { min: 0, max: MAX_LOGPROBS }),
    // Without a tokenizer the ids are the answer.
    returnTokenIds: (fields.boolean('return_token_ids') ?? false) || !context.tokenizer,
    tokensAsIds: fields.boolean('return_tokens_as_token_ids') ?? false,
    scheduling: { priority: fields.integer('priority'), cacheSalt },
  };
}

export interface StreamFields {
  includeUsage: boolean;
  /** vLLM's extra: usage in every event. */
  continuousUsage: boolean;
}

/** Undefined if the answer is to be one body. */
export function readStreamOptions(fields: Fields): StreamFields | undefined {
  const stream = fields.boolean('stream') ?? false;
  const options = fields.object('stream_options');
  if (!stream) {
    if (options === undefined) return undefined;
    throw new InvalidParameterError('stream_options is only allowed with stream', {
      param: 'stream_options',
    });
  }
  const inner = new Fields(options ?? {}, 'stream_options.');
  const includeUsage = inner.boolean('include_usage') ?? false;
  const continuousUsage = inner.boolean('continuous_usage_stats') ?? false;
  return { includeUsage, continuousUsage: includeUsage && continuousUsage };
}

/** How many tokens to generate: what was asked for if it fits, otherwise the default as far as it fits. */
export function maxTokensFor(
  promptTokens: number,
  want: { asked?: number; byDefault?: number; minTokens: number },
  context: ServerContext,
): number {
  const { maxModelLen } = context.limits;
  const room = maxModelLen - promptTokens;
  if (room < 1 || (want.asked ?? 1) > room) {
    const asked = want.asked === undefined ? '' : ` and ${want.asked} were asked for`;
    throw new ContextLengthError(
      `This model's maximum context length is ${maxModelLen} tokens, but the prompt has ${promptTokens}${asked}`,
      { param: room < 1 ? 'prompt' : 'max_tokens' },
    );
  }
  const byDefault = want.byDefault ?? room;
  const maxTokens = want.asked ?? Math.min(byDefault, room);
  if (want.minTokens > maxTokens) {
    throw InvalidParameterError.expected(
      `integer of at most max_tokens (${maxTokens})`,
      'min_tokens',
      want.minTokens,
    );
  }
  return maxTokens;
}
