/**
 * What a model has lost against another: perplexity of both on a text, the divergence of their
 * next-token distributions, and how long their greedy continuations stay together. Documents are the
 * clusters of the bootstrap: tokens of one text are alike.
 */
import type { Backend, KvCacheDtype, ModelRunner, RunnerOptions } from '../backend/backend.js';
import { kvDtypeOf } from '../backend/kv-dtype.js';
import { distribution, type Interval } from '../bench/bootstrap.js';
import { InvalidParameterError } from '../errors.js';
import type { LoadedModel } from '../model/load-model.js';
import { rowLoss } from './divergence.js';
import { makeRunner } from './load-runner.js';
import { BLOCK_SIZE, continueGreedily, runnerOptions, runSequences } from './run-sequences.js';

export interface Estimate {
  readonly value: number;
  /** 95 %. */
  readonly interval: Interval;
}

/** What a model takes in this executor. */
export interface MemoryUse {
  readonly weightBytes: number;
  readonly kvTokensPerGiB: number;
}

export interface Evaluation {
  readonly documents: number;
  /** Tokens predicted. */
  readonly tokens: number;
  readonly perplexity: Estimate;
  readonly basePerplexity: Estimate;
  /** Perplexity over that of the base, minus 1; the interval is of the pairs. */
  readonly perplexityIncrease: Estimate;
  /** Nats. */
  readonly klMean: Estimate;
  readonly klP99: Estimate;
  /** Share of the tokens where both find the same one likeliest. */
  readonly top1Agreement: Estimate;
  /** Tokens before greedy continuations part, of `greedyLength`. */
  readonly greedyAgreement: Estimate;
  readonly greedyLength: number;
  readonly memory: MemoryUse;
  readonly baseMemory: MemoryUse;
}

export interface EvaluateOptions {
  readonly backend: Backend;
  readonly model: LoadedModel;
  readonly base: LoadedModel;
  readonly kvCacheDtype?: KvCacheDtype;
  readonly baseKvCacheDtype?: KvCacheDtype;
  /** Token ids, one document or piece of one each. */
  readonly sequences: readonly (readonly number[])[];
  /** The share done, 0 to 1. */
  readonly onProgress?: (share: number) => void;
}

const PROMPTS = 32;
const PROMPT_TOKENS = 32;
const GREEDY_TOKENS = 64;
/** Logits of a step, of both models together: 2^25 floats, 128 MiB. */
const LOGITS = 2 ** 24;

/** Throws `InvalidParameterError` if the models do not share a vocabulary, or there is no text. */
export function evaluate(options: EvaluateOptions): Evaluation {
  const { backend, model, base, sequences, onProgress } = options;
  const vocab = model.program.vocabSize;
  if (base.program.vocabSize !== vocab) {
    throw InvalidParameterError.expected(
      `a model with a vocabulary of ${vocab} tokens, as the one judged,`,
      'against',
      base.program.vocabSize,
    );
  }
  if (sequences.length === 0) throw new InvalidParameterError('The text has no tokens to predict');
  const longest = Math.max(
    PROMPT_TOKENS + GREEDY_TOKENS,
    sequences.reduce((most, { length }) => Math.max(most, length), 0),
  );
  const shared = runnerOptions(Math.max(64, Math.min(1024, Math.floor(LOGITS / vocab))), longest);
  const long = sequences.filter(({ length }) => length >= PROMPT_TOKENS);
  const prompts = (long.length > 0 ? long : sequences)
    .slice(0, Math.min(PROMPTS, shared.maxSeqs, Math.floor(shared.maxTokens / PROMPT_TOKENS)))
    .map((sequence) => sequence.slice(0, PROMPT_TOKENS));
  const runnerOf = (loaded: LoadedModel, kvCacheDtype?: KvCacheDtype): ModelRunner =>
    makeRunner(backend, loaded, withRoom(shared, prompts.length, kvCacheDtype));
  const judged = runnerOf(model, options.kvCacheDtype);
  const other = runnerOf(base, options.baseKvCacheDtype);
  try {
    const losses = compareRows(other, judged, sequences, shared, vocab, onProgress);
    const [own, theirs] = [judged, other].map((runner) =>
      continueGreedily(runner, prompts, GREEDY_TOKENS),
    );
    const agreements = own.map((tokens, n) => [agreement(tokens, theirs[n])]);
    return {
      ...summary(losses, agreements),
      memory: memoryOf(backend, model, judged, options.kvCacheDtype),
      baseMemory: memoryOf(backend, base, other, options.baseKvCacheDtype),
    };
  } finally {
    judged.close();
    other.close();
  }
}

