/** Properties that must hold for any program: how a prompt is cut and batched changes nothing. */
import assert from 'node:assert/strict';
import { type TestContext, test } from 'node:test';
import type { ModelRunner } from '../../../src/backend/backend.js';
import { referenceBackend } from '../../../src/backend/reference/reference.js';
import { type LoadedModel, loadModel } from '../../../src/model/load-model.js';
import type { DummyTensor, TensorRef } from '../../../src/model/weights.js';
import { type Chunk, range, stepBatch } from '../../helpers/batch.js';
import { randomInt, randomSource } from '../../helpers/random.js';
import { temporaryModel, tinyConfig } from '../../helpers/tiny-model.js';

const BLOCK_SIZE = 16;
const ARCHITECTURES = ['Llama', 'Mistral', 'Mixtral', 'Qwen2', 'Qwen3', 'Qwen3Moe'];

function randomModel(t: TestContext, seed: number): LoadedModel {
  const random = randomSource(seed);
  const pick = <T>(...choices: T[]) => choices[randomInt(random, 0, choices.length - 1)];
  const heads = pick(1, 2, 3, 4, 6);
  const config = tinyConfig({
    architectures: [`${ARCHITECTURES[seed % ARCHITECTURES.length]}ForCausalLM`],
    hidden_size: pick(8, 24, 32),
    intermediate_size: pick(8, 20, 48),
    num_hidden_layers: pick(1, 2, 3),
    num_attention_heads: heads,
    num_key_value_heads: pick(1, heads),
    head_dim: pick(2, 6, 8, 16),
    vocab_size: pick(31, 64),
    tie_word_embeddings: pick(true, false),
    attention_bias: pick(true, false),
    mlp_bias: pick(true, false),
    sliding_window: pick(null, 1, 5, 18),
    use_sliding_window: pick(true, false),
    max_window_layers: pick(0, 1, 2),
    num_local_experts: 4,
    num_experts_per_tok: pick(1, 2, 4),
    moe_intermediate_size: 12,
    norm_topk_prob: pick(true, false),
    decoder_sparse_step: pick(1, 2),
  });
  return loadModel(temporaryModel(t, { 'config.json': config }), { loadFormat: 'dummy', seed });
}

interface Sequence {
  readonly tokens: number[];
  readonly blocks: readonly number[];
}

function randomSequences(random: () => number, count: number, vocab: number): Sequence[] {
  return range(0, count).map((n) => ({
    tokens: Array.from({ length: randomInt(random, 1, 40) }, () => randomInt(random, 0, vocab - 1)),
    // Three blocks each, in descending order.
    blocks: range(3 * n, 3).reverse(),
  }));
}

function runnerOf({ program, weights }: LoadedModel): ModelRunner {
  return referenceBackend.createRunner(program, weights, {
    blockSize: BLOCK_SIZE,
    numBlocks: 16,
    maxTokens: 160,
    maxSeqs: 8,
    maxModelLen: 48,
    keepLogits: true,
  });
}

/** Logits of every wanted position of each sequence, computed in the steps that `plan` yields; else NaN. */
function logitsOf(model: LoadedModel, sequences: Sequence[], plan: Chunk[][]): Float32Array[] {
  const runner = runnerOf(model);
  const vocab = model.program.vocabSize;
  const out = sequences.map(({ tokens }) =>
    new Float32Array(tokens.length * vocab).fill(Number.NaN),
  );
  for (const chunks of plan) {
    const { logits } = runner.step(stepBatch(chunks, BLOCK_SIZE));
    let row = 0;
    for (const { blocks, rows } of chunks) {
      const n = sequences.findIndex((sequence) => sequence.blocks === blocks);
      for (const position of rows) {
        out[n].set(logits!.subarray(row * vocab, (row + 1) * vocab), position * vocab);
        row++;
      }
    }
  }
  return out;
}

const whole = ({ tokens, blocks }: Sequence): Chunk => ({
  tokens,
  from: 0,
  to: tokens.length,
  blocks,
  rows: range(0, tokens.length),
});

/**
 * Cuts all sequences at random and mixes their chunks in steps at random; of the rows so many are
 * wanted, in some steps none.
 */
function randomPlan(random: () => number, sequences: Sequence[], share = 1): Chunk[][] {
  const done = sequences.map(() => 0);
  const plan: Chunk[][] = [];
  while (sequences.some(({ tokens }, n) => done[n] < tokens.length)) {
    const chunks: Chunk[] = [];
    sequences.forEach(({ tokens, blocks }, n) => {
      const from = done[n];
      if (from === tokens.length || random() < 0.3) return;
      const to = Math.min(tokens.length, from + randomInt(random, 1, 20));
      done[n] = to;
      const rows = range(from, to - from).filter(() => random() < share);
      chunks.push({ tokens, from, to, blocks, rows });
    });
    if (chunks.length > 0) plan.push(chunks);
  }
  return plan;
}

