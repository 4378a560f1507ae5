/**
 * Reads a chunk of a streamed completion. Nearly all chunks of a stream carry one piece of text and
 * nothing else; those are recognised by looking for fixed character sequences, which takes a tenth
 * of the time of JSON.parse. Everything else is parsed.
 */

/** What a chunk says, as far as a load generator cares. */
export interface StreamEvent {
  /** Tokens in it: the ids' number where it has ids, otherwise 1 if it has text. */
  tokens: number;
  tokenIds?: number[];
  finishReason?: string;
  usage?: { promptTokens: number; outputTokens: number; cachedTokens: number };
  error?: string;
}

const ONE_TOKEN: StreamEvent = { tokens: 1 };

/**
 * `data` is the event's data with one character for each byte (latin1). Throws SyntaxError if it
 * is not JSON.
 *
 * The short cut is safe because inside a JSON string every quote is escaped: `"text":"` with bare
 * quotes can only be a key and the beginning of its value.
 */
export function scanChunk(data: string): StreamEvent {
  if (
    data.includes('"finish_reason":null') &&
    hasText(data) &&
    !data.includes('"token_ids":[') &&
    !data.includes('"usage":{') &&
    !data.includes('"error":') &&
    data.endsWith('}')
  ) {
    return ONE_TOKEN;
  }
  return parseChunk(JSON.parse(Buffer.from(data, 'latin1').toString('utf8')));
}

function hasText(data: string): boolean {
  const at = data.indexOf('"text":"');
  if (at >= 0) return data.charCodeAt(at + 8) !== 34;
  const content = data.indexOf('"content":"');
  return content >= 0 && data.charCodeAt(content + 11) !== 34;
}

/** The fields read of a chunk of /v1/completions or /v1/chat/completions. */
interface CompletionChunk {
  choices?: {
    text?: string;
    delta?: { content?: string | null; reasoning_content?: string | null };
    token_ids?: number[] | null;
    finish_reason?: string | null;
  }[];
  usage?: {
    prompt_tokens?: number;
    completion_tokens?: number;
    prompt_tokens_details?: { cached_tokens?: number } | null;
  } | null;
  error?: { message?: string } | string | null;
}

function parseChunk(chunk: CompletionChunk): StreamEvent {
  const event: StreamEvent = { tokens: 0 };
  if (chunk.error) {
    event.error =
      typeof chunk.error === 'string'
        ? chunk.error
        : (chunk.error.message ?? JSON.stringify(chunk.error));
    return event;
  }
  const choice = chunk.choices?.[0];
  if (choice) {
    const ids = choice.token_ids;
    const text = choice.text || choice.delta?.content || choice.delta?.reasoning_content;
    // Without ids a chunk with text counts as one token, as vLLM's and guidellm's clients count.
    event.tokens = ids ? ids.length : text ? 1 : 0;
    if (ids) event.tokenIds = ids;
    if (choice.finish_reason) event.finishReason = choice.finish_reason;
  }
  if (chunk.usage) {
    event.usage = {
      promptTokens: chunk.usage.prompt_tokens ?? 0,
      outputTokens: chunk.usage.completion_tokens ?? 0,
      cachedTokens: chunk.usage.prompt_tokens_details?.cached_tokens ?? 0,
    };
  }
  return event;
}
