/**
 * The tokenizer inside a GGUF file as the tokenizer.json and tokenizer_config.json it came from.
 * Keys: ggml-org/ggml, docs/gguf.md, "Tokenizer".
 */
import { ModelError } from '../errors.js';
import type { GgufFile } from './gguf-file.js';
import { readGguf } from './gguf-file.js';

export interface TokenizerFiles {
  readonly json: Record<string, unknown>;
  readonly config: Record<string, unknown>;
}

/** Values of `tokenizer.ggml.token_type`. */
const UNKNOWN = 2;
const CONTROL = 3;
const USER_DEFINED = 4;

const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const REST = ' ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';
/** `tokenizer.ggml.pre` to the regular expression that cuts text into words, as published with each model. */
const PATTERNS: Readonly<Record<string, string>> = {
  'llama-bpe': `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|${REST}`,
  qwen2: `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|${REST}`,
};
/** Those that cut as GPT-2 did. */
const LIKE_GPT2 = ['gpt-2', 'gpt2', 'default'];

/** Reads metadata only. Throws `ModelError` for a kind of tokenizer it does not know. */
export function ggufTokenizer(path: string): TokenizerFiles {
  const file = readGguf(path);
  const model = file.metadata.get('tokenizer.ggml.model');
  const vocabulary = readVocabulary(file);
  let json: Record<string, unknown>;
  if (model === 'gpt2') json = byteLevel(file, vocabulary);
  else if (model === 'llama') json = sentencePiece(file, vocabulary);
  else {
    throw new ModelError(
      `${path}: tokenizer.ggml.model is ${JSON.stringify(model)}, supported are gpt2 and llama`,
    );
  }
  const tokenOf = (name: string) => vocabulary.tokens[idOf(file, name) ?? -1];
  return {
    json: {
      version: '1.0',
      added_tokens: addedTokens(vocabulary),
      post_processor: postProcessor(file, vocabulary),
      ...json,
    },
    config: {
      bos_token: tokenOf('bos'),
      eos_token: tokenOf('eos'),
      unk_token: tokenOf('unknown'),
      pad_token: tokenOf('padding'),
      chat_template: file.metadata.get('tokenizer.chat_template'),
    },
  };
}

interface Vocabulary {
  readonly tokens: readonly string[];
  readonly types: readonly number[];
}

function readVocabulary(file: GgufFile): Vocabulary {
  const tokens = strings(file, 'tokenizer.ggml.tokens');
  const types = numbers(file, 'tokenizer.ggml.token_type', tokens.length) ?? tokens.map(() => 1);
  return { tokens, types };
}

/** Byte-level BPE: GPT-2's scheme, with the model's own way of cutting text into words. */
function byteLevel(file: GgufFile, { tokens }: Vocabulary): Record<string, unknown> {
  const pre = file.metadata.get('tokenizer.ggml.pre') ?? 'default';
  const pattern = PATTERNS[String(pre)];
  if (pattern === undefined && !LIKE_GPT2.includes(String(pre))) {
    throw new ModelError(
      `${file.path}: tokenizer.ggml.pre is ${JSON.stringify(pre)}, supported are ` +
        [...LIKE_GPT2, ...Object.keys(PATTERNS)].join(', '),
    );
  }
  const merges = strings(file, 'tokenizer.ggml.merges').map((merge) => {
    // The separator is a space; byte-level tokens never hold one.
    const at = merge.indexOf(' ', 1);
    if (at < 0) throw new ModelError(`${file.path}: the merge ${JSON.stringify(merge)} is no pair`);
    return [merge.slice(0, at), merge.slice(at + 1)];
  });
  const bytes = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true };
  return {
    normalizer: pre === 'qwen2' ? { type: 'NFC' } : null,
    pre_tokenizer: pattern
      ? {
          type: 'Sequence',
          pretokenizers: [
            { type: 'Split', pattern: { Regex: pattern }, behavior: 'Isolated', invert: false },
            { ...bytes, use_regex: false },
          ],
        }
      : { ...bytes, use_regex: true },
    decoder: { ...bytes, use_regex: true },
    model: {
      type: 'BPE',
      vocab: vocab(file, tokens),
      merges,
      ignore_merges: pre === 'llama-bpe',
      byte_fallback: false,
    },
  };
}

/**
 * SentencePiece BPE: the file has scores, not merges. Two pieces merge where their joint text is a
 * piece, the best score first: that is the order SentencePiece itself takes.
 */
