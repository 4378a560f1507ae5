import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ModelError } from '../../src/errors.js';
import { parseConfig } from '../../src/model/config.js';
import { recordProgram } from '../../src/model/families.js';
import { tinyConfig } from '../helpers/tiny-model.js';

const parse = (overrides: Record<string, unknown> = {}) =>
  parseConfig('/m/config.json', tinyConfig(overrides));

const absent = undefined;

function refuses(message: RegExp, overrides: Record<string, unknown>): void {
  assert.throws(
    () => recordProgram(parse(overrides)),
    (error) => {
      assert.ok(error instanceof ModelError, String(error));
      assert.match(error.message, message);
      assert.match(error.message, /config\.json/);
      return true;
    },
  );
}

test('Absent fields take the defaults of transformers', () => {
  const config = parse({
    head_dim: absent,
    num_key_value_heads: absent,
    tie_word_embeddings: absent,
  });
  assert.equal(config.headDim, 8);
  assert.equal(config.numKvHeads, 4);
  assert.equal(config.tieWordEmbeddings, false);
  assert.equal(parse({ head_dim: null }).headDim, 8);
  assert.equal(parse({ head_dim: 6 }).headDim, 6);
});

test('The type may be called dtype or torch_dtype, or be absent', () => {
  assert.equal(parse({ torch_dtype: 'bfloat16' }).dtype, 'bfloat16');
  assert.equal(parse({ torch_dtype: absent, dtype: 'float16' }).dtype, 'float16');
  assert.equal(parse({ torch_dtype: absent }).dtype, undefined);
});

test('End-of-sequence tokens may be a number, a list or absent', () => {
  assert.deepEqual(parse({ eos_token_id: 5 }).eosTokenIds, [5]);
  assert.deepEqual(parse({ eos_token_id: [5, 6] }).eosTokenIds, [5, 6]);
  assert.deepEqual(parse({ eos_token_id: null }).eosTokenIds, []);
});

test('The older and the newer layout of rotary parameters mean the same', () => {
  const scaling = {
    factor: 4,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 64,
  };
  const newer = parse({
    rope_theta: absent,
    rope_parameters: { rope_type: 'llama3', rope_theta: 5e5, ...scaling },
  });
  const older = parse({ rope_theta: 5e5, rope_scaling: { type: 'llama3', ...scaling } });
  const middle = parse({ rope_theta: 5e5, rope_scaling: { rope_type: 'llama3', ...scaling } });
  assert.deepEqual(newer.rope, older.rope);
  assert.deepEqual(newer.rope, middle.rope);
  assert.equal(newer.rope.theta, 5e5);
  assert.deepEqual(parse({ rope_theta: absent }).rope, { type: 'default', theta: 10000 });
});

test('A scaled context is longer than the positions of the config', () => {
  assert.equal(parse({ rope_scaling: { type: 'linear', factor: 4 } }).maxPositionEmbeddings, 1024);
  assert.equal(parse({ rope_scaling: { type: 'yarn', factor: 4 } }).maxPositionEmbeddings, 1024);
  const yarn = { rope_type: 'yarn', factor: 4, original_max_position_embeddings: 64 };
  assert.equal(parse({ rope_scaling: yarn }).maxPositionEmbeddings, 256);
  assert.equal(parse().maxPositionEmbeddings, 256);
});

test('What is not supported is refused by name, with what is', () => {
  refuses(
    /architectures is "GPT2LMHeadModel", supported are LlamaForCausalLM, .*Qwen3MoeForCausalLM/,
    {
      architectures: ['GPT2LMHeadModel'],
    },
  );
  refuses(/hidden_act is "gelu", expected silu/, { hidden_act: 'gelu' });
  refuses(/rope_scaling: type is "dynamic", supported are default, linear, llama3, yarn/, {
    rope_scaling: { type: 'dynamic', factor: 2 },
  });
  refuses(/partial_rotary_factor is 0.5/, { partial_rotary_factor: 0.5 });
  refuses(/rope_parameters: partial_rotary_factor is 0.25/, {
    rope_parameters: { rope_type: 'default', rope_theta: 1e4, partial_rotary_factor: 0.25 },
  });
  refuses(/torch_dtype is "float8", expected float32, float16 or bfloat16/, {
    torch_dtype: 'float8',
  });
  refuses(/rope_parameters: /, {
    rope_parameters: { full_attention: { rope_type: 'default', rope_theta: 'x' }, rope_theta: 'x' },
  });
});

test('Every missing or wrong field is named with what was expected', () => {
  for (const field of [
    'hidden_size',
    'intermediate_size',
    'num_hidden_layers',
    'num_attention_heads',
    'vocab_size',
  ]) {
    refuses(new RegExp(`${field} is missing, expected a positive integer`), { [field]: absent });
    refuses(new RegExp(`${field} is -3, expected a positive integer`), { [field]: -3 });
    refuses(new RegExp(`${field} is "8"`), { [field]: '8' });
  }
  refuses(/architectures is missing/, { architectures: absent });
  refuses(/num_key_value_heads is 3, expected a divisor of num_attention_heads \(4\)/, {
    num_key_value_heads: 3,
  });
  refuses(/head_dim is 7, expected an even number/, { head_dim: 7 });
  refuses(/hidden_size is 30, expected a multiple of num_attention_heads/, { hidden_size: 30 });
  refuses(/eos_token_id is "x"/, { eos_token_id: 'x' });
  refuses(/tie_word_embeddings is "yes", expected true or false/, { tie_word_embeddings: 'yes' });
  refuses(/rope_scaling: factor is missing/, { rope_scaling: { type: 'linear' } });
  refuses(/rope_scaling is \[\], expected an object/, { rope_scaling: [] });
  refuses(/num_local_experts is missing/, { architectures: ['MixtralForCausalLM'] });
  refuses(/num_experts_per_tok is 9, expected at most .*\(8\)/, {
    architectures: ['MixtralForCausalLM'],
    num_local_experts: 8,
    num_experts_per_tok: 9,
  });
  refuses(/layer_types is \["full_attention"\], expected 2 entries/, {
    architectures: ['Qwen2ForCausalLM'],
    layer_types: ['full_attention'],
  });
});
