import assert from 'node:assert/strict';
import { test } from 'node:test';
import { encode, OP_CODES } from '../../../src/backend/cuda/encode.js';
import {
  type LoweredOp,
  type LoweredProgram,
  lower,
  reads,
} from '../../../src/backend/cuda/lower.js';
import { planMemory } from '../../../src/backend/cuda/plan-memory.js';
import { loadModel } from '../../../src/model/load-model.js';
import { type Program, ProgramBuilder, slice, type View } from '../../../src/model/program.js';
import { BYTES } from '../../../src/model/weights.js';
import { STORIES } from '../../helpers/goldens.js';
import { randomSource } from '../../helpers/random.js';
import { randomProgram } from '../../helpers/random-program.js';

const kinds = (ops: readonly LoweredOp[]) => ops.map(({ kind }) => kind);

test('A Llama layer becomes nine launches', () => {
  const { program } = loadModel(STORIES);
  const { tokenOps, rowOps, logits } = lower(program);
  const attended = ['rms_norm', 'linear', 'qkv_store', 'attention'];
  const rest = ['linear', 'rms_norm', 'linear', 'silu_mul', 'linear'];
  const layers = Array(program.kvLayers.length - 1).fill([...attended, ...rest]);
  assert.deepEqual(kinds(tokenOps), ['embed', ...layers.flat(), ...attended]);
  assert.deepEqual(kinds(rowOps), ['gather', 'gather', ...rest, 'rms_norm', 'linear']);
  assert.equal(logits, program.logits.value);
  const products = [...tokenOps, ...rowOps].filter((op) => op.kind === 'linear');
  assert.equal(products.filter(({ residual }) => residual).length, (products.length - 1) / 2);
});

test('Norms of heads, ropes and the cache become one pass, and queries stay where they are', () => {
  const { builder, weight, prepared, finish } = start();
  const x = builder.embed(weight(16, 8));
  const qkv = builder.linear(x, weight(32, 8));
  const attended = attend(
    builder,
    prepared(slice(qkv, 0, 16)),
    prepared(slice(qkv, 16, 8)),
    slice(qkv, 24, 8),
  );
  const [store] = lower(finish(attended)).tokenOps.filter((op) => op.kind === 'qkv_store');
  assert.deepEqual(store.out, store.q);
  assert.deepEqual(
    [store.q, store.k, store.v],
    [slice(qkv, 0, 16), slice(qkv, 16, 8), slice(qkv, 24, 8)],
  );
  assert.ok(store.qNorm !== undefined && store.kNorm !== undefined && store.table === 0);
  assert.equal(store.eps, 1e-5);
});

test('Queries that something else reads are written elsewhere', () => {
  const { builder, weight, prepared, finish } = start();
  const x = builder.embed(weight(16, 8));
  const qkv = builder.linear(x, weight(32, 8));
  const q = slice(qkv, 0, 16);
  const attended = attend(builder, prepared(q), prepared(slice(qkv, 16, 8)), slice(qkv, 24, 8));
  const lowered = lower(finish(builder.add(attended, q)));
  const [store] = lowered.tokenOps.filter((op) => op.kind === 'qkv_store');
  assert.notEqual(store.out.value, q.value);
  assert.equal(lowered.values[store.out.value].width, 16);
  const shared = attend(
    builder,
    builder.rope(slice(qkv, 8, 16), 8, 0),
    builder.rope(slice(qkv, 16, 8), 8, 0),
    slice(qkv, 24, 8),
  );
  const stores = lower(finish(shared)).tokenOps.filter((op) => op.kind === 'qkv_store');
  assert.notEqual(stores.at(-1)?.out.value, qkv.value);
});

test('Norms of heads that differ in eps are done before, those of another width too', () => {
  const { builder, weight, finish } = start();
  const x = builder.embed(weight(16, 8));
  const [q, k, v] = [16, 8, 8].map((width) => builder.linear(x, weight(width, 8)));
  const rope = (view: View) => builder.rope(view, 8, 0);
  const attended = attend(
    builder,
    rope(builder.rmsNorm(q, weight(8), 1e-5)),
    rope(builder.rmsNorm(k, weight(8), 1e-6)),
    v,
  );
  const { tokenOps } = lower(finish(attended));
  assert.equal(tokenOps.filter(({ kind }) => kind === 'rms_norm').length, 1);
  const wide = attend(builder, rope(builder.rmsNorm(q, weight(16), 1e-5)), rope(k), v);
  assert.ok(kinds(lower(finish(wide)).tokenOps).includes('rms_norm'));
});

test('A rope that is not right before attention is refused by name', () => {
  const { builder, weight, finish } = start();
  const x = builder.embed(weight(16, 8));
  const turned = builder.rope(builder.linear(x, weight(16, 8)), 8, 0);
  assert.throws(() => lower(finish(builder.add(turned, turned))), {
    name: 'ModelError',
    message: /rope table; value 1 /,
  });
  const k = builder.linear(x, weight(8, 8));
  const half = attend(builder, builder.rope(builder.linear(x, weight(16, 8)), 8, 0), k, k);
  assert.throws(() => lower(finish(half)), { name: 'ModelError' });
});

