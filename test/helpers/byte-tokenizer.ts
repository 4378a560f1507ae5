import type { ChatMessage, Tokenizer } from '../../src/tokenizer/tokenizer.js';

/**
 * A tokenizer whose token ids 0 to 255 are bytes and whose further ids are the given special
 * tokens: small enough to know every answer by heart.
 */
export function byteTokenizer(special: readonly string[] = ['<end>']): Tokenizer {
  const bytes = Array.from({ length: 256 }, (_, byte) => Uint8Array.of(byte));
  for (const text of special) bytes.push(new TextEncoder().encode(text));
  const tokenBytes = (id: number): Uint8Array => bytes[id] ?? new Uint8Array();
  const isSpecial = (id: number): boolean => id >= 256 && id < bytes.length;
  const text = (parts: Uint8Array[]): string => Buffer.concat(parts).toString('utf8');
  return {
    vocabSize: bytes.length,
    eosTokenId: 256,
    maxTokenBytes: 8,
    encode: (value) => [...Buffer.from(value, 'utf8')],
    decode: (ids, { skipSpecialTokens = false } = {}) =>
      text(
        Array.from(ids)
          .filter((id) => !(skipSpecialTokens && isSpecial(id)))
          .map(tokenBytes),
      ),
    tokenText: (id) => text([tokenBytes(id)]),
    wholeText: (id) => (id < 0x80 || isSpecial(id) ? text([tokenBytes(id)]) : undefined),
    tokenBytes,
    isSpecial,
    applyChatTemplate: (messages: readonly ChatMessage[], { addGenerationPrompt = true } = {}) =>
      messages.map(({ role, content }) => `${role}: ${content}\n`).join('') +
      (addGenerationPrompt ? 'assistant:' : ''),
  };
}
