import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { SamplingParams } from '../../src/engine/sampling-params.js';
import { CoreDriver } from '../helpers/core-driver.js';
import { randomSource } from '../helpers/random.js';

const EOS = 7;
const NAN = 60;
const THROW = 61;
const SCENARIOS = 1500;

interface Arrival {
  /** The request comes before the step with this number. */
  step: number;
  prompt: number[];
  params: Partial<SamplingParams>;
  /** A choice of it is aborted once it has so many tokens: what a stop string does. */
  cut?: { index: number; tokens: number };
}

test('Overlapped steps give every request the tokens, the end and the errors that steps one by one give', () => {
  const seen = { references: 0, preemptions: 0, hits: 0, errors: 0, cuts: 0, stops: 0, forks: 0 };
  for (let seed = 1; seed <= SCENARIOS; seed++) {
    const one = run(seed, false);
    const two = run(seed, true);
    for (const [key, expected] of one.choices) {
      assert.deepEqual(two.choices.get(key), expected, `seed ${seed}, choice ${key}`);
      if (expected.reason === 'error') seen.errors++;
      if (expected.reason === 'stop') seen.stops++;
      if (expected.cut) seen.cuts++;
      if (!key.endsWith('.0')) seen.forks++;
    }
    seen.references += two.references;
    seen.preemptions += two.preemptions;
    seen.hits += two.hits;
  }
  for (const [event, count] of Object.entries(seen)) {
    assert.ok(count > 500, `${event} happened often enough to be tested: ${count}`);
  }
});

/** The same requests and aborts for the same seed, with or without overlap. */
function run(seed: number, overlap: boolean) {
  const next = randomSource(seed);
  const below = (end: number) => Math.floor(next() * end);
  const blockSize = [2, 4, 16][below(3)];
  const numBlocks = 6 + below(24);
  const maxNumSeqs = 1 + below(8);
  const driver = new CoreDriver({
    overlap,
    blockSize,
    numBlocks,
    maxModelLen: Math.min(numBlocks * blockSize, 16 + below(64)),
    maxNumSeqs,
    maxNumBatchedTokens: maxNumSeqs + below(40),
    enablePrefixCaching: next() < 0.8,
    eosTokenIds: [EOS],
    hashSeed: seed,
    nanToken: NAN,
    throwToken: THROW,
  });
  const arrivals = plan(below, next, driver.options.maxModelLen, maxNumSeqs);
  const cut = new Map<string, number>();
  for (let at = 0; arrivals.length > 0 || driver.core.hasWork; at++) {
    // Others come while it runs.
    if (at % 2 === 0) driver.core.begin();
    while (arrivals.length > 0 && arrivals[0].step <= at) {
      const { prompt, params, cut: wanted } = arrivals.shift()!;
      const handle = driver.add(prompt, params);
      if (wanted) cut.set(`${handle}.${wanted.index}`, wanted.tokens);
    }
    if (!driver.core.hasWork) continue;
    driver.step();
    for (const [key, tokens] of cut) {
      const choice = driver.choices.get(key)!;
      if (choice.finish || choice.tokens.length < tokens) continue;
      const [handle, index] = key.split('.').map(Number);
      driver.core.abort(handle, index);
    }
    assert.ok(at < 20_000, `seed ${seed}: no starvation`);
  }
  const { freeBlocks, preemptions, prefixHits } = driver.core.stats();
  assert.equal(freeBlocks, numBlocks, `seed ${seed}: all blocks are free at the end`);
  const choices = new Map(
    [...driver.choices].map(([key, { tokens, finish, deltas }]) => [
      key,
      {
        tokens,
        reason: finish?.reason,
        stopToken: finish?.stopToken,
        error: finish?.error,
        cut: cut.has(key),
        logprobs: deltas.map((delta) => delta.logprobs),
        promptLogprobs: deltas.map((delta) => delta.promptLogprobs),
      },
    ]),
  );
  const references = driver.overlapping?.references ?? 0;
  return { choices, references, preemptions, hits: prefixHits };
}

function plan(
  below: (end: number) => number,
  next: () => number,
  maxModelLen: number,
  maxNumSeqs: number,
): Arrival[] {
  // Not both: where a batch is refused, one call gives two tokens, and an abort comes one later.
  const [throws, cuts] = next() < 0.3 ? [0.05, 0] : [0, 0.2];
  const stem = Array.from({ length: 40 }, () => below(NAN));
  let step = 0;
  return Array.from({ length: 10 + below(20) }, () => {
    step += below(4);
    const length = 1 + below(Math.min(maxModelLen - 1, 30));
    const prompt = stem.slice(0, below(length + 1));
    while (prompt.length < length) prompt.push(below(NAN));
    if (next() < throws) prompt[below(length)] = THROW;
    const n = next() < 0.3 ? 1 + below(Math.min(4, maxNumSeqs)) : 1;
    const params: Partial<SamplingParams> = {
      n,
      temperature: next() < 0.5 ? 0 : 1,
      seed: below(1000),
      maxTokens: next() < 0.8 ? 1 + below(12) : undefined,
      ignoreEos: next() < 0.3,
      minTokens: next() < 0.2 ? below(4) : 0,
      stopTokenIds: next() < 0.2 ? [9, 11] : [],
      frequencyPenalty: next() < 0.2 ? 0.5 : 0,
      logprobs: next() < 0.2 ? below(3) : undefined,
      promptLogprobs: next() < 0.1 ? 2 : undefined,
      // Only a token that the host has can make a batch be refused.
      logitBias: new Map([[THROW, -100]]),
    };
    params.minTokens = Math.min(params.minTokens!, params.maxTokens ?? 4);
    // A cut after the last possible token, or at any other: the rest must not come.
    const cut = next() < cuts ? { index: below(n), tokens: 1 + below(8) } : undefined;
    return { step, prompt, params, cut };
  });
}
