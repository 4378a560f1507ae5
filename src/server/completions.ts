/**
 * POST /v1/completions.
 *
 * https://platform.openai.com/docs/api-reference/completions, with the extras of vLLM.
 */
import { randomUUID } from 'node:crypto';
import type { TokenLogprob } from '../engine/api.js';
import { InvalidParameterError } from '../errors.js';
import { type AnswerFormat, answer, eventHead } from './answer.js';
import type { Choice, Piece } from './choice.js';
import { checkModel, type ServerContext } from './context.js';
import type { Exchange } from './exchange.js';
import { Fields } from './fields.js';
import type { Generation, Usage } from './generation.js';
import { completionLogprobs, promptLogprobs, TokenNames } from './logprobs.js';
import { type Prompt, readPrompts } from './prompt.js';
import { readJsonBody } from './request-body.js';
import { maxTokensFor, readCommonFields, readStreamOptions } from './request-fields.js';
import { MAX_LOGPROBS, readSamplingFields } from './sampling-fields.js';

/** OpenAI's default for completions. */
const DEFAULT_MAX_TOKENS = 16;

export async function completions(context: ServerContext, exchange: Exchange): Promise<void> {
  const body = await readJsonBody(exchange.request, context.maxBodySize);
  const fields = new Fields(body);
  const model = checkModel(context, fields);
  fields.refuse('suffix', 'there is no fill-in-the-middle');
  const common = readCommonFields(fields, context);
  const stream = readStreamOptions(fields);
  const sampling = readSamplingFields(fields, context.generationDefaults, context.engine.info);
  const logprobs = fields.integer('logprobs', { min: 0, max: MAX_LOGPROBS });
  const echo = fields.boolean('echo') ?? false;
  const maxTokens = fields.integer('max_tokens', { min: echo ? 0 : 1 });
  const prompts = readPrompts(fields, context.tokenizer, context.limits, sampling.n);
  const askedPromptLogprobs = common.promptLogprobs;
  if (askedPromptLogprobs !== undefined && stream) {
    throw new InvalidParameterError('prompt_logprobs is not supported with stream', {
      param: 'prompt_logprobs',
    });
  }
  if (echo && !context.tokenizer) fields.refuse('echo', 'there is no tokenizer');

  // Scoring: OpenAI's max_tokens 0 with echo. One token is made, because a step makes one, and dropped.
  const scoreOnly = maxTokens === 0;
  const params = prompts.map(({ ids }) => ({
    ...sampling,
    logprobs,
    promptLogprobs: askedPromptLogprobs ?? (echo ? logprobs : undefined),
    maxTokens: maxTokensFor(
      ids.length,
      {
        asked: scoreOnly ? 1 : maxTokens,
        byDefault: DEFAULT_MAX_TOKENS,
        minTokens: sampling.minTokens,
      },
      context,
    ),
  }));
  const format = new CompletionFormat({
    id: `cmpl-${randomUUID()}`,
    model,
    prompts,
    context,
    names: new TokenNames(context.tokenizer, common.tokensAsIds),
    echo,
    scoreOnly,
    logprobs: logprobs !== undefined,
    promptLogprobs: askedPromptLogprobs !== undefined,
    tokenIds: common.returnTokenIds,
    usage: stream && { every: stream.continuousUsage, last: stream.includeUsage },
  });
  exchange.logFields.id = format.id;
  answer(
    context,
    exchange,
    { prompts, params, scoreOnly, arrivalMs: exchange.arrivalMs, ...common.scheduling },
    format,
    stream,
  );
}

interface FormatOptions {
  id: string;
  model: string;
  prompts: readonly Prompt[];
  context: ServerContext;
  names: TokenNames;
  /** Begin the text with the prompt. */
  echo: boolean;
  /** Leave the generated token out. */
  scoreOnly: boolean;
  logprobs: boolean;
  promptLogprobs: boolean;
  tokenIds: boolean;
  usage?: { every: boolean; last: boolean };
}

