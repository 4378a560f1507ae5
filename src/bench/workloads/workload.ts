/** What a load generator sends: a list of requests that the same seed makes the same again. */
export interface Workload {
  /** Where it comes from, for the report. */
  name: string;
  requests: WorkloadRequest[];
  /** What had to be left out or changed, for the report. */
  notes: string[];
}

export interface WorkloadRequest {
  /**
   * Makes the prompt. Called once, just before sending: the prompts of a trace can hold a hundred
   * million tokens together.
   */
  prompt: () => Prompt;
  /** Tokens of the prompt, where the workload knows them; else the server's usage tells. */
  inputTokens?: number;
  /** Tokens to ask for: `max_tokens`. */
  outputTokens: number;
  /** The trace's own time of arrival, in ms from its start. */
  at?: number;
}

/** Text, token ids, or the messages of a chat. */
export type Prompt = string | number[] | ChatTurn[];

export interface ChatTurn {
  role: string;
  content: unknown;
}

/** The ids prompts are drawn from: [low, high). */
export interface TokenRange {
  low: number;
  high: number;
}

/**
 * The range for a vocabulary of `size`. The first ids are left out: byte-level tokenizers keep
 * single bytes there and SentencePiece its control tokens.
 */
export function tokenRange(size: number): TokenRange {
  return { low: Math.min(300, size >> 1), high: size };
}
