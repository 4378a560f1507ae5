import assert from 'node:assert/strict';
import { test } from 'node:test';
import { parseConfig } from '../../src/model/config.js';
import { recordProgram } from '../../src/model/families.js';
import type { AttentionOp, Program } from '../../src/model/program.js';
import { tinyConfig } from '../helpers/tiny-model.js';

const record = (architecture: string, overrides: Record<string, unknown> = {}) =>
  recordProgram(
    parseConfig(
      'config.json',
      tinyConfig({ architectures: [`${architecture}ForCausalLM`], ...overrides }),
    ),
  );

const kinds = ({ ops }: Program) => ops.map(({ kind }) => kind);
const windows = ({ ops }: Program) =>
  ops.filter((op): op is AttentionOp => op.kind === 'attention').map(({ window }) => window);
const weightOf = ({ weights }: Program, name: string) =>
  weights.find((weight) => weight.name === name);

test('Llama records the layers and fuses q, k, v and gate, up', () => {
  const program = record('Llama', { num_hidden_layers: 1 });
  assert.deepEqual(kinds(program), [
    'embed',
    'rms_norm',
    'linear',
    'rope',
    'rope',
    'attention',
    'gather',
    'gather',
    'linear',
    'add',
    'rms_norm',
    'linear',
    'silu_mul',
    'linear',
    'add',
    'rms_norm',
    'linear',
  ]);
  const qkv = weightOf(program, 'model.layers.0.self_attn.qkv_proj.weight');
  assert.deepEqual(qkv?.shape, [64, 32]);
  assert.deepEqual(qkv?.parts, [
    { tensor: 'model.layers.0.self_attn.q_proj.weight', shape: [32, 32] },
    { tensor: 'model.layers.0.self_attn.k_proj.weight', shape: [16, 32] },
    { tensor: 'model.layers.0.self_attn.v_proj.weight', shape: [16, 32] },
  ]);
  assert.deepEqual(weightOf(program, 'model.layers.0.mlp.gate_up_proj.weight')?.shape, [96, 32]);
  assert.deepEqual(program.kvLayers, [{ kvHeads: 2, headDim: 8 }]);
  assert.equal(program.vocabSize, 64);
  assert.equal(program.values[program.logits.value].rows, 'R');
});

test('In every family the last layer goes on with the wanted rows alone once it has attended', () => {
  for (const architecture of ['Llama', 'Mistral', 'Qwen2', 'Qwen3', 'Mixtral', 'Qwen3Moe']) {
    const program = record(architecture, {
      ...{ num_local_experts: 4, num_experts: 4, num_experts_per_tok: 2 },
      ...{ moe_intermediate_size: 16, norm_topk_prob: true, decoder_sparse_step: 1 },
    });
    const attended = program.ops.findLastIndex(({ kind }) => kind === 'attention');
    program.ops.forEach(({ kind, out }, index) => {
      const expected = index > attended ? 'R' : 'T';
      assert.equal(program.values[out.value].rows, expected, `${architecture}: ${kind} ${index}`);
    });
    const after = program.ops.slice(attended + 1).map(({ kind }) => kind);
    assert.deepEqual(after.slice(0, 3), ['gather', 'gather', 'linear'], architecture);
    assert.ok(after.includes(/Mixtral|Moe/.test(architecture) ? 'moe' : 'silu_mul'), architecture);
  }
});

test('Every value is written once, before it is read', () => {
  for (const architecture of ['Llama', 'Qwen3', 'Mixtral']) {
    const program = record(architecture, { num_local_experts: 4, num_experts_per_tok: 2 });
    const written = new Set<number>();
    for (const op of program.ops) {
      const inputs = Object.entries(op).filter(
        ([key, field]) => key !== 'out' && typeof field === 'object',
      );
      for (const [key, view] of inputs) {
        assert.ok(written.has(view.value), `${op.kind}.${key}`);
        assert.ok(view.offset + view.width <= program.values[view.value].width);
      }
      assert.ok(!written.has(op.out.value));
      written.add(op.out.value);
    }
    assert.equal(written.size, program.values.length);
  }
});

test('A tied head is the embedding, an untied one a weight of its own', () => {
  assert.equal(weightOf(record('Llama'), 'lm_head.weight')?.shape[0], 64);
  const tied = record('Llama', { tie_word_embeddings: true });
  assert.equal(weightOf(tied, 'lm_head.weight'), undefined);
  const head = tied.ops.at(-1);
  assert.equal(
    head?.kind === 'linear' && tied.weights[head.weight].name,
    'model.embed_tokens.weight',
  );
});

test('Biases appear where the config or the family wants them', () => {
  const biases = (program: Program) =>
    program.weights
      .flatMap(({ parts }) => parts.map(({ tensor }) => tensor))
      .filter((name) => /layers\.0.*bias$/.test(name));
  assert.deepEqual(biases(record('Llama')), []);
  assert.equal(biases(record('Llama', { attention_bias: true })).length, 4);
  assert.equal(biases(record('Llama', { mlp_bias: true })).length, 3);
  assert.equal(biases(record('Qwen2')).length, 3);
});

test('Sliding windows follow each family', () => {
  assert.deepEqual(windows(record('Mistral')), [undefined, undefined]);
  assert.deepEqual(windows(record('Mistral', { sliding_window: 9 })), [9, 9]);
  const qwen = { num_hidden_layers: 3, sliding_window: 9, max_window_layers: 1 };
  assert.deepEqual(windows(record('Qwen2', qwen)), [undefined, undefined, undefined]);
  assert.deepEqual(windows(record('Qwen2', { ...qwen, use_sliding_window: true })), [
    undefined,
    9,
    9,
  ]);
  const layer_types = ['sliding_attention', 'full_attention', 'sliding_attention'];
  assert.deepEqual(windows(record('Qwen3', { ...qwen, use_sliding_window: true, layer_types })), [
    9,
    undefined,
    9,
  ]);
});

test('Qwen3-MoE has dense layers where the config says', () => {
  const program = record('Qwen3Moe', {
    num_hidden_layers: 4,
    num_experts: 4,
    num_experts_per_tok: 2,
    moe_intermediate_size: 12,
    decoder_sparse_step: 2,
    mlp_only_layers: [3],
  });
  const mlps = kinds(program).filter((kind) => kind === 'moe' || kind === 'silu_mul');
  assert.deepEqual(mlps, ['silu_mul', 'moe', 'silu_mul', 'silu_mul']);
  assert.equal(program.ops.find((op) => op.kind === 'moe')?.normalize, false);
  const gateUp = weightOf(program, 'model.layers.1.mlp.experts.gate_up_proj.weight');
  assert.deepEqual(gateUp?.shape, [4, 24, 32]);
  assert.deepEqual(gateUp?.parts[3], {
    tensor: 'model.layers.1.mlp.experts.1.up_proj.weight',
    shape: [12, 32],
  });
});
