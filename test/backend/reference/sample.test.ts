import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MAX_LOGPROBS, type StepResult } from '../../../src/backend/backend.js';
import { keptSet, sampleRow, weight } from '../../../src/backend/reference/sample.js';
import { type RowSampling, samplingBatch } from '../../helpers/batch.js';
import { randomSource } from '../../helpers/random.js';

function sample(logits: readonly number[], row: RowSampling = {}): StepResult {
  const result: StepResult = {
    tokens: new Int32Array(1),
    logprobs: new Float32Array(1),
    ranks: new Int32Array(1),
    topTokens: new Int32Array(MAX_LOGPROBS),
    topLogprobs: new Float32Array(MAX_LOGPROBS),
  };
  sampleRow(Float32Array.from(logits), samplingBatch([row]), 0, result);
  return result;
}

const token = (logits: readonly number[], row: RowSampling = {}) => sample(logits, row).tokens[0];

test('Greedy takes the largest logit, the lowest id among equals', () => {
  assert.equal(token([1, 3, 3, 2]), 1);
  assert.equal(token([-Infinity, -5, -Infinity]), 1);
});

test('Bias and bans act before greedy', () => {
  assert.equal(token([1, 3, 2], { bias: [[2, 1.5]] }), 2);
  assert.equal(token([1, 3, 2], { bias: [[1, -Infinity]] }), 2);
});

test('Penalties follow the formula, and prompt tokens feel only the repetition penalty', () => {
  // 3 / 2 < 2: a positive logit is divided; -1 * 2 < -1.5: a negative one is multiplied.
  assert.equal(token([2, 3], { repetitionPenalty: 2, history: [[1, 0]] }), 0);
  assert.equal(token([-1.5, -1], { repetitionPenalty: 2, history: [[1, 0]] }), 0);
  assert.equal(token([2, 3], { frequencyPenalty: 0.4, history: [[1, 3]] }), 0);
  assert.equal(token([2, 3], { frequencyPenalty: 0.4, history: [[1, 2]] }), 1);
  assert.equal(token([2, 3], { presencePenalty: 1.5, history: [[1, 1]] }), 0);
  assert.equal(token([2, 3], { presencePenalty: 1.5, history: [[1, 0]] }), 1);
});

test('A row with NaN, with +infinity or without a finite logit fails', () => {
  for (const logits of [
    [1, Number.NaN],
    [1, Infinity],
    [-Infinity, -Infinity],
  ]) {
    for (const row of [{}, { temperature: 1 }, { target: 0 }, { logprobs: 2 }]) {
      const result = sample(logits, row);
      assert.equal(result.tokens[0], -1);
      assert.equal(result.topTokens[0], -1);
    }
  }
  assert.equal(
    token([1, 2], {
      bias: [
        [0, -Infinity],
        [1, -Infinity],
      ],
    }),
    -1,
  );
});

test('Logprobs are of the raw logits, with rank and the likeliest in order', () => {
  const logits = [0, Math.log(2), Math.log(5), Math.log(2)];
  const result = sample(logits, { logprobs: 3, bias: [[1, 100]] });
  assert.equal(result.tokens[0], 1);
  assert.ok(Math.abs(result.logprobs[0] - Math.log(2 / 10)) < 1e-6);
  assert.equal(result.ranks[0], 2);
  assert.deepEqual([...result.topTokens.subarray(0, 4)], [2, 1, 3, -1]);
  assert.ok(Math.abs(result.topLogprobs[0] - Math.log(5 / 10)) < 1e-6);
});

test('A target is reported instead of drawn', () => {
  const result = sample([0, Math.log(3)], { target: 0, temperature: 1 });
  assert.equal(result.tokens[0], 0);
  assert.ok(Math.abs(result.logprobs[0] - Math.log(1 / 4)) < 1e-6);
  assert.equal(result.ranks[0], 2);
});