function sentencePiece(file: GgufFile, { tokens, types }: Vocabulary): Record<string, unknown> {
  const scores = numbers(file, 'tokenizer.ggml.scores', tokens.length);
  if (scores === undefined) throw new ModelError(`${file.path}: tokenizer.ggml.scores is missing`);
  const ids = new Map(tokens.map((token, id) => [token, id]));
  const merges: { pair: [string, string]; score: number; left: number; right: number }[] = [];
  tokens.forEach((token, id) => {
    if (types[id] !== 1) return;
    const characters = [...token];
    for (let at = 1; at < characters.length; at++) {
      const pair: [string, string] = [
        characters.slice(0, at).join(''),
        characters.slice(at).join(''),
      ];
      const [left, right] = [ids.get(pair[0]), ids.get(pair[1])];
      if (left === undefined || right === undefined) continue;
      merges.push({ pair, score: scores[id], left, right });
    }
  });
  merges.sort((a, b) => b.score - a.score || a.left - b.left || a.right - b.right);
  const prefix = file.metadata.get('tokenizer.ggml.add_space_prefix') !== false;
  const unknown = types.indexOf(UNKNOWN);
  return {
    normalizer: {
      type: 'Sequence',
      normalizers: [
        ...(prefix ? [{ type: 'Prepend', prepend: '▁' }] : []),
        { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
      ],
    },
    pre_tokenizer: null,
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        ...(prefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : []),
      ],
    },
    model: {
      type: 'BPE',
      vocab: vocab(file, tokens),
      merges: merges.map(({ pair }) => pair),
      byte_fallback: true,
      fuse_unk: true,
      unk_token: unknown < 0 ? null : tokens[unknown],
    },
  };
}

function vocab(file: GgufFile, tokens: readonly string[]): Record<string, number> {
  const entries = Object.fromEntries(tokens.map((token, id) => [token, id]));
  if (Object.keys(entries).length === tokens.length) return entries;
  throw new ModelError(`${file.path}: tokenizer.ggml.tokens has a token twice`);
}

function addedTokens({ tokens, types }: Vocabulary): object[] {
  return tokens.flatMap((content, id) => {
    if (![UNKNOWN, CONTROL, USER_DEFINED].includes(types[id])) return [];
    const flags = { single_word: false, lstrip: false, rstrip: false, normalized: false };
    return [{ id, content, ...flags, special: types[id] !== USER_DEFINED }];
  });
}

/**
 * The beginning and end tokens that `encode` adds. As in llama.cpp, SentencePiece models and Llama 3
 * begin with one unless they say no.
 */
function postProcessor(file: GgufFile, { tokens }: Vocabulary): object | null {
  const { metadata } = file;
  const [model, pre] = ['model', 'pre'].map((key) => metadata.get(`tokenizer.ggml.${key}`));
  const fallback = model === 'llama' || pre === 'llama-bpe';
  const added = (name: string, key: string, otherwise: boolean) => {
    const id = idOf(file, name);
    if (id === undefined || (metadata.get(key) ?? otherwise) !== true) return [];
    return [{ token: tokens[id], id }];
  };
  const before = added('bos', 'tokenizer.ggml.add_bos_token', fallback);
  const after = added('eos', 'tokenizer.ggml.add_eos_token', false);
  if (before.length + after.length === 0) return null;
  const special = ({ token }: { token: string }) => ({ SpecialToken: { id: token, type_id: 0 } });
  const text = (id: string, type_id: number) => ({ Sequence: { id, type_id } });
  const all = [...before, ...after];
  return {
    type: 'TemplateProcessing',
    single: [...before.map(special), text('A', 0), ...after.map(special)],
    pair: [...before.map(special), text('A', 0), text('B', 1), ...after.map(special)],
    special_tokens: Object.fromEntries(
      all.map(({ token, id }) => [token, { id: token, ids: [id], tokens: [token] }]),
    ),
  };
}

function idOf(file: GgufFile, name: string): number | undefined {
  const key = `tokenizer.ggml.${name}_token_id`;
  const id = file.metadata.get(key);
  if (id === undefined) return undefined;
  const tokens = file.metadata.get('tokenizer.ggml.tokens');
  if (typeof id === 'number' && Array.isArray(tokens) && id >= 0 && id < tokens.length) return id;
  throw new ModelError(`${file.path}: ${key} is ${id}, expected the id of a token`);
}

function strings({ path, metadata }: GgufFile, key: string): readonly string[] {
  const value = metadata.get(key);
  if (Array.isArray(value) && value.every((item) => typeof item === 'string')) return value;
  throw new ModelError(`${path}: ${key} is not a list of strings`);
}

function numbers(
  { path, metadata }: GgufFile,
  key: string,
  length: number,
): readonly number[] | undefined {
  const value = metadata.get(key);
  if (value === undefined) return undefined;
  const isList = Array.isArray(value) && value.every((item) => typeof item === 'number');
  if (isList && value.length === length) return value;
  throw new ModelError(`${path}: ${key} is not a list of ${length} numbers`);
}
