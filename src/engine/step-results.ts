/** Takes over what steps computed: tokens to sequences and deltas, full blocks to the prefix cache. */
import { MAX_LOGPROBS, type StepResult } from '../backend/backend.js';
import { GenerationError } from '../errors.js';
import type { Finish, TokenLogprob } from './api.js';
import type { Endings } from './endings.js';
import type { Scheduler } from './scheduler.js';
import { Sequence } from './sequence.js';
import { promptRows } from './step-batch.js';
import { type DeltaWriter, deltaDetail } from './step-output.js';

export class StepResults {
  /** Counters since the start. */
  promptTokens = 0;
  generationTokens = 0;
  readonly #scheduler: Scheduler;
  readonly #endings: Endings;
  readonly #writer: DeltaWriter;
  readonly #eos: ReadonlySet<number>;
  readonly #maxModelLen: number;

  constructor(
    scheduler: Scheduler,
    endings: Endings,
    writer: DeltaWriter,
    options: { eosTokens: ReadonlySet<number>; maxModelLen: number },
  ) {
    this.#scheduler = scheduler;
    this.#endings = endings;
    this.#writer = writer;
    this.#eos = options.eosTokens;
    this.#maxModelLen = options.maxModelLen;
  }

  /** `time` is when the step ended. */
  apply(sequences: readonly Sequence[], result: StepResult, time: number): void {
    let row = 0;
    for (const sequence of sequences) row = this.#applyOne(sequence, result, row, time);
  }

  /** Takes over what a step computed for one sequence; returns the row after its last. */
  #applyOne(sequence: Sequence, result: StepResult, firstRow: number, time: number): number {
    const { request } = sequence;
    let row = firstRow;
    const [from, to] = promptRows(sequence);
    const drawn = sequence.scheduled === sequence.remaining;
    const end = row + to - from + (drawn ? sequence.seats : 0);
    for (let i = row; i < end; i++) {
      if (result.tokens[i] !== -1) continue;
      const error = new GenerationError('The model gave no finite logits for this request');
      this.#endings.fail(sequence, error);
      return end;
    }
    for (let i = from; i < to; i++) {
      const count = request.params.promptLogprobs!;
      request.promptLogprobs!.push(tokenLogprob(result, row++, count));
    }
    this.#scheduler.computed(sequence);
    if (!drawn) return end;
    if (request.timing.firstToken === 0) {
      request.timing.firstToken = time;
      this.promptTokens += request.prompt.length;
    }
    if (sequence.pendingForks === 0) {
      this.#take(sequence, result, row, time);
      return end;
    }
    for (const choice of [sequence, ...this.#fork(sequence)]) {
      if (request.unwanted.delete(choice.index)) this.#endings.end(choice, 'abort');
      else this.#take(choice, result, row, time);
      row++;
    }
    return end;
  }

  /** Makes the choices that waited for the prompt; they share its blocks. */
  #fork(leader: Sequence): Sequence[] {
    const forks: Sequence[] = [];
    while (leader.pendingForks > 0) {
      const fork = new Sequence(leader.request, forks.length + 1, this.#maxModelLen);
      leader.request.sequences.push(fork);
      this.#scheduler.fork(leader, fork);
      forks.push(fork);
    }
    return forks;
  }

  /** Appends the token drawn in `row` and reports it; ends the sequence where it is time. */
  #take(sequence: Sequence, result: StepResult, row: number, time: number): void {
    const { request } = sequence;
    const { params } = request;
    const token = result.tokens[row];
    sequence.append(token);
    this.generationTokens++;
    let finish: Finish | undefined;
    if (params.stopTokenIds.includes(token) || (!params.ignoreEos && this.#eos.has(token))) {
      finish = this.#endings.close(sequence, 'stop', time);
      finish.stopToken = token;
    } else if (sequence.numTokens >= sequence.maxTokens) {
      finish = this.#endings.close(sequence, 'length', time);
    }
    const detail = deltaDetail({
      logprobs:
        params.logprobs === undefined ? undefined : [tokenLogprob(result, row, params.logprobs)],
      promptLogprobs: request.takePromptLogprobs(),
      firstToken: sequence.numGenerated === 1 ? time : undefined,
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
