/** Takes over what steps computed: tokens to sequences and deltas, full blocks to the prefix cache. */
import { MAX_LOGPROBS, type StepResult } from '../backend/backend.js';
import { GenerationError } from '../errors.js';
import type { Finish, TokenLogprob } from './api.js';
import type { BlockManager } from './block-manager.js';
import type { Endings } from './endings.js';
import type { Scheduler } from './scheduler.js';
import { Sequence } from './sequence.js';
import { type DeltaWriter, deltaDetail } from './step-output.js';
import type { CollectedStep } from './step-pipeline.js';
import type { Share } from './step-share.js';

export class StepResults {
  /** Counters since the start. */
  promptTokens = 0;
  generationTokens = 0;
  readonly #scheduler: Scheduler;
  readonly #blocks: BlockManager;
  readonly #endings: Endings;
  readonly #writer: DeltaWriter;
  readonly #eos: ReadonlySet<number>;
  readonly #maxModelLen: number;

  constructor(
    scheduler: Scheduler,
    blocks: BlockManager,
    endings: Endings,
    writer: DeltaWriter,
    options: { eosTokens: ReadonlySet<number>; maxModelLen: number },
  ) {
    this.#scheduler = scheduler;
    this.#blocks = blocks;
    this.#endings = endings;
    this.#writer = writer;
    this.#eos = options.eosTokens;
    this.#maxModelLen = options.maxModelLen;
  }

  /** `time` is when the step ended. */
  apply({ shares, result }: CollectedStep, time: number): void {
    for (const share of shares) {
      // Who has ended meanwhile, by a stop token or an abort, has no use for what was computed ahead.
      if (!share.sequence.finished) this.#applyOne(share, result, time);
    }
  }

  #applyOne(share: Share, result: StepResult, time: number): void {
    const { sequence, firstRow, firstDraw, endRow } = share;
    const { request } = sequence;
    for (let row = firstRow; row < endRow; row++) {
      if (result.tokens[row] !== -1) continue;
      const error = new GenerationError('The model gave no finite logits for this request');
      this.#endings.fail(sequence, error);
      return;
    }
    for (let row = firstRow; row < firstDraw; row++) {
      const count = request.params.promptLogprobs!;
      request.promptLogprobs!.push(tokenLogprob(result, row, count));
    }
    const hasBlocks = sequence.preemptions === share.preemptions;
    if (hasBlocks) this.#blocks.commit(sequence, share.end);
    if (firstDraw === endRow) return;
    if (sequence.pendingForks > 0 && !hasBlocks) {
      // There is nothing to fork from: the prompt is computed again, and the same tokens drawn.
      sequence.forgo();
      return;
    }
    if (request.timing.firstToken === 0) {
      request.timing.firstToken = time;
      this.promptTokens += request.prompt.length;
    }
    if (sequence.pendingForks === 0) {
      this.#take(sequence, result, firstDraw, time);
      return;
    }
    let row = firstDraw;
    for (const choice of [sequence, ...this.#fork(sequence)]) {
      if (request.unwanted.delete(choice.index)) this.#endings.end(choice, 'abort');
      else this.#take(choice, result, row, time);
      row++;
    }
  }

  /** Makes the choices that waited for the prompt; they share its blocks. */
  #fork(leader: Sequence): Sequence[] {
    const forks: Sequence[] = [];
    while (leader.pendingForks > 0) {
      const fork = new Sequence(leader.request, forks.length + 1, this.#maxModelLen);
      leader.request.sequences.push(fork);
      this.#scheduler.fork(leader, fork);
      fork.expect(0);
      forks.push(fork);
    }
    return forks;
  }

  /** Takes the token drawn in `row` and reports it; ends the sequence where it is time. */
  #take(sequence: Sequence, result: StepResult, row: number, time: number): void {
    const { request } = sequence;
    const { params } = request;
    const token = result.tokens[row];
    const position = sequence.settle(token);
    this.generationTokens++;
    let finish: Finish | undefined;
    if (params.stopTokenIds.includes(token) || (!params.ignoreEos && this.#eos.has(token))) {
      finish = this.#endings.close(sequence, 'stop', time);
      finish.stopToken = token;
    } else if (position + 1 >= sequence.maxTokens) {
      finish = this.#endings.close(sequence, 'length', time);
    }
    const detail = deltaDetail({
      logprobs:
        params.logprobs === undefined ? undefined : [tokenLogprob(result, row, params.logprobs)],
      promptLogprobs: request.takePromptLogprobs(),
      firstToken: position === request.prompt.length ? time : undefined,
      finish,
    });
    this.#writer.add(request.handle, sequence.index, token, detail);
  }
}

function tokenLogprob(result: StepResult, row: number, count: number): TokenLogprob {
  const top: TokenLogprob['top'] = [];
  for (let i = row * MAX_LOGPROBS; i < row * MAX_LOGPROBS + count; i++) {
    top.push({ token: result.topTokens[i], logprob: result.topLogprobs[i] });
  }
  return { token: result.tokens[row], logprob: result.logprobs[row], rank: result.ranks[row], top };
}
