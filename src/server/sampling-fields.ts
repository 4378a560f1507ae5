/**
 * The sampling fields that /v1/completions and /v1/chat/completions share: OpenAI's and vLLM's
 * extras, with the checkpoint's generation_config.json as defaults (as vLLM does).
 *
 * Fields: https://docs.vllm.ai/en/latest/serving/openai_compatible_server.html
 */
import {
  type SamplingLimits,
  type SamplingParams,
  samplingParams,
} from '../engine/sampling-params.js';
import { InvalidParameterError } from '../errors.js';
import type { Fields } from './fields.js';

/** Alternatives that a request may ask for with each token; vLLM's `--max-logprobs` default. */
export const MAX_LOGPROBS = 20;
const MAX_STOP_STRINGS = 64;
const MAX_STOP_LENGTH = 1024;
const MAX_STOP_TOKEN_IDS = 1024;

/** What generation_config.json may set. */
export type GenerationDefaults = Partial<
  Pick<SamplingParams, 'temperature' | 'topP' | 'topK' | 'minP' | 'repetitionPenalty'>
>;

export type SharedSamplingParams = Omit<
  SamplingParams,
  'logprobs' | 'promptLogprobs' | 'maxTokens'
>;

/** Reads the fields and checks them, by the rules of `samplingParams`. */
export function readSamplingFields(
  fields: Fields,
  defaults: GenerationDefaults,
  limits: SamplingLimits,
): SharedSamplingParams {
  refuseUnsupported(fields);
  const n = fields.integer('n') ?? 1;
  fields.refuse('best_of', 'only best_of equal to n is', (value) => value === n);
  const topK = fields.integer('top_k');
  return samplingParams(
    {
      n,
      temperature: fields.number('temperature') ?? defaults.temperature,
      topP: fields.number('top_p') ?? defaults.topP,
      // vLLM writes "off" as -1 or 0.
      topK: topK === -1 ? 0 : (topK ?? defaults.topK),
      minP: fields.number('min_p') ?? defaults.minP,
      repetitionPenalty: fields.number('repetition_penalty') ?? defaults.repetitionPenalty,
      presencePenalty: fields.number('presence_penalty'),
      frequencyPenalty: fields.number('frequency_penalty'),
      logitBias: readLogitBias(fields, limits.vocabSize),
      seed: fields.integer('seed'),
      stop: readStop(fields),
      stopTokenIds: readStopTokenIds(fields, limits.vocabSize),
      includeStopStrInOutput: fields.boolean('include_stop_str_in_output'),
      minTokens: fields.integer('min_tokens'),
      ignoreEos: fields.boolean('ignore_eos'),
      skipSpecialTokens: fields.boolean('skip_special_tokens'),
    },
    limits,
  );
}

function readStop(fields: Fields): string[] {
  const stop = fields.strings('stop', { maxItems: MAX_STOP_STRINGS }) ?? [];
  for (const text of stop) {
    if (text === '') fields.fail('stop', 'strings that are not empty');
    if (text.length > MAX_STOP_LENGTH) {
      fields.fail('stop', `strings of at most ${MAX_STOP_LENGTH} characters`);
    }
    // A lone surrogate would cut a code point in two.
    if (/\p{Surrogate}/u.test(text)) fields.fail('stop', 'well-formed Unicode');
  }
  return stop;
}

function readStopTokenIds(fields: Fields, vocabSize: number): number[] {
  const ids = fields.tokenIds('stop_token_ids', vocabSize) ?? [];
  if (ids.length > MAX_STOP_TOKEN_IDS) {
    fields.fail('stop_token_ids', `at most ${MAX_STOP_TOKEN_IDS} token ids`);
  }
  return ids;
}

function readLogitBias(fields: Fields, vocabSize: number): Map<number, number> {
  const bias = new Map<number, number>();
  for (const [key, value] of Object.entries(fields.object('logit_bias') ?? {})) {
    const param = `logit_bias.${key}`;
    const id = /^\d+$/.test(key) ? Number(key) : -1;
    if (id < 0 || id >= vocabSize) {
      throw new InvalidParameterError(
        `Expected token ids between 0 and ${vocabSize - 1} as keys of logit_bias but received ${JSON.stringify(key)}`,
        { param: 'logit_bias' },
      );
    }
    if (typeof value !== 'number' || !(Math.abs(value) <= 100)) {
      throw InvalidParameterError.expected('number between -100 and 100', param, value);
    }
    bias.set(id, value);
  }
  return bias;
}

/** Known fields that ask for something this server does not do. Silence would be a wrong answer. */
function refuseUnsupported(fields: Fields): void {
  fields.refuse('use_beam_search', 'there is no beam search');
  fields.refuse('length_penalty', 'there is no beam search', (value) => value === 1);
  fields.refuse('early_stopping', 'there is no beam search');
  for (const key of [
    'guided_json',
    'guided_regex',
    'guided_choice',
    'guided_grammar',
    'structured_outputs',
    'structural_tag',
  ]) {
    fields.refuse(key, 'there is no guided decoding');
  }
  fields.refuse('response_format', "only { type: 'text' } is", (value) => {
    return (value as { type?: unknown }).type === 'text';
  });
  fields.refuse('allowed_token_ids', 'use logit_bias');
  fields.refuse('bad_words', 'use logit_bias');
  fields.refuse('logits_processors', 'requests cannot bring code');
  fields.refuse('prompt_embeds', 'send text or token ids');
  fields.refuse('kv_transfer_params', 'there is one engine');
  fields.refuse('thinking_token_budget', 'there is no reasoning parser');
}
