import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { ModelError } from '../../src/errors.js';
import { readGguf } from '../../src/gguf/gguf-file.js';
import { loadModel } from '../../src/model/load-model.js';
import { readTensor } from '../../src/model/read-tensor.js';
import { loadTokenizer } from '../../src/tokenizer/load-tokenizer.js';
import { readGolden } from '../helpers/goldens.js';
import { randomSource } from '../helpers/random.js';
import { temporaryModel } from '../helpers/tiny-model.js';

const files = ['gguf-llama', 'gguf-qwen3'].map((name) =>
  join(readGolden(`quantized/${name}`).path, 'model.gguf'),
);

test('The metadata becomes the config of the checkpoint', async () => {
  const { config, weights, program } = loadModel(files[0]);
  assert.equal(config.architecture, 'LlamaForCausalLM');
  assert.equal(config.numKvHeads, 2);
  assert.equal(config.headDim, 64);
  assert.equal(config.tieWordEmbeddings, true);
  assert.deepEqual(config.eosTokenIds, [2]);
  const fused = program.weights.find(({ name }) => name.endsWith('qkv_proj.weight'))!;
  // Q4_K and Q6_K in one matrix: both fit into 8 bits with offsets.
  const storage = { kind: 'integer', bits: 8, group: 32, symmetric: false, unasked: true };
  assert.deepEqual(weights.storage(fused), storage);
  const tokenizer = await loadTokenizer(files[1]);
  const prompt = tokenizer.applyChatTemplate([{ role: 'user', content: 'Hi' }]);
  assert.equal(prompt, '<user>Hi');
  assert.equal(tokenizer.eosTokenId, 2);
});

test('A GGUF file is no safetensors, and the option that says so is refused', () => {
  assert.throws(() => loadModel(files[0], { loadFormat: 'safetensors' }), {
    name: 'InvalidParameterError',
    param: 'loadFormat',
    message: /GGUF file \(.*model\.gguf\)/,
  });
});

test('The rotary factors of Llama 3.1 become its scaling, and others are refused', (t) => {
  const file = join(readGolden('quantized/gguf-llama3').path, 'model.gguf');
  const { rope } = loadModel(file).config;
  assert.deepEqual(rope, {
    type: 'llama3',
    theta: 10_000,
    factor: 8,
    lowFreqFactor: 1,
    highFreqFactor: 4,
    originalPositions: 8192,
  });
  const whole = readFileSync(file);
  const { offset } = readGguf(file).tensors.get('rope_freqs.weight')!;
  whole.writeFloatLE(1.5, offset);
  const path = join(temporaryModel(t, {}), 'model.gguf');
  writeFileSync(path, whole);
  assert.throws(() => loadModel(path), /rope_freqs\.weight\[0\] is 1\.5, expected 1\.0000/);
});

/** Loads all of it, so that a defect cannot hide behind what is read later. */
async function loadAll(path: string): Promise<void> {
  const { program, weights } = loadModel(path);
  for (const { tensor } of program.weights.flatMap(({ parts }) => parts)) {
    readTensor(weights.tensor(tensor));
  }
  await loadTokenizer(path);
}

for (const file of files) {
  test(`A damaged ${file.split('/').at(-2)} loads or fails with a ModelError`, async (t) => {
    const whole = readFileSync(file);
    const header = [...readGguf(file).tensors.values()].reduce(
      (least, { offset }) => Math.min(least, offset),
      whole.length,
    );
    const path = join(temporaryModel(t, {}), 'model.gguf');
    const random = randomSource(3);
    let refused = 0;
    for (let round = 0; round < 150; round++) {
      const bytes = Buffer.from(whole);
      const cut = round % 5 === 0 ? Math.floor(random() * bytes.length) : bytes.length;
      for (let edit = 0; edit <= round % 4; edit++) {
        // The first bytes and the end of the header hold what matters most.
        const span = [64, header, 4000][edit % 3];
        const from = edit % 3 === 2 ? header - span : 0;
        bytes[from + Math.floor(random() * span)] = Math.floor(random() * 256);
      }
      writeFileSync(path, bytes.subarray(0, cut));
      try {
        await loadAll(path);
      } catch (error) {
        assert.ok(error instanceof ModelError, `round ${round}: ${(error as Error).stack}`);
        refused++;
      }
    }
    assert.ok(refused > 30, `only ${refused} were refused`);
  });
}

test('Several files in a folder are not chosen between', (t) => {
  const folder = temporaryModel(t, { 'a.gguf': 'x', 'b.gguf': 'y' });
  assert.throws(() => loadModel(folder), /a\.gguf, b\.gguf; name the one/);
});

test('A tensor type that is not supported is named', (t) => {
  const whole = readFileSync(files[1]);
  const path = join(temporaryModel(t, {}), 'model.gguf');
  // The type follows the name, the number of dimensions and the two sizes.
  const at = whole.indexOf('blk.0.ffn_gate.weight') + 'blk.0.ffn_gate.weight'.length + 4 + 16;
  assert.equal(whole.readUInt32LE(at), 2);
  whole.writeUInt32LE(23, at);
  writeFileSync(path, whole);
  assert.throws(() => loadModel(path), /ffn_gate\.weight is IQ4_XS, which is not supported/);
});
