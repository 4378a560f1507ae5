/** What a load generator notes of one request. All moments are ms of the engine's `now()`. */
export interface RequestRecord {
  /** When the workload wanted it sent; latencies count from here. */
  intended: number;
  /** When it was sent. */
  sent: number;
  /** First byte of the answer's body; 0 if none came. */
  firstByte: number;
  /** Arrival of each output token, as far as the stream shows them. */
  tokenTimes: number[];
  /** The stream's end, clean or not. */
  end: number;
  promptTokens: number;
  /** Tokens of the prompt that the server had cached, where it says so. */
  cachedTokens: number;
  /** From the server's usage where it gives one, otherwise the tokens seen. */
  outputTokens: number;
  /** The server's own count of the output, if it gave one; to be checked against `tokenTimes`. */
  usageTokens?: number;
  /** The generated ids, where the server returns them. */
  tokenIds: number[];
  finishReason: string | null;
  error?: RequestError;
}

/** How a request can fail. The order is that of the reports. */
export const ERROR_KINDS = [
  'no_socket',
  'refused',
  'throttled',
  'client_error',
  'server_error',
  'broken_stream',
  'empty_stream',
  'timeout',
  'aborted',
] as const;

/**
 * A failed request is counted by kind and never as a fast one. `no_socket`: the load generator's
 * machine had no file descriptor or port left; `empty_stream`: the answer ended well but held no
 * token; `aborted`: the load generator itself gave up on it.
 */
export interface RequestError {
  kind: (typeof ERROR_KINDS)[number];
  message: string;
}

/** Milliseconds from the intended time to the first token. */
export function ttft(record: RequestRecord): number {
  return record.tokenTimes[0] - record.intended;
}

/**
 * Milliseconds a token after the first: (last - first) / (n - 1). NaN for fewer than two tokens, and
 * where the stream came in one piece: nobody saw them apart.
 */
export function tpot(record: RequestRecord): number {
  const { tokenTimes, outputTokens } = record;
  if (outputTokens < 2 || tokenTimes.length < 2) return Number.NaN;
  return (tokenTimes[tokenTimes.length - 1] - tokenTimes[0]) / (outputTokens - 1);
}

/**
 * guidellm's time per output token: (last token - sent) / n. It holds the wait for the first
 * token, so it is larger than `tpot` and falls with the length of the answer.
 */
export function tpotGuidellm(record: RequestRecord): number {
  const { tokenTimes, outputTokens, sent } = record;
  return (tokenTimes[tokenTimes.length - 1] - sent) / outputTokens;
}

/** Milliseconds from the intended time to the last token. */
export function e2e(record: RequestRecord): number {
  return record.tokenTimes[record.tokenTimes.length - 1] - record.intended;
}
