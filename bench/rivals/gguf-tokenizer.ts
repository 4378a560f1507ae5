/**
 * The vocabulary of a GGUF file (`tokenizer.ggml.*`; ggml's docs/gguf.md): that of a tokenizer.json
 * with byte-level BPE as GPT-2 splits text, or a made-up one for models without a tokenizer.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { ModelError } from '../../src/errors.js';
import { isJsonObject, type JsonObject, readJsonObject } from '../../src/model/config-fields.js';
import type { GgufValue } from './gguf-file.js';

/** `llama_token_type`. */
const NORMAL = 1;
const CONTROL = 3;
const USER_DEFINED = 4;
const UNUSED = 5;

export interface SpecialTokens {
  readonly vocabSize: number;
  readonly bosTokenId?: number;
  readonly eosTokenId?: number;
}

/** Metadata of the tokenizer in `directory`. Throws `ModelError` for kinds the format is not written for. */
export function tokenizerMetadata(
  directory: string,
  special: SpecialTokens,
): Map<string, GgufValue> {
  const file = join(directory, 'tokenizer.json');
  const metadata = existsSync(file)
    ? byteLevelBpe(file, special.vocabSize)
    : madeUpVocabulary(special.vocabSize);
  const { bosTokenId, eosTokenId } = special;
  if (bosTokenId !== undefined) setId(metadata, 'bos_token_id', bosTokenId);
  if (eosTokenId !== undefined) setId(metadata, 'eos_token_id', eosTokenId);
  return metadata;
}

function byteLevelBpe(file: string, vocabSize: number): Map<string, GgufValue> {
  const json = readJsonObject(file);
  const model = object(file, json, 'model');
  const splitter = object(file, json, 'pre_tokenizer');
  const gpt2 =
    splitter.type === 'ByteLevel' && splitter.use_regex !== false && !splitter.add_prefix_space;
  if (model.type !== 'BPE' || !gpt2 || json.normalizer) {
    throw new ModelError(
      `${file}: only byte-level BPE that splits text as GPT-2 does can be written to GGUF, ` +
        `this is ${String(model.type)} after ${String(splitter.type)}`,
    );
  }
  const tokens: string[] = Array.from({ length: vocabSize }, (_, id) => `[PAD${id}]`);
  const types: number[] = new Array(vocabSize).fill(UNUSED);
  const place = (token: string, id: unknown, type: number) => {
    if (!Number.isInteger(id) || (id as number) < 0 || (id as number) >= vocabSize) {
      throw new ModelError(`${file}: ${token} has the id ${String(id)} of ${vocabSize}`);
    }
    tokens[id as number] = token;
    types[id as number] = type;
  };
  for (const [token, id] of Object.entries(object(file, model, 'vocab'))) place(token, id, NORMAL);
  for (const added of list(file, json, 'added_tokens')) {
    const { content, id, special } = added as JsonObject;
    place(String(content), id, special ? CONTROL : USER_DEFINED);
  }
  const merges = list(file, model, 'merges').map((merge) =>
    Array.isArray(merge) ? merge.join(' ') : String(merge),
  );
  return vocabulary(tokens, types, merges);
}

/** The alphabet of bytes, then names that no text contains. */
function madeUpVocabulary(vocabSize: number): Map<string, GgufValue> {
  const alphabet = byteAlphabet();
  const tokens = Array.from({ length: vocabSize }, (_, id) => alphabet[id] ?? `<made-up-${id}>`);
  // A reader may insist on merges; this one is never reached, because its result is no token.
  return vocabulary(tokens, new Array(vocabSize).fill(NORMAL), ['! !']);
}

function vocabulary(
  tokens: readonly string[],
  types: readonly number[],
  merges: readonly string[],
): Map<string, GgufValue> {
  return new Map<string, GgufValue>([
    ['tokenizer.ggml.model', { type: 'string', value: 'gpt2' }],
    ['tokenizer.ggml.pre', { type: 'string', value: 'gpt-2' }],
    ['tokenizer.ggml.tokens', { type: 'string[]', value: tokens }],
    ['tokenizer.ggml.token_type', { type: 'int32[]', value: types }],
    ['tokenizer.ggml.merges', { type: 'string[]', value: merges }],
    // Prompts reach both sides as token ids; nothing is to be put before them.
    ['tokenizer.ggml.add_bos_token', { type: 'bool', value: false }],
  ]);
}

/**
 * GPT-2's printable stand-ins for the 256 bytes, in the order of its vocabulary: printable Latin-1
 * stands for itself, the others follow from U+0100 on.
 */
function byteAlphabet(): string[] {
  const isPrintable = (byte: number) =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte !== 0xad);
  const bytes = Array.from({ length: 256 }, (_, byte) => byte);
  const printable = bytes.filter(isPrintable).map((byte) => String.fromCodePoint(byte));
  const others = bytes.filter((byte) => !isPrintable(byte));
  return [...printable, ...others.map((_, i) => String.fromCodePoint(0x100 + i))];
}

function setId(metadata: Map<string, GgufValue>, name: string, id: number): void {
  metadata.set(`tokenizer.ggml.${name}`, { type: 'uint32', value: id });
}

function object(file: string, json: JsonObject, key: string): JsonObject {
  const value = json[key];
  if (isJsonObject(value)) return value;
  throw new ModelError(`${file}: ${key} is not an object`);
}

function list(file: string, json: JsonObject, key: string): unknown[] {
  const value = json[key];
  if (Array.isArray(value)) return value;
  throw new ModelError(`${file}: ${key} is not a list`);
}