test('top_k keeps the likeliest, ties by the lower id', () => {
  const y = Float32Array.from([-1, 0, -1, -2]);
  assert.deepEqual(keptSet(y, 0, 2, 1), [1, 0]);
  assert.deepEqual(keptSet(y, 0, 9, 1), [1, 0, 2, 3]);
});

test('top_p keeps the shortest prefix that reaches it, and at least one token', () => {
  // Probabilities 0.5, 0.25, 0.125, 0.125.
  const y = Float32Array.from([0, 1, 2, 2], (halvings) => -halvings * Math.LN2);
  assert.deepEqual(keptSet(y, 0, 0, 0.4), [0]);
  assert.deepEqual(keptSet(y, 0, 0, 0.7), [0, 1]);
  assert.deepEqual(keptSet(y, 0, 0, 0.8), [0, 1, 2]);
  assert.deepEqual(keptSet(y, 0, 0, 0.9), [0, 1, 2, 3]);
  assert.deepEqual(keptSet(y, 0, 0, 1e-9), [0]);
  // Of the two that top_k leaves the first has two thirds.
  assert.deepEqual(keptSet(y, 0, 2, 0.6), [0]);
});

test('min_p keeps tokens at least that likely against the likeliest', () => {
  const y = Float32Array.from([0, 1, 2, 3], (halvings) => -halvings * Math.LN2);
  assert.deepEqual(keptSet(y, 0.3, 0, 1), [0, 1]);
  assert.deepEqual(keptSet(y, 0.2, 0, 1), [0, 1, 2]);
  assert.deepEqual(keptSet(y, 1, 0, 1), [0]);
});

test('A banned token is never kept', () => {
  assert.deepEqual(keptSet(Float32Array.from([0, -Infinity]), 0, 0, 1), [0]);
});

test('Weights follow the exponential function to float32 precision', () => {
  for (let y = 0; y > -12; y -= 0.0137) {
    const exact = 2 ** 30 * Math.exp(Math.fround(y));
    assert.ok(Math.abs(weight(Math.fround(y)) - exact) <= 3e-7 * exact + 0.5, `at ${y}`);
  }
  assert.equal(weight(0), 2 ** 30);
  assert.equal(weight(-23), 0);
  assert.equal(weight(-Infinity), 0);
});

test('Draws follow the distribution, at any temperature', () => {
  const logits = [0.3, -1, 2, 0.9, -Infinity, 1.1];
  for (const temperature of [0.5, 1, 1.7]) {
    const powers = logits.map((logit) => Math.exp(logit / temperature));
    const total = powers.reduce((a, b) => a + b);
    const counts = logits.map(() => 0);
    const draws = 4000;
    for (let draw = 0; draw < draws; draw++)
      counts[token(logits, { temperature, draw, seed: [5, 9] })]++;
    assert.equal(counts[4], 0, 'a token of probability 0 was drawn');
    // Chi-square with 4 degrees of freedom: 23.5 is exceeded with probability 1e-4; the seed is fixed.
    let chiSquare = 0;
    for (const i of [0, 1, 2, 3, 5]) {
      const expected = (draws * powers[i]) / total;
      chiSquare += (counts[i] - expected) ** 2 / expected;
    }
    assert.ok(chiSquare < 23.5, `chi-square ${chiSquare} at temperature ${temperature}`);
  }
});

test('Seed and draw alone decide, and a vanishing temperature is greedy', () => {
  const random = randomSource(1);
  const logits = Array.from({ length: 50 }, () => 4 * random());
  const row = { temperature: 1, seed: [3, 4], draw: 17 } as const;
  assert.equal(token(logits, row), token(logits, { ...row }));
  const tokens = new Set(Array.from({ length: 40 }, (_, draw) => token(logits, { ...row, draw })));
  assert.ok(tokens.size > 5);
  const highWord = Array.from({ length: 40 }, (_, i) => token(logits, { ...row, seed: [3, i] }));
  assert.ok(new Set(highWord).size > 5);
  assert.equal(token(logits, { ...row, temperature: 1e-30 }), token(logits));
});