for (let seed = 0; seed < 12; seed++) {
  test(`Cutting and batching change nothing for random ${ARCHITECTURES[seed % 6]} ${seed}`, (t) => {
    const random = randomSource(1000 + seed);
    const model = randomModel(t, seed);
    const sequences = randomSequences(random, randomInt(random, 2, 5), model.program.vocabSize);
    const alone = logitsOf(
      model,
      sequences,
      sequences.map((sequence) => [whole(sequence)]),
    );
    const together = logitsOf(model, sequences, [sequences.map(whole)]);
    const mixed = logitsOf(model, sequences, randomPlan(random, sequences));
    // The reference computes each token by itself: not a bit may differ.
    assert.deepEqual(together, alone);
    assert.deepEqual(mixed, alone);
    assert.ok(alone.every((logits) => logits.every(Number.isFinite)));
    // Nor does it matter to a row which others are wanted.
    const few = logitsOf(model, sequences, randomPlan(random, sequences, 0.2));
    few.forEach((logits, n) => {
      assert.deepEqual(
        logits,
        alone[n].map((logit, i) => (Number.isNaN(logits[i]) ? Number.NaN : logit)),
      );
    });
    // And the logits say something: not the same at each position.
    const [first] = alone;
    assert.ok(new Set(first.subarray(0, model.program.vocabSize)).size > 5);
  });
}

test('A copied block continues like the original, which stays as it was', (t) => {
  const model = randomModel(t, 0);
  const tokens = range(0, 20);
  const other = [...tokens.slice(0, 18), 9, 9];
  const runner = runnerOf(model);
  const chunk = (list: number[], from: number, to: number, blocks: number[]) => ({
    tokens: list,
    from,
    to,
    blocks,
    rows: [to - 1],
  });
  const logits = (chunks: Chunk[], copies: number[] = []) => {
    const batch = stepBatch(chunks, BLOCK_SIZE);
    batch.copies = Int32Array.from(copies);
    batch.numCopies = copies.length / 2;
    return runner.step(batch).logits!.slice();
  };
  const expected = logits([chunk(tokens, 0, 20, [0, 1])]);
  const expectedOther = logits([chunk(other, 0, 20, [0, 1])]);
  logits([chunk(tokens, 0, 18, [2, 3])]);
  // The branch shares block 2 and works on a copy of block 3.
  assert.deepEqual(logits([chunk(other, 18, 20, [2, 5])], [3, 5]), expectedOther);
  assert.deepEqual(logits([chunk(tokens, 18, 20, [2, 3])]), expected);
});

test('A sequence whose logits are not finite fails alone', (t) => {
  const config = tinyConfig({ vocab_size: 16 });
  const model = loadModel(temporaryModel(t, { 'config.json': config }), { loadFormat: 'dummy' });
  // The same program, but the embedding of the last token, 15, is infinite.
  const embedding = model.weights.tensor('model.embed_tokens.weight');
  const program = {
    ...model.program,
    weights: model.program.weights.map((weight) =>
      weight.name === 'model.embed_tokens.weight'
        ? {
            ...weight,
            parts: [
              { tensor: 'finite', shape: [15, 32] },
              { tensor: 'infinite', shape: [1, 32] },
            ],
          }
        : weight,
    ),
  };
  const parts: Record<string, TensorRef> = {
    finite: { ...embedding, shape: [15, 32] },
    infinite: { ...(embedding as DummyTensor), scale: Infinity, shape: [1, 32] },
  };
  const weights = {
    dtype: model.weights.dtype,
    storage: model.weights.storage,
    tensor: (name: string) => parts[name] ?? model.weights.tensor(name),
  };
  const one = (tokens: number[], block: number) => ({
    tokens,
    from: 0,
    to: tokens.length,
    blocks: [block],
    rows: [tokens.length - 1],
  });
  const good = runnerOf(model).step(stepBatch([one([1, 2, 3], 0), one([4], 1)], BLOCK_SIZE));
  const [first, second] = good.tokens;
  const poisoned = runnerOf({ ...model, program, weights }).step(
    stepBatch([one([1, 2, 3], 0), one([5, 15, 6], 2), one([4], 1)], BLOCK_SIZE),
  );
  assert.deepEqual([...poisoned.tokens.subarray(0, 3)], [first, -1, second]);
});

test('16-bit storage changes logits a little, and only a little', (t) => {
  const model = randomModel(t, 0);
  const sequences = randomSequences(randomSource(5), 2, model.program.vocabSize);
  const plan = [sequences.map(whole)];
  const exact = logitsOf(model, sequences, plan).flatMap((logits) => [...logits]);
  for (const [dtype, bound] of [
    ['bfloat16', 0.05],
    ['float16', 0.01],
  ] as const) {
    const rounded = logitsOf(
      { ...model, weights: { ...model.weights, dtype } },
      sequences,
      plan,
    ).flatMap((logits) => [...logits]);
    const worst = exact.reduce((most, value, i) => Math.max(most, Math.abs(value - rounded[i])), 0);
    assert.ok(worst > 0, dtype);
    assert.ok(worst < bound, `${dtype}: ${worst}`);
  }
});

test('Memory is reported as it is allocated', (t) => {
  const model = randomModel(t, 0);
  const { memory } = runnerOf(model);
  const parameters = model.program.weights.reduce(
    (sum, { shape }) => sum + shape.reduce((a, b) => a * b),
    0,
  );
  assert.equal(memory.weights, 4 * parameters);
  const perBlock = referenceBackend.kvBytesPerBlock(model.program, BLOCK_SIZE, 'float32');
  assert.equal(memory.kvCache, 16 * perBlock);
});
