/**
 * What the `decoder` of a tokenizer.json does, as a map from one token to its bytes. Every decoder
 * of the supported families is such a map, so text can be made token by token, and a code point
 * split over tokens is joined where it belongs: in its bytes.
 *
 * Format: https://huggingface.co/docs/tokenizers/api/decoders
 */
import { ModelError } from '../errors.js';

export interface TokenDecoding {
  /** The bytes that a token of the vocabulary (not an added token) stands for. */
  bytes(token: string): Uint8Array;
  /** Whether a text that starts with a space loses it: sentencepiece adds one when it encodes. */
  readonly stripsLeadingSpace: boolean;
}

interface DecoderConfig {
  type: string;
  decoders?: DecoderConfig[];
  pattern?: { String?: string };
  content?: string;
  start?: number;
  stop?: number;
  replacement?: string;
  prepend_scheme?: string;
  add_prefix_space?: boolean;
}

const utf8 = new TextEncoder();

/** Reads the `decoder` of a tokenizer.json; ModelError for one that is no map from token to bytes. */
export function tokenDecoding(config: unknown, file: string): TokenDecoding {
  let byteLevel = false;
  let byteFallback = false;
  let stripsLeadingSpace = false;
  const replacements: [string, string][] = [];

  const read = (step: DecoderConfig | null): void => {
    switch (step?.type) {
      case 'Sequence':
        for (const inner of step.decoders ?? []) read(inner);
        return;
      case 'ByteLevel':
        byteLevel = true;
        return;
      case 'ByteFallback':
        byteFallback = true;
        return;
      case 'Fuse':
        return;
      case 'Metaspace':
        replacements.push([step.replacement ?? '▁', ' ']);
        stripsLeadingSpace = (step.prepend_scheme ?? 'always') !== 'never';
        if (step.add_prefix_space === false) stripsLeadingSpace = false;
        return;
      case 'Replace':
        if (step.pattern?.String === undefined) break;
        replacements.push([step.pattern.String, step.content ?? '']);
        return;
      case 'Strip':
        if (step.content !== ' ' || step.start !== 1 || step.stop) break;
        stripsLeadingSpace = true;
        return;
    }
    throw new ModelError(
      `${file}: decoder ${JSON.stringify(step)} is not supported; supported are ByteLevel, ` +
        'ByteFallback, Fuse, Metaspace, Replace of a string, Strip of one leading space, and sequences of them',
    );
  };
  read(config as DecoderConfig | null);

  return {
    stripsLeadingSpace,
    bytes(token) {
      if (byteFallback) {
        const byte = /^<0x([0-9A-Fa-f]{2})>$/.exec(token);
        if (byte) return Uint8Array.of(Number.parseInt(byte[1], 16));
      }
      let text = token;
      for (const [from, to] of replacements) text = text.replaceAll(from, to);
      return byteLevel ? bytesOfByteLevel(text) : utf8.encode(text);
    },
  };
}

/** A token with a character outside the byte alphabet stands for itself, as in the original. */
function bytesOfByteLevel(text: string): Uint8Array {
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) {
    const byte = BYTE_OF_CHARACTER.get(text[i]);
    if (byte === undefined) return utf8.encode(text);
    bytes[i] = byte;
  }
  return bytes;
}

/**
 * GPT-2's byte alphabet: printable Latin-1 bytes are the character of their number, the other 68
 * bytes, in order, the characters from U+0100.
 */
const BYTE_OF_CHARACTER: ReadonlyMap<string, number> = (() => {
  const map = new Map<string, number>();
  let next = 0x100;
  for (let byte = 0; byte < 256; byte++) {
    const printable =
      (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    map.set(String.fromCharCode(printable ? byte : next++), byte);
  }
  return map;
})();
