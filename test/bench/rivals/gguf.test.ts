import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { exportGguf } from '../../../bench/rivals/export-gguf.js';
import { type GgufTensor, writeGguf } from '../../../bench/rivals/gguf-file.js';
import { tokenizerMetadata } from '../../../bench/rivals/gguf-tokenizer.js';
import { ModelError } from '../../../src/errors.js';
import { bfloat16ToFloat, float16ToFloat, roundTo } from '../../../src/model/half.js';
import { loadModel } from '../../../src/model/load-model.js';
import { readTensor } from '../../../src/model/read-tensor.js';
import type { DType } from '../../../src/model/weights.js';
import { root } from '../../helpers/root.js';

const folder = mkdtempSync(join(tmpdir(), 'gguf-'));
process.once('exit', () => rmSync(folder, { recursive: true }));
const stories = join(root, 'models/stories-7m');
const tiny = join(root, 'test/goldens/llama-tiny');

test('A file has the layout of the specification: header, values, tensor list, aligned data', () => {
  const path = join(folder, 'small.gguf');
  writeGguf(
    path,
    new Map([
      ['a.count', { type: 'uint32', value: 7 }],
      ['a.text', { type: 'string', value: 'é' }],
      ['a.flag', { type: 'bool', value: true }],
      ['a.real', { type: 'float32', value: 0.5 }],
      ['a.list', { type: 'int32[]', value: [-1, 2] }],
      ['a.words', { type: 'string[]', value: ['x', ''] }],
    ]),
    [tensor('odd', [3], 'F32', [1, 2, 3]), tensor('next', [2, 4], 'F32', [1, 2, 3, 4, 5, 6, 7, 8])],
  );
  const file = readGguf(path);
  assert.deepEqual([...file.metadata.values()], [7, 'é', true, 0.5, [-1, 2], ['x', '']]);
  const [odd, next] = file.tensors.values();
  assert.deepEqual([odd.shape, odd.offset, odd.values], [[3], 0, [1, 2, 3]]);
  assert.deepEqual([next.shape, next.offset], [[2, 4], 32]);
  assert.deepEqual(next.values, [1, 2, 3, 4, 5, 6, 7, 8]);
  assert.equal(file.dataStart % 32, 0);
  assert.equal(file.bytes, file.dataStart + 64);
});

test('A tensor that gives other than its size leaves no file', () => {
  const path = join(folder, 'wrong.gguf');
  const wrong = tensor('short', [4], 'F32', [1, 2]);
  assert.throws(() => writeGguf(path, new Map(), [wrong]), /short: 8 bytes .* 16/);
  assert.equal(existsSync(path), false);
});

test('An exported model has its sizes, all its tensors, and their values rounded to the type', () => {
  for (const dtype of ['float32', 'bfloat16', 'float16'] as DType[]) {
    const model = loadModel(tiny, { dtype });
    const path = join(folder, `tiny-${dtype}.gguf`);
    exportGguf(model, path);
    const { metadata, tensors } = readGguf(path);
    const { config } = model;
    assert.equal(metadata.get('general.architecture'), 'llama');
    assert.equal(metadata.get('llama.block_count'), config.numLayers);
    assert.equal(metadata.get('llama.attention.head_count_kv'), config.numKvHeads);
    assert.equal(metadata.get('llama.rope.freq_base'), config.rope.theta);
    const parts = model.program.weights.flatMap((weight) => weight.parts);
    assert.equal(tensors.size, parts.length);
    const down = tensors.get('blk.1.ffn_down.weight')!;
    const source = readTensor(model.weights.tensor('model.layers.1.mlp.down_proj.weight'));
    assert.deepEqual(down.shape, [config.hiddenSize, config.intermediateSize]);
    assert.deepEqual(
      down.values,
      [...source].map((value) => roundTo(dtype, value)),
    );
    assert.equal(tensors.get('output_norm.weight')?.type, 0, 'vectors stay in float32');
  }
});

test('Queries and keys permuted for llama.cpp give the same attention scores under its rope', () => {
  const model = loadModel(tiny, { dtype: 'float32' });
  const path = join(folder, 'rope.gguf');
  exportGguf(model, path);
  const { tensors } = readGguf(path);
  const { headDim, hiddenSize, numHeads, numKvHeads } = model.config;
  const [{ invFreq }] = model.program.ropeTables;
  const x = Array.from({ length: hiddenSize }, (_, i) => Math.sin(i + 1));
  const score = (q: number[], k: number[]) => q.reduce((sum, value, i) => sum + value * k[i], 0);
  for (let head = 0; head < numHeads; head++) {
    const kvHead = Math.floor(head / (numHeads / numKvHeads));
    const ours = (name: string, index: number, position: number) => {
      const weight = readTensor(model.weights.tensor(`model.layers.0.self_attn.${name}.weight`));
      const rows = project([...weight], x, index, headDim);
      return rotate(rows, position, invFreq, (i) => [i, i + headDim / 2]);
    };
    const theirs = (name: string, index: number, position: number) => {
      const rows = project(tensors.get(`blk.0.${name}.weight`)!.values, x, index, headDim);
      return rotate(rows, position, invFreq, (i) => [2 * i, 2 * i + 1]);
    };
    const expected = score(ours('q_proj', head, 9), ours('k_proj', kvHead, 4));
    const found = score(theirs('attn_q', head, 9), theirs('attn_k', kvHead, 4));
    assert.ok(Math.abs(expected - found) < 1e-9, `head ${head}: ${expected} and ${found}`);
  }
});