class CompletionFormat implements AnswerFormat {
  readonly id: string;
  readonly #options: FormatOptions;
  readonly #created = Math.floor(Date.now() / 1000);
  readonly #head: string;
  /** What ends an event that has nothing but text. */
  readonly #plainTail: string;
  /** By choice: the length of its text so far; undefined before its first event. */
  readonly #offsets: (number | undefined)[] = [];

  constructor(options: FormatOptions) {
    this.id = options.id;
    this.#options = options;
    const { id, model } = options;
    this.#head = eventHead({ id, object: 'text_completion', created: this.#created, model });
    const usage = options.usage?.last ? ',"usage":null' : '';
    this.#plainTail = `,"logprobs":null,"finish_reason":null,"stop_reason":null}]${usage}}\n\n`;
  }

  body(pieces: readonly Piece[], generation: Generation): unknown {
    return {
      id: this.id,
      object: 'text_completion',
      created: this.#created,
      model: this.#options.model,
      choices: generation.choices.map((choice) => this.#choice(choice, pieces[choice.index])),
      usage: generation.usage(),
    };
  }

  events(choice: Choice, piece: Piece, generation: Generation): string {
    const { logprobs, tokenIds, usage } = this.#options;
    if (piece.text === '' && !piece.finishReason && !logprobs && !tokenIds) return '';
    const first = this.#offsets[choice.index] === undefined;
    const plain = !first && !piece.finishReason && !logprobs && !tokenIds && !usage?.every;
    if (plain) {
      return `${this.#head}{"index":${choice.index},"text":${JSON.stringify(piece.text)}${this.#plainTail}`;
    }
    const tail = usage?.every
      ? `,"usage":${JSON.stringify(generation.usage())}`
      : usage?.last
        ? ',"usage":null'
        : '';
    return `${this.#head}${JSON.stringify(this.#choice(choice, piece))}]${tail}}\n\n`;
  }

  usageEvent(usage: Usage): string {
    return `${this.#head}],"usage":${JSON.stringify(usage)}}\n\n`;
  }

  #choice(choice: Choice, piece: Piece): unknown {
    const { echo, scoreOnly, names, tokenIds } = this.#options;
    const prompt = this.#options.prompts[choice.promptIndex];
    const first = this.#offsets[choice.index] === undefined;
    const echoed = echo && first ? this.#promptText(prompt) : '';
    const text = scoreOnly ? echoed : echoed + piece.text;
    const logprobs = this.#logprobs(choice, piece, echo && first);
    this.#offsets[choice.index] = (this.#offsets[choice.index] ?? 0) + text.length;
    return {
      index: choice.index,
      text,
      logprobs,
      finish_reason: piece.finishReason ?? null,
      stop_reason: piece.stopReason ?? null,
      ...(this.#options.promptLogprobs &&
        piece.promptLogprobs && { prompt_logprobs: promptLogprobs(piece.promptLogprobs, names) }),
      ...(tokenIds && { token_ids: scoreOnly ? [] : piece.tokenIds }),
      ...(tokenIds && first && { prompt_token_ids: prompt.ids }),
    };
  }

  #logprobs(choice: Choice, piece: Piece, echo: boolean): unknown {
    const { scoreOnly, names, prompts } = this.#options;
    if (!this.#options.logprobs) return null;
    const ids: number[] = [];
    const entries: (TokenLogprob | null)[] = [];
    if (echo && piece.promptLogprobs) {
      ids.push(...prompts[choice.promptIndex].ids);
      entries.push(...piece.promptLogprobs);
    }
    if (!scoreOnly && piece.logprobs) {
      ids.push(...piece.tokenIds);
      entries.push(...piece.logprobs);
    }
    // A prompt that came as text is echoed as it came, without the tokens that encoding adds.
    const specialShown = prompts[choice.promptIndex].text === undefined;
    const offset = this.#offsets[choice.index] ?? 0;
    return completionLogprobs(ids, entries, names, offset, specialShown);
  }

  #promptText({ text, ids }: Prompt): string {
    return text ?? this.#options.context.tokenizer?.decode(ids) ?? '';
  }
}
