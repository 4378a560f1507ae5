/**
 * The tokenizer of a checkpoint: tokenizer.json and tokenizer_config.json. Encoding is done by
 * @huggingface/tokenizers, decoding here, on the tokens' bytes.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { Tokenizer as HuggingFaceTokenizer } from '@huggingface/tokenizers';
import { ModelError } from '../errors.js';
import { findGguf } from '../gguf/find-gguf.js';
import { ggufTokenizer } from '../gguf/gguf-tokenizer.js';
import { ChatTemplate } from './chat-template.js';
import { tokenDecoding } from './token-decoding.js';
import type { Tokenizer } from './tokenizer.js';

interface TokenizerJson {
  decoder: unknown;
  added_tokens?: { id: number; content: string; special: boolean }[];
}

interface TokenizerContents {
  json: TokenizerJson;
  config: Record<string, unknown>;
}

/**
 * Reads the tokenizer in the folder, or inside the GGUF file, `modelPath`. Throws ModelError naming
 * the file at fault.
 */
export async function loadTokenizer(modelPath: string): Promise<Tokenizer> {
  const { file, json, config } = await readFiles(modelPath);
  const decoding = tokenDecoding(json.decoder, file);
  let model: HuggingFaceTokenizer;
  try {
    model = new HuggingFaceTokenizer(json, config);
  } catch (cause) {
    throw new ModelError(`${file}: ${(cause as Error).message}`, { cause });
  }

  const added = new Map((json.added_tokens ?? []).map((token) => [token.id, token]));
  let vocabSize = 0;
  for (const id of model.get_vocab().values()) vocabSize = Math.max(vocabSize, id + 1);
  const bytes: Uint8Array[] = [];
  const special = new Uint8Array(vocabSize);
  let maxTokenBytes = 1;
  for (let id = 0; id < vocabSize; id++) {
    const extra = added.get(id);
    const token = extra?.content ?? model.id_to_token(id);
    if (token === undefined) bytes.push(new Uint8Array());
    else bytes.push(extra ? new TextEncoder().encode(token) : decoding.bytes(token));
    special[id] = extra?.special ? 1 : 0;
    maxTokenBytes = Math.max(maxTokenBytes, bytes[id].length);
  }

  const tokenOf = (key: string): string | undefined => {
    const value = config[key] as string | { content: string } | null | undefined;
    return typeof value === 'object' ? value?.content : value;
  };
  const idOf = (key: string): number | undefined => {
    const token = tokenOf(key);
    return token === undefined ? undefined : model.token_to_id(token);
  };
  const chat = new ChatTemplate(
    await chatTemplateSource(modelPath, config),
    Object.fromEntries(
      ['bos_token', 'eos_token', 'unk_token', 'pad_token'].map((key) => [key, tokenOf(key) ?? '']),
    ),
    modelPath,
  );

  const texts: (string | null | undefined)[] = new Array(vocabSize).fill(undefined);
  const fatal = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });
  const lossy = new TextDecoder('utf-8', { ignoreBOM: true });
  const none = new Uint8Array();
  const tokenBytes = (id: number): Uint8Array => bytes[id] ?? none;

  return {
    vocabSize,
    bosTokenId: idOf('bos_token'),
    eosTokenId: idOf('eos_token'),
    maxTokenBytes,
    encode: (text, { addSpecialTokens = true } = {}) =>
      model.encode(text, { add_special_tokens: addSpecialTokens }).ids,
    decode(ids, { skipSpecialTokens = false } = {}) {
      const parts: Uint8Array[] = [];
      for (let i = 0; i < ids.length; i++) {
        if (!(skipSpecialTokens && special[ids[i]])) parts.push(tokenBytes(ids[i]));
      }
      const text = lossy.decode(Buffer.concat(parts));
      return decoding.stripsLeadingSpace && text.startsWith(' ') ? text.slice(1) : text;
    },
    tokenText: (id) => lossy.decode(tokenBytes(id)),
    wholeText(id) {
      let text = texts[id];
      if (text === undefined) {
        try {
          text = fatal.decode(tokenBytes(id));
        } catch {
          text = null;
        }
        // Ids past the vocabulary stay out of the table, so that no request can make it grow.
        if (id < vocabSize) texts[id] = text;
      }
      return text ?? undefined;
    },
    tokenBytes,
    isSpecial: (id) => special[id] === 1,
    applyChatTemplate: (messages, options) => chat.render(messages, options),
  };
}

/** tokenizer.json and what belongs to it; made from the GGUF file where that is all there is. */
async function readFiles(modelPath: string): Promise<TokenizerContents & { file: string }> {
  const gguf = findGguf(modelPath);
  if (gguf === modelPath)
    return { file: gguf, ...(ggufTokenizer(gguf) as unknown as TokenizerContents) };
  const file = join(modelPath, 'tokenizer.json');
  const json = (await readJson(file)) as TokenizerJson | undefined;
  if (json !== undefined) {
    const configFile = join(modelPath, 'tokenizer_config.json');
    return { file, json, config: ((await readJson(configFile)) ?? {}) as Record<string, unknown> };
  }
  if (gguf !== undefined)
    return { file: gguf, ...(ggufTokenizer(gguf) as unknown as TokenizerContents) };
  throw new ModelError(
    `${file} does not exist; serve token ids in and out with --skip-tokenizer-init`,
  );
}

/** In the order of precedence of transformers: chat_template.jinja, then tokenizer_config.json. */
async function chatTemplateSource(
  modelPath: string,
  config: Record<string, unknown>,
): Promise<string | undefined> {
  const file = await readText(join(modelPath, 'chat_template.jinja'));
  if (file !== undefined) return file;
  const value = config.chat_template;
  if (typeof value === 'string') return value;
  if (Array.isArray(value)) {
    const named = value as { name?: string; template?: string }[];
    return (named.find((entry) => entry.name === 'default') ?? named[0])?.template;
  }
  return undefined;
}

async function readJson(path: string): Promise<unknown> {
  const text = await readText(path);
  if (text === undefined) return undefined;
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ModelError(`${path} is not valid JSON: ${(cause as Error).message}`, { cause });
  }
}

async function readText(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, 'utf8');
  } catch (cause) {
    // ENOTDIR: the model is a GGUF file, beside which nothing belongs to it.
    if (['ENOENT', 'ENOTDIR'].includes(String((cause as NodeJS.ErrnoException).code)))
      return undefined;
    throw new ModelError(`${path} cannot be read: ${(cause as Error).message}`, { cause });
  }
}
