/** Log probabilities in the shapes of /v1/completions, /v1/chat/completions and vLLM's prompt_logprobs. */
import type { TokenLogprob } from '../engine/api.js';
import type { Tokenizer } from '../tokenizer/tokenizer.js';

/** JSON has no infinities; vLLM writes the same floor. */
const FLOOR = -9999;

/** How tokens are written where text is expected. */
export class TokenNames {
  readonly #tokenizer?: Tokenizer;
  readonly #asIds: boolean;

  /** @param asIds vLLM's `return_tokens_as_token_ids`: every token is `token_id:N`, so that none is ambiguous. */
  constructor(tokenizer: Tokenizer | undefined, asIds: boolean) {
    this.#tokenizer = tokenizer;
    this.#asIds = asIds || !tokenizer;
  }

  name(id: number): string {
    return this.#asIds ? `token_id:${id}` : (this.#tokenizer as Tokenizer).tokenText(id);
  }

  text(id: number): string {
    return this.#tokenizer?.tokenText(id) ?? '';
  }

  isSpecial(id: number): boolean {
    return this.#tokenizer?.isSpecial(id) ?? false;
  }

  bytes(id: number): number[] | null {
    return this.#tokenizer ? [...this.#tokenizer.tokenBytes(id)] : null;
  }
}

export interface CompletionLogprobs {
  text_offset: number[];
  token_logprobs: (number | null)[];
  tokens: string[];
  top_logprobs: (Record<string, number> | null)[];
}

/**
 * For /v1/completions. The sampled token is always among `top_logprobs`, as with OpenAI and vLLM.
 *
 * @param ids the tokens, as the first of a prompt has no entry
 * @param offset of the first token in the choice's text
 * @param specialShown whether special tokens are part of that text
 */
export function completionLogprobs(
  ids: readonly number[],
  entries: readonly (TokenLogprob | null)[],
  names: TokenNames,
  offset: number,
  specialShown: boolean,
): CompletionLogprobs {
  const out: CompletionLogprobs = {
    text_offset: [],
    token_logprobs: [],
    tokens: [],
    top_logprobs: [],
  };
  let at = offset;
  for (const [i, entry] of entries.entries()) {
    out.text_offset.push(at);
    if (specialShown || !names.isSpecial(ids[i])) at += names.text(ids[i]).length;
    out.tokens.push(names.name(ids[i]));
    out.token_logprobs.push(entry ? finite(entry.logprob) : null);
    out.top_logprobs.push(entry ? topRecord(entry, names) : null);
  }
  return out;
}

function topRecord(entry: TokenLogprob, names: TokenNames): Record<string, number> {
  const record: Record<string, number> = { [names.name(entry.token)]: finite(entry.logprob) };
  for (const { token, logprob } of entry.top) record[names.name(token)] ??= finite(logprob);
  return record;
}

/** For /v1/chat/completions. */
export function chatLogprobs(entries: readonly TokenLogprob[], names: TokenNames): unknown {
  const one = ({ token, logprob }: { token: number; logprob: number }) => ({
    token: names.name(token),
    logprob: finite(logprob),
    bytes: names.bytes(token),
  });
  return {
    content: entries.map((entry) => ({ ...one(entry), top_logprobs: entry.top.map(one) })),
    refusal: null,
  };
}

/** vLLM's `prompt_logprobs`: for each token of the prompt a record from token id to its entry. */
export function promptLogprobs(
  entries: readonly (TokenLogprob | null)[],
  names: TokenNames,
): unknown[] {
  return entries.map((entry) => {
    if (!entry) return null;
    const record: Record<string, unknown> = {};
    const add = (token: number, logprob: number, rank: number): void => {
      record[token] = { logprob: finite(logprob), rank, decoded_token: names.text(token) };
    };
    for (const [i, { token, logprob }] of entry.top.entries()) add(token, logprob, i + 1);
    add(entry.token, entry.logprob, entry.rank);
    return record;
  });
}

function finite(logprob: number): number {
  return Math.max(logprob, FLOOR);
}
