/** Text to tokens and back. */

export interface ChatMessage {
  role: string;
  content: string;
  [extra: string]: unknown;
}

export interface Tokenizer {
  /** Largest token id plus one. */
  readonly vocabSize: number;
  readonly bosTokenId?: number;
  readonly eosTokenId?: number;
  /** Bytes of the longest token: a text of B bytes has at least `B / maxTokenBytes` tokens. */
  readonly maxTokenBytes: number;
  encode(text: string, options?: { addSpecialTokens?: boolean }): number[];
  /** Bytes that are no valid UTF-8 become U+FFFD; ids outside the vocabulary are empty. */
  decode(ids: ArrayLike<number>, options?: { skipSpecialTokens?: boolean }): string;
  /** The token as text: its bytes, if they are no valid UTF-8 of their own, as replacement characters. */
  tokenText(id: number): string;
  /** The token's text if its bytes are whole code points, otherwise undefined. */
  wholeText(id: number): string | undefined;
  /** The token's exact bytes (for OpenAI's `logprobs.content[].bytes`). */
  tokenBytes(id: number): Uint8Array;
  isSpecial(id: number): boolean;
  /** Renders the chat template; throws InvalidParameterError for messages it refuses, ModelError where there is none. */
  applyChatTemplate(
    messages: readonly ChatMessage[],
    options?: { addGenerationPrompt?: boolean; template?: string; [extra: string]: unknown },
  ): string;
}
