/** From what a request calls its prompt to token ids. */
import { ContextLengthError, InvalidParameterError } from '../errors.js';
import type { Tokenizer } from '../tokenizer/tokenizer.js';
import { type Fields, isTokenIds } from './fields.js';

export interface PromptLimits {
  vocabSize: number;
  /** Tokens of prompt and answer together. */
  maxModelLen: number;
  /** Answers to one request: prompts times n. */
  maxChoices: number;
}

export interface Prompt {
  ids: number[];
  /** As the client wrote it, if as text. */
  text?: string;
}

/** `prompt` of /v1/completions: a string, strings, token ids, or lists of token ids. */
export function readPrompts(
  fields: Fields,
  tokenizer: Tokenizer | undefined,
  limits: PromptLimits,
  n: number,
): Prompt[] {
  const value = fields.get('prompt');
  const truncate = readTruncate(fields);
  const addSpecialTokens = fields.boolean('add_special_tokens') ?? true;
  const inputs = listOfPrompts(value, limits.vocabSize);
  if (inputs === undefined || inputs.length === 0) {
    fields.fail(
      'prompt',
      `string, list of strings, list of token ids between 0 and ${limits.vocabSize - 1}, or list of such lists`,
    );
  }
  if (inputs.length * n > limits.maxChoices) {
    fields.fail(inputs.length > 1 ? 'prompt' : 'n', `at most ${limits.maxChoices} prompts times n`);
  }
  return inputs.map((input) => {
    const text = typeof input === 'string' ? input : undefined;
    const ids =
      typeof input === 'string'
        ? encode(input, { tokenizer, limits, addSpecialTokens, truncate, param: 'prompt' })
        : cut(input, truncate);
    if (ids.length === 0) fields.fail('prompt', 'at least one token');
    return { ids, text };
  });
}

export interface EncodeOptions {
  tokenizer: Tokenizer | undefined;
  limits: PromptLimits;
  addSpecialTokens: boolean;
  /** Keep only this many tokens, the last ones. */
  truncate?: number;
  /** The field that the text came in. */
  param: string;
}

/** Tokenizes a text, unless its length alone tells that it can't fit: then tokenizing is work for nothing. */
export function encode(text: string, options: EncodeOptions): number[] {
  const { tokenizer, limits, truncate, param } = options;
  if (!tokenizer) throw withoutTokenizer(param);
  // JSON can write half a code point ("\\ud83d"); no token stands for it.
  if (/\p{Surrogate}/u.test(text)) {
    throw new InvalidParameterError(
      `${param} is not well-formed Unicode: it has a lone surrogate`,
      {
        param,
      },
    );
  }
  const atLeast = Math.ceil(Buffer.byteLength(text) / tokenizer.maxTokenBytes);
  if (atLeast > limits.maxModelLen && truncate === undefined) {
    throw new ContextLengthError(
      `This model's maximum context length is ${limits.maxModelLen} tokens, but ${param} has at least ${atLeast}`,
      { param },
    );
  }
  return cut(tokenizer.encode(text, { addSpecialTokens: options.addSpecialTokens }), truncate);
}

export function withoutTokenizer(param: string): InvalidParameterError {
  return new InvalidParameterError(
    `The server runs with --skip-tokenizer-init: ${param} needs a tokenizer; send prompt as token ids and read choices[].token_ids`,
    { param },
  );
}

/** vLLM's `truncate_prompt_tokens`; -1 is "to the context length" there and refused here. */
export function readTruncate(fields: Fields): number | undefined {
  return fields.integer('truncate_prompt_tokens', { min: 1 });
}

function cut(ids: number[], truncate: number | undefined): number[] {
  return truncate === undefined ? ids : ids.slice(-truncate);
}

function listOfPrompts(value: unknown, vocabSize: number): (string | number[])[] | undefined {
  if (typeof value === 'string') return [value];
  if (!Array.isArray(value) || value.length === 0) return undefined;
  if (typeof value[0] === 'number') return isTokenIds(value, vocabSize) ? [value] : undefined;
  if (value.every((item) => typeof item === 'string')) return value;
  if (value.every((item) => isTokenIds(item, vocabSize))) return value;
  return undefined;
}
