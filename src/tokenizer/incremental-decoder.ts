/**
 * Turns the tokens of one choice into text as they come. What it hands out is final: never part of
 * a code point, never the beginning of a stop string. Costs the same for every token.
 *
 * @example
 * const decoder = new IncrementalDecoder(tokenizer, { stop: ['\n\n'] });
 * for (const id of ids) {
 *   process.stdout.write(decoder.push(id));
 *   if (decoder.stopped !== undefined) break;
 * }
 * process.stdout.write(decoder.flush());
 */
import { StopMatcher } from './stop-matcher.js';
import type { Tokenizer } from './tokenizer.js';

export interface IncrementalDecoderOptions {
  /** Strings that end the text; none may be empty. */
  stop?: readonly string[];
  /** Keep the stop string in the text. Default false. */
  includeStopStrInOutput?: boolean;
  /** Leave special tokens out of the text. Default true. */
  skipSpecialTokens?: boolean;
  /** A stop string that ends within this many first tokens is passed over. Default 0. */
  minTokens?: number;
}

const lossy = new TextDecoder('utf-8', { ignoreBOM: true });
const NOTHING = new Uint8Array();

export class IncrementalDecoder {
  readonly #tokenizer: Tokenizer;
  readonly #skipSpecialTokens: boolean;
  readonly #includeStop: boolean;
  readonly #minTokens: number;
  readonly #matcher?: StopMatcher;
  /** Bytes of a code point whose rest has not come. */
  #bytes = NOTHING;
  /** Text that may be the beginning of a stop string. */
  #held = '';
  #tokens = 0;
  #stopped?: string;

  constructor(tokenizer: Tokenizer, options: IncrementalDecoderOptions = {}) {
    this.#tokenizer = tokenizer;
    this.#skipSpecialTokens = options.skipSpecialTokens ?? true;
    this.#includeStop = options.includeStopStrInOutput ?? false;
    this.#minTokens = options.minTokens ?? 0;
    if (options.stop?.length) this.#matcher = new StopMatcher(options.stop);
  }

  /** The stop string that ended the text. What is pushed after it is ignored. */
  get stopped(): string | undefined {
    return this.#stopped;
  }

  /** Adds a token; returns the text that is certain now and was not before. */
  push(id: number): string {
    this.#tokens++;
    if (this.#stopped !== undefined) return '';
    if (this.#skipSpecialTokens && this.#tokenizer.isSpecial(id)) return '';
    const whole = this.#bytes.length === 0 ? this.#tokenizer.wholeText(id) : undefined;
    const text = whole ?? this.#join(this.#tokenizer.tokenBytes(id));
    return this.#matcher ? this.#match(this.#matcher, text) : text;
  }

  /** Ends the text: returns what was held back. An unfinished code point becomes U+FFFD. */
  flush(): string {
    if (this.#stopped !== undefined) return '';
    const rest = lossy.decode(this.#bytes);
    this.#bytes = NOTHING;
    const text = this.#matcher ? this.#match(this.#matcher, rest) : rest;
    const held = this.#stopped === undefined ? this.#held : '';
    this.#held = '';
    return text + held;
  }

  #match(matcher: StopMatcher, text: string): string {
    const all = this.#held + text;
    const match = matcher.read(text, this.#tokens > this.#minTokens);
    if (match) {
      this.#stopped = match.pattern;
      const end = this.#held.length + match.end;
      this.#held = '';
      return all.slice(0, this.#includeStop ? end : end - match.pattern.length);
    }
    const certain = all.length - matcher.partial;
    this.#held = all.slice(certain);
    return all.slice(0, certain);
  }

  #join(bytes: Uint8Array): string {
    const all = new Uint8Array(this.#bytes.length + bytes.length);
    all.set(this.#bytes);
    all.set(bytes, this.#bytes.length);
    const end = all.length - unfinished(all);
    this.#bytes = all.slice(end);
    return lossy.decode(all.subarray(0, end));
  }
}

/**
 * How many bytes at the end begin a code point that later bytes could complete. The bounds of the
 * second byte are those of well-formed UTF-8 (Unicode 16, table 3-7): a start that can become
 * nothing valid is not kept.
 */
function unfinished(bytes: Uint8Array): number {
  for (let length = 1; length <= Math.min(3, bytes.length); length++) {
    const lead = bytes[bytes.length - length];
    if (lead >= 0x80 && lead < 0xc0) continue;
    const needed = lead >= 0xf0 && lead <= 0xf4 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc2 ? 2 : 1;
    if (needed <= length || lead > 0xf4) return 0;
    if (length === 1) return 1;
    const second = bytes[bytes.length - length + 1];
    const low = lead === 0xe0 ? 0xa0 : lead === 0xf0 ? 0x90 : 0x80;
    const high = lead === 0xed ? 0x9f : lead === 0xf4 ? 0x8f : 0xbf;
    return second >= low && second <= high ? length : 0;
  }
  return 0;
}
