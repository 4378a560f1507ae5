/** How a request wants its tokens chosen and where it wants to stop. */
import { MAX_LOGPROBS } from '../backend/backend.js';
import { InvalidParameterError } from '../errors.js';

/** All fields set; `samplingParams()` fills defaults and validates. Names follow vLLM's, in camel case. */
export interface SamplingParams {
  /** Choices to generate from the same prompt. */
  n: number;
  /** 0 is greedy. */
  temperature: number;
  topP: number;
  /** 0 is off. */
  topK: number;
  minP: number;
  repetitionPenalty: number;
  presencePenalty: number;
  frequencyPenalty: number;
  /** Token id to the value added to its logit, -100 to 100. */
  logitBias: ReadonlyMap<number, number>;
  /** Same seed, same tokens, whatever else is in the batch. Without it every request draws its own. */
  seed?: number;
  /** Text that ends the answer. Watched where text is made: by the detokenizer, not by the engine. */
  stop: readonly string[];
  stopTokenIds: readonly number[];
  /** Keep the stop string in the text. */
  includeStopStrInOutput: boolean;
  /** Tokens to generate before a stop token or stop string counts. */
  minTokens: number;
  /** Undefined: as many as the context allows. */
  maxTokens?: number;
  ignoreEos: boolean;
  /** Alternatives to report with each generated token; undefined: no logprobs. */
  logprobs?: number;
  /** The same for the prompt's tokens. */
  promptLogprobs?: number;
  /** Leave special tokens out of the text. */
  skipSpecialTokens: boolean;
}

/** What bounds the parameters; an `EngineInfo` fits. */
export interface SamplingLimits {
  vocabSize: number;
  maxNumSeqs: number;
}

const DEFAULTS: SamplingParams = {
  n: 1,
  temperature: 1,
  topP: 1,
  topK: 0,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  logitBias: new Map(),
  stop: [],
  stopTokenIds: [],
  includeStopStrInOutput: false,
  minTokens: 0,
  ignoreEos: false,
  skipSpecialTokens: true,
};

const NAMES: ReadonlySet<string> = new Set([
  ...Object.keys(DEFAULTS),
  ...['seed', 'maxTokens', 'logprobs', 'promptLogprobs'],
]);

/**
 * Fills what is missing with vLLM's defaults and checks the rest. Throws InvalidParameterError that
 * names the parameter as an HTTP client writes it (`max_tokens`).
 */
export function samplingParams(
  given: Partial<SamplingParams>,
  limits: SamplingLimits,
): SamplingParams {
  const set = Object.entries(given).filter(([, value]) => value !== undefined);
  for (const [name] of set) {
    // In JavaScript `max_tokens` or a slip would otherwise be a silent default.
    if (!NAMES.has(name)) {
      const known = [...NAMES].join(', ');
      throw new InvalidParameterError(`Unknown sampling parameter ${name}; known are ${known}`, {
        param: name,
      });
    }
  }
  const params: SamplingParams = { ...DEFAULTS, ...Object.fromEntries(set) };
  checkSamplingParams(params, limits);
  return params;
}

/** The checks of `samplingParams`, for complete parameters. */
export function checkSamplingParams(params: SamplingParams, limits: SamplingLimits): void {
  const { vocabSize, maxNumSeqs } = limits;
  integer('n', params.n, 1, maxNumSeqs);
  number('temperature', params.temperature, { min: 0 });
  number('top_p', params.topP, { above: 0, max: 1 });
  integer('top_k', params.topK, 0, INT32);
  number('min_p', params.minP, { min: 0, max: 1 });
  number('repetition_penalty', params.repetitionPenalty, { above: 0 });
  number('presence_penalty', params.presencePenalty, { min: -2, max: 2 });
  number('frequency_penalty', params.frequencyPenalty, { min: -2, max: 2 });
  if (!(params.logitBias instanceof Map)) {
    throw InvalidParameterError.expected('Map of token ids', 'logit_bias', params.logitBias);
  }
  for (const [token, value] of params.logitBias) {
    integer('logit_bias', token, 0, vocabSize - 1);
    number('logit_bias', value, { min: -100, max: 100 });
  }
  if (params.seed !== undefined) {
    integer('seed', params.seed, Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER);
  }
  for (const text of list('stop', params.stop)) {
    if (typeof text !== 'string' || text === '') {
      throw InvalidParameterError.expected('strings that are not empty', 'stop', text);
    }
  }
  for (const token of list('stop_token_ids', params.stopTokenIds)) {
    integer('stop_token_ids', token, 0, vocabSize - 1);
  }
  integer('min_tokens', params.minTokens, 0, params.maxTokens ?? INT32);
  if (params.maxTokens !== undefined) integer('max_tokens', params.maxTokens, 1, INT32);
  flag('include_stop_str_in_output', params.includeStopStrInOutput);
  flag('ignore_eos', params.ignoreEos);
  flag('skip_special_tokens', params.skipSpecialTokens);
  const mostLogprobs = Math.min(MAX_LOGPROBS, vocabSize);
  if (params.logprobs !== undefined) integer('logprobs', params.logprobs, 0, mostLogprobs);
  if (params.promptLogprobs !== undefined) {
    integer('prompt_logprobs', params.promptLogprobs, 0, mostLogprobs);
  }
}

const INT32 = 2 ** 31 - 1;

function integer(name: string, value: unknown, min: number, max: number): void {
  if (!Number.isSafeInteger(value) || (value as number) < min || (value as number) > max) {
    throw InvalidParameterError.expected(`integer between ${min} and ${max}`, name, value);
  }
}

interface Range {
  min?: number;
  above?: number;
  max?: number;
}

/** The executors compute in float32: a value must be in the range there too. */
function number(name: string, value: unknown, { min, above, max }: Range): void {
  const ok =
    typeof value === 'number' &&
    Number.isFinite(Math.fround(value)) &&
    value >= (min ?? -Infinity) &&
    Math.fround(value) > (above ?? -Infinity) &&
    value <= (max ?? Infinity);
  if (ok) return;
  const least = above === undefined ? `at least ${min}` : `greater than ${above}`;
  const most = max === undefined ? '' : ` and at most ${max}`;
  throw InvalidParameterError.expected(`number ${least}${most}`, name, value);
}

function flag(name: string, value: unknown): void {
  if (typeof value !== 'boolean') throw InvalidParameterError.expected('boolean', name, value);
}

function list<T>(name: string, value: readonly T[]): readonly T[] {
  if (!Array.isArray(value)) throw InvalidParameterError.expected('array', name, value);
  return value;
}
