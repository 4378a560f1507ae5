import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  attendedPairs,
  costOfStep,
  type OpCost,
  rooflineSeconds,
  totalCost,
} from '../../../src/backend/cost/cost.js';
import { parseConfig } from '../../../src/model/config.js';
import { recordProgram } from '../../../src/model/families.js';
import { parseScheme } from '../../../src/model/quantization.js';
import { tinyConfig } from '../../helpers/tiny-model.js';

const program = (overrides: Record<string, unknown> = {}) =>
  recordProgram(parseConfig('config.json', tinyConfig(overrides)));

test('A decode step of a small Llama costs what the hand computes', () => {
  const costs = costOfStep(program(), 'bfloat16', {
    sequences: [
      { query: 1, context: 10 },
      { query: 1, context: 7 },
    ],
    rows: 2,
  });
  const linears = costs.filter(({ op }) => op.kind === 'linear');
  // Two layers of qkv 64 x 32, o 32 x 32, gate and up 96 x 32, down 32 x 48; the head 64 x 32.
  const parameters = [2048, 1024, 3072, 1536, 2048, 1024, 3072, 1536, 2048];
  assert.deepEqual(
    linears.map(({ flops }) => flops),
    parameters.map((count) => 2 * 2 * count),
  );
  assert.deepEqual(
    linears.map(({ weightBytes }) => weightBytes),
    parameters.map((count) => 2 * count),
  );
  assert.equal(linears[0].activationBytes, 4 * 2 * (32 + 64));

  const attention = costs.find(({ op }) => op.kind === 'attention')!;
  // 17 pairs of query and key, 4 heads of 8: 2 * 8 for the score, 3 for softmax, 2 * 8 for the value.
  assert.equal(attention.flops, 17 * 4 * 35);
  // 2 tokens written, 17 read, 2 * 2 heads of 8 in two bytes.
  assert.equal(attention.kvBytes, 19 * 32 * 2);
  assert.equal(attention.weightBytes, 0);

  const embed = costs.find(({ op }) => op.kind === 'embed')!;
  assert.deepEqual([embed.flops, embed.weightBytes], [0, 2 * 32 * 2]);
});

test('Rows that nobody wants cost nothing once the last layer has attended', () => {
  const costs = (rows: number) =>
    costOfStep(program(), 'bfloat16', { sequences: [{ query: 5, context: 5 }], rows });
  const last = costs(0).findLastIndex(({ op }) => op.kind === 'attention');
  assert.deepEqual(totalCost(costs(0).slice(last + 1)), {
    ...{ flops: 0, weightBytes: 0, activationBytes: 0, kvBytes: 0 },
  });
  const linears = (rows: number) => costs(rows).filter(({ op }) => op.kind === 'linear');
  // Per row of the second layer: o 32 x 32, gate and up 96 x 32, down 32 x 48; the head 64 x 32.
  assert.deepEqual(
    linears(2).map(({ flops }, n) => flops - linears(0)[n].flops),
    [0, 0, 0, 0, 0, 1024, 3072, 1536, 2048].map((count) => 2 * 2 * count),
  );
});

test('Pairs of query and key are counted under causal mask and window', () => {
  for (const [query, context, window] of [
    [1, 1, 9],
    [5, 5, 5],
    [3, 8, 8],
    [4, 20, 6],
    [20, 20, 6],
  ]) {
    let pairs = 0;
    for (let p = context - query; p < context; p++) pairs += Math.min(p + 1, window);
    assert.equal(attendedPairs(query, context, window), pairs);
  }
});

test('A window bounds the keys that are read', () => {
  const costs = costOfStep(
    program({ architectures: ['MistralForCausalLM'], sliding_window: 16 }),
    'float32',
    { sequences: [{ query: 1, context: 200 }], rows: 1 },
  );
  const attention = costs.find(({ op }) => op.kind === 'attention')!;
  assert.equal(attention.kvBytes, (1 + 16) * 32 * 4);
});

test('A mixture of experts computes its chosen experts and reads those somebody chose', () => {
  const mixtral = program({
    architectures: ['MixtralForCausalLM'],
    num_local_experts: 8,
    num_experts_per_tok: 2,
  });
  const moe = (tokens: number) =>
    costOfStep(mixtral, 'bfloat16', {
      sequences: [{ query: tokens, context: tokens }],
      rows: 1,
    }).find(({ op }) => op.kind === 'moe')!;
  const expert = 3 * 48 * 32;
  assert.equal(moe(1).weightBytes, 2 * expert * 2);
  assert.ok(Math.abs(moe(500).weightBytes - 8 * expert * 2) < 1);
  assert.ok(moe(3).flops >= 3 * 2 * 2 * expert);
  assert.ok(moe(3).flops < 3 * 2 * 2 * expert * 1.1);
});

test('The roofline takes the slower of arithmetic and memory of each operation', () => {
  const a = { flops: 100, weightBytes: 10, kvBytes: 0, activationBytes: 0 };
  const b = { flops: 10, weightBytes: 50, kvBytes: 50, activationBytes: 999 };
  assert.equal(rooflineSeconds([a, b], { flopsPerSecond: 100, bytesPerSecond: 100 }), 2);
  assert.deepEqual(totalCost([a, b]), {
    flops: 110,
    weightBytes: 60,
    kvBytes: 50,
    activationBytes: 999,
  });
});

test('A 135M-parameter decode step needs 0.27 GFLOP a token, as counted from its parameters', () => {
  const smol = program({
    hidden_size: 576,
    intermediate_size: 1536,
    num_hidden_layers: 30,
    num_attention_heads: 9,
    num_key_value_heads: 3,
    vocab_size: 49152,
    tie_word_embeddings: true,
  });
  const { flops, weightBytes } = totalCost(
    costOfStep(smol, 'bfloat16', { sequences: [{ query: 1, context: 1 }], rows: 1 }),
  );
  assert.ok(Math.abs(flops / 0.27e9 - 1) < 0.01, `${flops}`);
  assert.ok(Math.abs(weightBytes / 269e6 - 1) < 0.01, `${weightBytes}`);
});

test('Integers count codes and scales, an int8 cache its scales', () => {
  const [plain, int4] = ['bfloat16' as const, 'int4-g32' as const].map((name) =>
    costOfStep(
      program(),
      name === 'bfloat16'
        ? name
        : { dtype: 'bfloat16', storage: () => parseScheme(name), kvCacheDtype: 'int8' },
      { sequences: [{ query: 1, context: 10 }], rows: 1 },
    ),
  );
  const linears = (costs: OpCost[]) => costs.filter(({ op }) => op.kind === 'linear');
  // qkv 64 x 32: half a byte a weight, and one scale a row; down 32 x 48 has two groups a row.
  assert.equal(linears(plain)[0].weightBytes, 64 * 32 * 2);
  assert.equal(linears(int4)[0].weightBytes, 64 * 16 + 64 * 4);
  assert.equal(linears(int4)[3].weightBytes, 32 * 24 + 32 * 2 * 4);
  const kv = (costs: OpCost[]) => costs.find(({ op }) => op.kind === 'attention')!.kvBytes;
  // 1 token written, 10 read, 2 * 2 heads of 8.
  assert.deepEqual([kv(plain), kv(int4)], [11 * 4 * 16, 11 * 4 * 12]);
});