function memoryOf(
  backend: Backend,
  { program, weights }: LoadedModel,
  runner: ModelRunner,
  kvCacheDtype?: KvCacheDtype,
): MemoryUse {
  const dtype = kvDtypeOf(weights, kvCacheDtype);
  const block = backend.kvBytesPerBlock(program, BLOCK_SIZE, dtype);
  return {
    weightBytes: runner.memory.weights,
    kvTokensPerGiB: Math.floor((2 ** 30 * BLOCK_SIZE) / block),
  };
}

function withRoom(
  options: RunnerOptions,
  prompts: number,
  kvCacheDtype?: KvCacheDtype,
): RunnerOptions {
  const greedy = prompts * Math.ceil((PROMPT_TOKENS + GREEDY_TOKENS) / options.blockSize);
  const numBlocks = Math.max(options.numBlocks, greedy);
  return { ...options, numBlocks, keepLogits: true, kvCacheDtype };
}

interface Losses {
  readonly base: number[][];
  readonly model: number[][];
  readonly kl: number[][];
  readonly sameTop: number[][];
}

function compareRows(
  base: ModelRunner,
  model: ModelRunner,
  sequences: readonly (readonly number[])[],
  options: RunnerOptions,
  vocab: number,
  onProgress?: (share: number) => void,
): Losses {
  const lists = () => sequences.map((): number[] => []);
  const losses: Losses = { base: lists(), model: lists(), kl: lists(), sameTop: lists() };
  const total = sequences.reduce((sum, { length }) => sum + length, 0);
  let done = 0;
  const baseSteps = runSequences(base, sequences, options);
  for (const { result, rows } of runSequences(model, sequences, options)) {
    const { result: baseResult } = baseSteps.next().value as { result: typeof result };
    rows.forEach(({ sequence, position }, row) => {
      const next = sequences[sequence][position + 1];
      if (next === undefined) return;
      const logits = ({ logits }: typeof result) =>
        (logits as Float32Array).subarray(row * vocab, (row + 1) * vocab);
      const loss = rowLoss(logits(baseResult), logits(result), next);
      losses.base[sequence].push(loss.base);
      losses.model[sequence].push(loss.model);
      losses.kl[sequence].push(loss.kl);
      losses.sameTop[sequence].push(loss.sameTop ? 1 : 0);
    });
    done += rows.length;
    onProgress?.(done / total);
  }
  return losses;
}

/** Tokens before the two part. */
function agreement(a: readonly number[], b: readonly number[]): number {
  const at = a.findIndex((token, i) => token !== b[i]);
  return at < 0 ? a.length : at;
}

function summary(
  losses: Losses,
  agreements: readonly (readonly number[])[],
): Omit<Evaluation, 'memory' | 'baseMemory'> {
  const difference = losses.model.map((list, n) => list.map((loss, i) => loss - losses.base[n][i]));
  const kl = distribution(losses.kl);
  return {
    documents: losses.kl.length,
    tokens: kl.count,
    perplexity: mean(losses.model, Math.exp),
    basePerplexity: mean(losses.base, Math.exp),
    perplexityIncrease: mean(difference, Math.expm1),
    klMean: { value: kl.mean, interval: kl.intervals.mean },
    klP99: { value: kl.percentiles[99], interval: kl.intervals.percentiles[99] },
    top1Agreement: mean(losses.sameTop),
    greedyAgreement: mean(agreements),
    greedyLength: GREEDY_TOKENS,
  };
}

/** The mean of all samples; `map` must ascend, so that it carries intervals over. */
function mean(
  groups: readonly (readonly number[])[],
  map: (value: number) => number = (value) => value,
): Estimate {
  const { mean: value, intervals } = distribution(groups);
  return { value: map(value), interval: intervals.mean.map(map) as Interval };
}
