/** From a row of logits to a token: docs/sampling.md as code. The steps' numbers are that page's. */
import { MAX_LOGPROBS, type SamplingBatch, type StepResult } from '../backend.js';
import { philox4x32, uniform } from './philox.js';

const { fround } = Math;

/** Samples row `r` from its raw `logits` `[vocab]` and writes the row's part of `result`. */
export function sampleRow(
  logits: Float32Array,
  sampling: SamplingBatch,
  r: number,
  result: StepResult,
): void {
  result.tokens[r] = -1;
  result.logprobs[r] = Number.NaN;
  result.ranks[r] = 0;
  const top = result.topTokens.subarray(r * MAX_LOGPROBS, (r + 1) * MAX_LOGPROBS).fill(-1);
  const topLogprobs = result.topLogprobs.subarray(r * MAX_LOGPROBS, (r + 1) * MAX_LOGPROBS);
  topLogprobs.fill(Number.NaN);
  if (!isUsable(logits)) return;
  const target = sampling.targets[r];
  const token = target >= 0 ? target : chooseToken(logits, sampling, r);
  if (token < 0) return;
  result.tokens[r] = token;
  if (target < 0 && sampling.logprobs[r] < 0) return;
  const logprob = logprobsOf(logits);
  result.logprobs[r] = logprob(token);
  result.ranks[r] = 1 + logits.reduce((above, logit) => above + Number(logit > logits[token]), 0);
  likeliest(logits, Math.max(0, sampling.logprobs[r])).forEach((id, place) => {
    top[place] = id;
    topLogprobs[place] = logprob(id);
  });
}

/** Step 1: no NaN, no +inf, something above -inf. */
function isUsable(logits: Float32Array): boolean {
  return logits.every((logit) => logit < Infinity) && logits.some((logit) => logit > -Infinity);
}

/** Step 2. */
function logprobsOf(logits: Float32Array): (token: number) => number {
  const max = logits.reduce((a, b) => Math.max(a, b));
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - max);
  const logSum = Math.log(sum);
  return (token) => logits[token] - max - logSum;
}

/** The first `count` ids by (score descending, id ascending). */
function likeliest(scores: Float32Array, count: number): number[] {
  return count === 0 ? [] : byScore(scores, ids(scores)).slice(0, count);
}

/** Steps 3 to 8; -1 if the adjusted logits are not usable. */
function chooseToken(logits: Float32Array, sampling: SamplingBatch, r: number): number {
  const x = adjusted(logits, sampling, r);
  if (!isUsable(x)) return -1;
  const max = x.reduce((a, b) => Math.max(a, b));
  const temperature = sampling.temperature[r];
  if (temperature === 0) return x.indexOf(max);
  const y = x.map((logit) => fround(fround(logit - max) / temperature));
  const kept = keptSet(y, sampling.minP[r], sampling.topK[r], sampling.topP[r]);
  const words = philox4x32(
    [sampling.draw[r], 0, 0, 0],
    [sampling.seed[2 * r], sampling.seed[2 * r + 1]],
  );
  return draw(y, kept, uniform(words));
}

/** Step 3. Every store into `x` rounds to float32. */
function adjusted(logits: Float32Array, sampling: SamplingBatch, r: number): Float32Array {
  const x = logits.slice();
  for (let i = sampling.biasStart[r]; i < sampling.biasStart[r + 1]; i++) {
    x[sampling.biasTokens[i]] += sampling.biasValues[i];
  }
  const repetition = sampling.repetitionPenalty[r];
  const frequency = sampling.frequencyPenalty[r];
  const presence = sampling.presencePenalty[r];
  for (let i = sampling.historyStart[r]; i < sampling.historyStart[r + 1]; i++) {
    const token = sampling.historyTokens[i];
    const count = sampling.historyCounts[i];
    if (repetition !== 1) x[token] = x[token] > 0 ? x[token] / repetition : x[token] * repetition;
    x[token] -= fround(frequency * fround(count));
    if (count > 0) x[token] -= presence;
  }
  return x;
}

/** Step 6: the tokens that may be drawn, likeliest first. */
export function keptSet(y: Float32Array, minP: number, topK: number, topP: number): number[] {
  const least = minP > 0 ? fround(Math.log(minP)) : -Infinity;
  let kept = byScore(
    y,
    ids(y).filter((id) => y[id] > -Infinity && y[id] >= least),
  );
  if (topK > 0) kept = kept.slice(0, topK);
  if (topP >= 1) return kept;
  const limit = topP * totalWeight(y, kept);
  let sum = 0;
  const last = kept.findIndex((id) => {
    sum += weight(y[id]);
    return sum >= limit;
  });
  return kept.slice(0, last + 1);
}

/** Step 8. */
function draw(y: Float32Array, kept: readonly number[], random: number): number {
  const total = totalWeight(y, kept);
  const target = Math.min(Math.floor(random * total), total - 1);
  let sum = 0;
  const chosen = kept
    .toSorted((a, b) => a - b)
    .find((id) => {
      sum += weight(y[id]);
      return sum > target;
    });
  return chosen!;
}

function totalWeight(y: Float32Array, tokens: readonly number[]): number {
  return tokens.reduce((sum, id) => sum + weight(y[id]), 0);
}

const LOG2_E = fround(Math.LOG2E);
const MAGIC = 1.5 * 2 ** 23;
const LN2_HIGH = 0.693359375;
const LN2_LOW = fround(-2.1219444e-4);
const COEFFICIENTS = [720, 120, 24, 6, 2, 1, 1].map((divisor) => fround(1 / divisor));

/** Step 7: about `2^30 * exp(y)`, an integer, the same on every machine. `y <= 0`. */
export function weight(y: number): number {
  if (y < -22) return 0;
  const n = fround(fround(fround(y * LOG2_E) + MAGIC) - MAGIC);
  const r = fround(fround(y - fround(n * LN2_HIGH)) - fround(n * LN2_LOW));
  let p = fround(1 / 5040);
  for (const c of COEFFICIENTS) p = fround(fround(p * r) + c);
  return roundHalfEven(p * 2 ** (n + 30));
}

function roundHalfEven(value: number): number {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
}

function ids(scores: Float32Array): number[] {
  return Array.from(scores.keys());
}

/** Sorting is stable, so equal scores stay in order of id. */
function byScore(scores: Float32Array, tokens: number[]): number[] {
  return tokens.sort((a, b) => scores[b] - scores[a]);
}