test('Dummy weights are exported as the executors make them', () => {
  const model = loadModel(tiny, { loadFormat: 'dummy', dtype: 'bfloat16', seed: 3 });
  const path = join(folder, 'dummy.gguf');
  exportGguf(model, path);
  const { tensors } = readGguf(path);
  const expected = readTensor(model.weights.tensor('model.embed_tokens.weight'));
  const found = tensors.get('token_embd.weight')!.values;
  assert.deepEqual(
    found,
    [...expected].map((value) => roundTo('bfloat16', value)),
  );
});

test('The vocabulary of tokenizer.json keeps ids, kinds and merges; a made-up one has every id', () => {
  const metadata = tokenizerMetadata(stories, { vocabSize: 4096, bosTokenId: 1, eosTokenId: 2 });
  const value = (key: string) => metadata.get(`tokenizer.ggml.${key}`)!.value as unknown[];
  assert.equal(value('tokens')[2], '<|end|>');
  assert.equal(value('tokens')[22], '1');
  assert.deepEqual(value('token_type').slice(0, 8), [3, 3, 3, 3, 3, 3, 1, 1]);
  assert.equal(value('merges')[0], 'Ġ t');
  assert.equal(value('eos_token_id') as unknown, 2);
  const madeUp = tokenizerMetadata(tiny, { vocabSize: 300 });
  const tokens = madeUp.get('tokenizer.ggml.tokens')!.value as string[];
  assert.equal(new Set(tokens).size, 300);
});

test('What llama.cpp would compute differently is refused', () => {
  const refuse = (golden: string, message: RegExp) => {
    const model = loadModel(join(root, 'test/goldens', golden));
    const path = join(folder, 'refused.gguf');
    assert.throws(
      () => exportGguf(model, path),
      (error) => error instanceof ModelError && message.test(error.message),
    );
    assert.equal(existsSync(path), false);
  };
  refuse('qwen3-tiny', /only LlamaForCausalLM/);
  refuse('llama3-rope', /rope scaling \(llama3\)/);
  refuse('llama-bias', /biases/);
});

function tensor(name: string, shape: number[], type: 'F32', values: number[]): GgufTensor {
  return { name, shape, type, pieces: () => [new Uint8Array(Float32Array.from(values).buffer)] };
}

/** Rows of one head of `weight`, times `x`. */
function project(weight: readonly number[], x: readonly number[], head: number, headDim: number) {
  return Array.from({ length: headDim }, (_, i) => {
    const start = (head * headDim + i) * x.length;
    return x.reduce((sum, value, column) => sum + value * weight[start + column], 0);
  });
}

function rotate(
  head: readonly number[],
  position: number,
  invFreq: readonly number[],
  pair: (i: number) => [number, number],
): number[] {
  const result = [...head];
  for (const [i, frequency] of invFreq.entries()) {
    const [first, second] = pair(i);
    const [cos, sin] = [Math.cos(position * frequency), Math.sin(position * frequency)];
    result[first] = head[first] * cos - head[second] * sin;
    result[second] = head[second] * cos + head[first] * sin;
  }
  return result;
}

/** A reader of its own, written from the specification, so that the writer does not check itself. */
function readGguf(path: string) {
  const bytes = readFileSync(path);
  let at = 0;
  /** Where the next `count` bytes are. */
  const skip = (count: number) => {
    at += count;
    return at - count;
  };
  const uint32 = () => bytes.readUInt32LE(skip(4));
  const uint64 = () => Number(bytes.readBigUInt64LE(skip(8)));
  const text = () => {
    const length = uint64();
    at += length;
    return bytes.toString('utf8', at - length, at);
  };
  const value = (type: number): unknown => {
    if (type === 4) return uint32();
    if (type === 5) return bytes.readInt32LE(skip(4));
    if (type === 6) return bytes.readFloatLE(skip(4));
    if (type === 7) return bytes[skip(1)] === 1;
    if (type === 8) return text();
    assert.equal(type, 9);
    const item = uint32();
    return Array.from({ length: uint64() }, () => value(item));
  };
  assert.equal(bytes.toString('latin1', 0, 4), 'GGUF');
  at = 4;
  assert.equal(uint32(), 3);
  const tensorCount = uint64();
  const metadata = new Map<string, unknown>();
  for (let left = uint64(); left > 0; left--) metadata.set(text(), value(uint32()));
  const listed = Array.from({ length: tensorCount }, () => ({
    name: text(),
    shape: Array.from({ length: uint32() }, uint64).reverse(),
    type: uint32(),
    offset: uint64(),
  }));
  const dataStart = Math.ceil(at / 32) * 32;
  const tensors = new Map(
    listed.map((entry) => {
      const length = entry.shape.reduce((a, b) => a * b, 1);
      const start = dataStart + entry.offset;
      const values = Array.from({ length }, (_, i) => {
        if (entry.type === 0) return bytes.readFloatLE(start + 4 * i);
        const half = bytes.readUInt16LE(start + 2 * i);
        return entry.type === 30 ? bfloat16ToFloat(half) : float16ToFloat(half);
      });
      return [entry.name, { ...entry, values }];
    }),
  );
  return { metadata, tensors, dataStart, bytes: bytes.length };
}
