import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MAX_LOGPROBS, type StepResult } from '../../src/backend/backend.js';
import { sampleRow } from '../../src/backend/reference/sample.js';
import { dummyWeights } from '../../src/model/dummy.js';
import { ProgramBuilder, slice } from '../../src/model/program.js';
import { type RowSampling, range, stepBatch } from '../helpers/batch.js';
import { testBackend } from '../helpers/gpu.js';
import { randomInt, randomSource } from '../helpers/random.js';

const WIDTH = 64;
const ROWS = 48;

const backend = await testBackend();

// The reference takes its time with the largest.
for (const { vocab, rounds } of [
  { vocab: 17, rounds: 4 },
  { vocab: 1000, rounds: 4 },
  { vocab: 32_003, rounds: 2 },
  { vocab: 151_936, rounds: 1 },
]) {
  test(`From the same logits of ${vocab} tokens the GPU draws what the reference draws`, () => {
    const program = oneLayer(vocab);
    const runner = backend.createRunner(program, dummyWeights(program, 'float32', 5), {
      ...{ blockSize: 16, numBlocks: ROWS / 16, maxTokens: ROWS, maxSeqs: 4, maxModelLen: ROWS },
      keepLogits: true,
    });
    const random = randomSource(vocab);
    try {
      for (let round = 0; round < rounds; round++) {
        const tokens = range(0, ROWS).map(() => randomInt(random, 0, vocab - 1));
        const rows = tokens.map(() => randomRow(random, vocab));
        const positions = range(0, ROWS);
        const chunk = { tokens, from: 0, to: ROWS, blocks: range(0, ROWS / 16), rows: positions };
        const batch = stepBatch([chunk], 16, rows);
        const result = runner.step(batch);
        rows.forEach((row, r) => {
          const logits = result.logits!.subarray(r * vocab, (r + 1) * vocab);
          const expected = emptyResult(ROWS);
          sampleRow(logits, batch.sampling, r, expected);
          compareRow(result, expected, r, JSON.stringify(row).slice(0, 300));
        });
      }
    } finally {
      runner.close();
    }
  });
}

function compareRow(got: StepResult, expected: StepResult, r: number, what: string): void {
  assert.equal(got.tokens[r], expected.tokens[r], `token of ${what}`);
  if (expected.ranks[r] === 0) return;
  assert.equal(got.ranks[r], expected.ranks[r], `rank of ${what}`);
  const off = Math.abs(got.logprobs[r] - expected.logprobs[r]);
  assert.ok(off < 1e-4, `logprob of ${what} is off by ${off}`);
  for (let i = r * MAX_LOGPROBS; i < (r + 1) * MAX_LOGPROBS; i++) {
    assert.equal(got.topTokens[i], expected.topTokens[i], `top token ${i} of ${what}`);
    if (expected.topTokens[i] < 0) continue;
    const topOff = Math.abs(got.topLogprobs[i] - expected.topLogprobs[i]);
    assert.ok(topOff < 1e-4, `top logprob ${i} of ${what} is off by ${topOff}`);
  }
}

/** Every parameter on or off by itself, extremes included. */
function randomRow(random: () => number, vocab: number): RowSampling {
  const maybe = <T>(share: number, value: () => T) => (random() < share ? value() : undefined);
  const some = <T>(count: number, value: () => T) => Array.from({ length: count }, value);
  const tokens = (count: number) => [
    ...new Set(some(count, () => randomInt(random, 0, vocab - 1))),
  ];
  const row: RowSampling = {
    temperature: maybe(0.8, () => [0.001, 0.05, 0.7, 1, 1.5][randomInt(random, 0, 4)]),
    topK: maybe(0.4, () => randomInt(random, 1, random() < 0.5 ? 5 : vocab + 10)),
    topP: maybe(0.4, () => [1e-6, 0.1, 0.5, 0.9, 0.999][randomInt(random, 0, 4)]),
    minP: maybe(0.3, () => [1e-4, 0.1, 0.9][randomInt(random, 0, 2)]),
    seed: [Math.floor(random() * 2 ** 32), Math.floor(random() * 2 ** 32)],
    draw: randomInt(random, 0, 1000),
    repetitionPenalty: maybe(0.3, () => 0.5 + random()),
    presencePenalty: maybe(0.3, () => random() * 2 - 1),
    frequencyPenalty: maybe(0.3, () => random() * 2 - 1),
    history: maybe(0.4, () => tokens(30).map((token) => [token, randomInt(random, 0, 5)] as const)),
    bias: maybe(0.3, () =>
      tokens(10).map((token) => [token, random() < 0.3 ? -Infinity : random() * 4 - 2] as const),
    ),
    logprobs: maybe(0.4, () => randomInt(random, 0, MAX_LOGPROBS)),
    target: maybe(0.1, () => randomInt(random, 0, vocab - 1)),
  };
  return Object.fromEntries(Object.entries(row).filter(([, value]) => value !== undefined));
}

/** The logits of a token depend on little else than the token, and lie within a few of zero. */
function oneLayer(vocab: number) {
  const builder = new ProgramBuilder();
  const weight = (tensor: string, ...shape: number[]) => builder.weight([{ tensor, shape }], shape);
  const x = builder.embed(weight('embed', vocab, WIDTH));
  const qkv = builder.linear(x, weight('qkv', 3 * WIDTH, WIDTH));
  const part = (n: number) => slice(qkv, n * WIDTH, WIDTH);
  const attended = builder.attention({
    ...{ q: part(0), k: part(1), v: part(2) },
    ...{ heads: 1, kvHeads: 1, headDim: WIDTH, scale: 0.125 },
  });
  const normed = builder.rmsNorm(
    builder.gather(builder.add(x, attended)),
    weight('n', WIDTH),
    1e-5,
  );
  return builder.finish(builder.linear(normed, weight('head', vocab, WIDTH)));
}

function emptyResult(rows: number): StepResult {
  return {
    tokens: new Int32Array(rows),
    logprobs: new Float32Array(rows),
    ranks: new Int32Array(rows),
    topTokens: new Int32Array(rows * MAX_LOGPROBS),
    topLogprobs: new Float32Array(rows * MAX_LOGPROBS),
  };
}