test('Sizes beyond those of the kernels are refused by name', () => {
  const { builder, weight, finish } = start();
  const x = builder.embed(weight(16, 8));
  const [q, k] = [514, 257].map((width) => builder.linear(x, weight(width, 8)));
  builder.attention({ q, k, v: k, heads: 2, kvHeads: 1, headDim: 257, scale: 1 });
  assert.throws(() => lower(finish(x)), {
    name: 'ModelError',
    message: /256 columns.* not for 257/,
  });
});

test('A sum keeps what is read twice, and a bias is a weight of its own kind', () => {
  const { builder, weight, finish } = start();
  const x = builder.embed(weight(16, 8));
  const product = builder.linear(x, weight(8, 8), weight(8));
  const lowered = lower(finish(builder.add(builder.add(product, product), x)));
  assert.deepEqual(kinds(lowered.tokenOps), ['embed', 'linear', 'add', 'add']);
  assert.deepEqual(
    lowered.weights.map(({ layout }) => layout),
    ['matrix', 'matrix', 'bias', 'matrix'],
  );
});

test('No two matrices that are needed at the same time share memory', () => {
  for (let seed = 1; seed <= 30; seed++) checkPlan(randomProgram(randomSource(seed)));
  checkPlan(loadModel(STORIES).program);
});

test('The code of a program names every operation once, in order', () => {
  const lowered = lower(loadModel(STORIES).program);
  const plan = planMemory(lowered, 'bfloat16', 64, 16);
  const lengths = {
    embed: 5,
    rms_norm: 9,
    linear: 12,
    add: 10,
    qkv_store: 19,
    attention: 11,
    silu_mul: 7,
    moe: 14,
    gather: 7,
  };
  const code = encode(lowered.tokenOps, plan);
  let at = 0;
  for (const op of lowered.tokenOps) {
    assert.equal(OP_CODES[code[at]], op.kind);
    at += lengths[op.kind];
  }
  assert.equal(at, code.length);
});

/** Walks the operations and watches that none writes over what a later one reads. */
function checkPlan(program: Program): void {
  const [maxTokens, rowTile, dtype] = [64, 16, 'bfloat16'] as const;
  const lowered = lower(program);
  const plan = planMemory(lowered, dtype, maxTokens, rowTile);
  const range = (value: number) => {
    const { perToken, floats, stride, offset } = plan.buffers[plan.bufferOf.get(value) as number];
    const rows = perToken ? maxTokens : rowTile;
    return [offset, offset + rows * stride * (floats ? 4 : BYTES[dtype])];
  };
  const ops = [...lowered.tokenOps, ...lowered.rowOps];
  ops.forEach((op, index) => {
    const [begin, end] = range(op.out.value);
    assert.ok(end <= plan.bytes);
    for (const value of neededAt(ops, index, lowered)) {
      if (value === op.out.value) continue;
      const [from, to] = range(value);
      assert.ok(end <= from || to <= begin, `${op.kind} ${index} writes over value ${value}`);
    }
  });
}

/** Values written before operation `index` that it or a later one reads. */
function neededAt(ops: readonly LoweredOp[], index: number, { values }: LoweredProgram): number[] {
  const written = new Set(ops.slice(0, index).map(({ out }) => out.value));
  const later = new Set(
    ops
      .slice(index)
      .flatMap(reads)
      .map(({ value }) => value),
  );
  // Attention may do what the operation before it does with the step's keys and values.
  const before = ops[index - 1];
  if (before?.kind === 'qkv_store') for (const { value } of reads(before)) later.add(value);
  // Operations on wanted rows are repeated: all that they read of tokens is needed to the end.
  const repeated = ops.filter(({ out }) => values[out.value].rows === 'R').flatMap(reads);
  for (const { value } of repeated) if (values[value].rows === 'T') later.add(value);
  return [...written].filter((value) => later.has(value));
}

function attend(builder: ProgramBuilder, q: View, k: View, v: View): View {
  return builder.attention({ q, k, v, heads: 2, kvHeads: 1, headDim: 8, scale: 1 });
}

function start() {
  const builder = new ProgramBuilder();
  let count = 0;
  const weight = (...shape: number[]) =>
    builder.weight([{ tensor: `tensor.${count++}`, shape }], shape);
  builder.ropeTable({ invFreq: [1, 0.1, 0.01, 0.001], scale: 1 });
  const prepared = (view: View) => builder.rope(builder.rmsNorm(view, weight(8), 1e-5), 8, 0);
  const finish = (x: View) =>
    builder.finish(builder.linear(builder.gather(x), weight(16, x.width)));
  return { builder, weight, prepared, finish };
}
