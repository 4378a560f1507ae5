/** Texts to judge or calibrate with. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { InvalidParameterError } from '../errors.js';
import type { Tokenizer } from '../tokenizer/tokenizer.js';

/** The stories that come with Millrace; the bundled model has not seen them. */
export const BUNDLED_TEXT = join(
  fileURLToPath(new URL('../../../', import.meta.url)),
  'models/stories-7m/heldout-stories.jsonl',
);

/**
 * The documents of a file: `text` of each line of a .jsonl file, the whole of any other. Throws
 * `InvalidParameterError` for `param`.
 */
export function readTexts(file: string, param: string): string[] {
  const wrong = (what: string) => new InvalidParameterError(`${param} ${file}: ${what}`, { param });
  let content: string;
  try {
    content = readFileSync(file, 'utf8');
  } catch (error) {
    throw wrong((error as Error).message);
  }
  if (!file.endsWith('.jsonl')) {
    if (content.trim() === '') throw wrong('the file is empty');
    return [content];
  }
  const lines = content.split('\n').filter((line) => line.trim() !== '');
  if (lines.length === 0) throw wrong('the file is empty');
  return lines.map((line, index) => {
    let text: unknown;
    try {
      text = JSON.parse(line)?.text;
    } catch {
      throw wrong(`line ${index + 1} is not JSON`);
    }
    if (typeof text === 'string') return text;
    throw wrong(`line ${index + 1} has no string "text"`);
  });
}

/**
 * Documents as sequences of at most `length` tokens, each with its special tokens before; together
 * about `maxTokens`. Pieces of less than two tokens predict nothing and are dropped.
 */
export function tokenSequences(
  texts: readonly string[],
  tokenizer: Tokenizer,
  length: number,
  maxTokens: number,
): number[][] {
  const sequences: number[][] = [];
  let count = 0;
  for (const text of texts) {
    const tokens = tokenizer.encode(text);
    for (let from = 0; from < tokens.length && count < maxTokens; from += length) {
      const piece = tokens.slice(from, from + Math.min(length, maxTokens - count + 1));
      if (piece.length < 2) continue;
      sequences.push(piece);
      count += piece.length;
    }
  }
  return sequences;
}
