import assert from 'node:assert/strict';
import { test } from 'node:test';
import { InvalidParameterError, ModelError } from '../../src/errors.js';
import { type LoadModelOptions, loadModel } from '../../src/model/load-model.js';
import type { Program } from '../../src/model/program.js';
import { STORIES } from '../helpers/goldens.js';
import {
  safetensorsBytes,
  temporaryModel,
  tinyConfig,
  zeroTensors,
} from '../helpers/tiny-model.js';

/** Names and shapes of everything the program needs. */
function shapesOf(program: Program): Record<string, readonly number[]> {
  const parts = program.weights.flatMap((weight) => weight.parts);
  return Object.fromEntries(parts.map(({ tensor, shape }) => [tensor, shape]));
}

test('The bundled model loads with its types, end tokens and defaults', () => {
  const { config, weights, eosTokenIds, generationDefaults, program } = loadModel(STORIES);
  assert.equal(weights.dtype, 'bfloat16');
  assert.equal(loadModel(STORIES, { dtype: 'float32' }).weights.dtype, 'float32');
  assert.deepEqual(eosTokenIds, [2]);
  assert.equal(generationDefaults.temperature, 0.8);
  assert.equal(generationDefaults.topP, 0.95);
  assert.equal(config.maxModelLen, 2048);
  assert.equal(loadModel(STORIES, { maxModelLen: 100 }).config.maxModelLen, 100);
  assert.equal(program.vocabSize, 4096);
});

test('End tokens of both configs count', (t) => {
  const files = {
    'config.json': tinyConfig({ eos_token_id: 2 }),
    'generation_config.json': { eos_token_id: [3, 2], top_k: 20 },
  };
  const model = loadModel(temporaryModel(t, files), { loadFormat: 'dummy' });
  assert.deepEqual(model.eosTokenIds, [2, 3]);
  assert.equal(model.generationDefaults.topK, 20);
  const outside = temporaryModel(t, { 'config.json': tinyConfig({ eos_token_id: 64 }) });
  assert.throws(() => loadModel(outside, { loadFormat: 'dummy' }), /eos_token_id 64 lies outside/);
});

test('Missing, extra and misshapen tensors are all named in one error', (t) => {
  const config = tinyConfig();
  const dummy = loadModel(temporaryModel(t, { 'config.json': config }), { loadFormat: 'dummy' });
  const shapes = shapesOf(dummy.program);
  const load = (changed: Record<string, readonly number[]>, overrides = {}) =>
    loadModel(
      temporaryModel(t, {
        'config.json': { ...config, ...overrides },
        'model.safetensors': zeroTensors(changed),
      }),
    );
  load(shapes);
  const { 'model.norm.weight': _, ...incomplete } = shapes;
  assert.throws(
    () =>
      load({
        ...incomplete,
        'model.layers.1.mlp.up_proj.weight': [32, 48],
        'model.layers.7.mlp.up_proj.weight': [1],
        'model.layers.0.self_attn.rotary_emb.inv_freq': [4],
      }),
    (error) => {
      assert.ok(error instanceof ModelError);
      assert.match(error.message, /missing model\.norm\.weight \[32\]/);
      assert.match(
        error.message,
        /layers\.1\.mlp\.up_proj\.weight is \[32, 48\], expected \[48, 32\]/,
      );
      assert.match(error.message, /unexpected model\.layers\.7\.mlp\.up_proj\.weight/);
      assert.doesNotMatch(error.message, /inv_freq/);
      return true;
    },
  );
  // A tied model may carry a copy of its head.
  load(shapes, { tie_word_embeddings: true });
  const { 'lm_head.weight': __, ...headless } = shapes;
  load(headless, { tie_word_embeddings: true });
  assert.throws(() => load(headless), /missing lm_head\.weight/);
});

test('A tensor of a type that is no float is refused', (t) => {
  const config = tinyConfig();
  const dummy = loadModel(temporaryModel(t, { 'config.json': config }), { loadFormat: 'dummy' });
  let end = 0;
  const header: Record<string, object> = {};
  for (const [name, shape] of Object.entries(shapesOf(dummy.program))) {
    const dtype = name === 'model.norm.weight' ? 'I32' : 'F32';
    const begin = end;
    end += 4 * shape.reduce((a, b) => a * b, 1);
    header[name] = { dtype, shape, data_offsets: [begin, end] };
  }
  const directory = temporaryModel(t, {
    'config.json': config,
    'model.safetensors': safetensorsBytes(header, end),
  });
  assert.throws(
    () => loadModel(directory),
    /model\.norm\.weight is I32, expected F32, F16 or BF16/,
  );
});

test('What is not there is said, with what is', (t) => {
  assert.throws(() => loadModel('/nowhere'), {
    name: 'ModelError',
    message: /expected a directory/,
  });
  assert.throws(() => loadModel(temporaryModel(t, {})), /config\.json: the file is missing/);
  assert.throws(
    () => loadModel(temporaryModel(t, { 'config.json': '{' })),
    /config\.json: cannot be read as JSON/,
  );
  const other = temporaryModel(t, { 'config.json': tinyConfig(), 'pytorch_model.bin': '' });
  assert.throws(() => loadModel(other), /only pytorch_model\.bin; convert/);
});

test('Options are checked by name', () => {
  const wrong: [keyof LoadModelOptions, unknown][] = [
    ['dtype', 'int8'],
    ['loadFormat', 'gguf'],
    ['seed', 1.5],
    ['maxModelLen', 4096],
    ['maxModelLen', 0],
  ];
  for (const [param, value] of wrong) {
    assert.throws(
      () => loadModel(STORIES, { [param]: value }),
      (error) => error instanceof InvalidParameterError && error.param === param,
    );
  }
});
