/** One choice of a request: from the engine's deltas to pieces of the answer. */
import type { Delta, Finish, TokenLogprob } from '../engine/api.js';
import type { SamplingParams } from '../engine/sampling-params.js';
import { IncrementalDecoder } from '../tokenizer/incremental-decoder.js';
import type { Tokenizer } from '../tokenizer/tokenizer.js';

/** What a delta adds to the answer. `PieceBuffer` joins them. */
export interface Piece {
  text: string;
  tokenIds: readonly number[];
  logprobs?: readonly TokenLogprob[];
  promptLogprobs?: readonly (TokenLogprob | null)[];
  finishReason?: 'stop' | 'length';
  /** The stop string or the stop token id of the request that ended it; not the end-of-sequence token. */
  stopReason?: string | number;
}

export class Choice {
  /** Position in the response: prompt index times n, plus the index among the n. */
  readonly index: number;
  /** Which of the request's prompts it answers. */
  readonly promptIndex: number;
  readonly #params: SamplingParams;
  readonly #decoder?: IncrementalDecoder;
  /** Tokens of the answer. */
  completionTokens = 0;
  /** Set by the engine's last delta. */
  finish?: Finish;

  constructor(
    index: number,
    promptIndex: number,
    params: SamplingParams,
    tokenizer: Tokenizer | undefined,
  ) {
    this.index = index;
    this.promptIndex = promptIndex;
    this.#params = params;
    if (tokenizer) this.#decoder = new IncrementalDecoder(tokenizer, params);
  }

  /** The stop string that ended the answer, whatever the engine still sends. */
  get stopped(): string | undefined {
    return this.#decoder?.stopped;
  }

  push(delta: Delta): Piece | undefined {
    this.finish = delta.finish;
    if (this.stopped !== undefined) return undefined;
    const { finish, promptLogprobs } = delta;
    let { tokens, logprobs } = delta;
    let text = '';
    if (this.#decoder) {
      // The stop token itself is no part of the text, unless asked for.
      const hidden = finish?.stopToken !== undefined && !this.#params.includeStopStrInOutput;
      const shown = hidden ? tokens.length - 1 : tokens.length;
      for (let i = 0; i < shown; i++) {
        text += this.#decoder.push(tokens[i]);
        if (this.stopped !== undefined) {
          tokens = tokens.slice(0, i + 1);
          logprobs = logprobs?.slice(0, i + 1);
          break;
        }
      }
      if (finish) text += this.#decoder.flush();
    }
    this.completionTokens += tokens.length;
    const piece: Piece = { text, tokenIds: tokens, logprobs, promptLogprobs };
    if (this.stopped !== undefined) {
      piece.finishReason = 'stop';
      piece.stopReason = this.stopped;
    } else if (finish?.reason === 'stop' || finish?.reason === 'length') {
      piece.finishReason = finish.reason;
      if (finish.stopToken !== undefined && this.#params.stopTokenIds.includes(finish.stopToken)) {
        piece.stopReason = finish.stopToken;
      }
    }
    return piece;
  }
}

/** A piece that others can be appended to. */
export class PieceBuffer implements Piece {
  text = '';
  tokenIds: number[] = [];
  logprobs?: TokenLogprob[];
  promptLogprobs?: readonly (TokenLogprob | null)[];
  finishReason?: 'stop' | 'length';
  stopReason?: string | number;

  append(piece: Piece): void {
    this.text += piece.text;
    for (const id of piece.tokenIds) this.tokenIds.push(id);
    if (piece.logprobs) {
      this.logprobs ??= [];
      for (const logprob of piece.logprobs) this.logprobs.push(logprob);
    }
    this.promptLogprobs ??= piece.promptLogprobs;
    this.finishReason ??= piece.finishReason;
    this.stopReason ??= piece.stopReason;
  }
}
