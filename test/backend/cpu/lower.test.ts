import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type LoweredOp, lower, reads } from '../../../src/backend/cpu/lower.js';
import { planMemory } from '../../../src/backend/cpu/plan-memory.js';
import { loadModel } from '../../../src/model/load-model.js';
import { type Program, ProgramBuilder } from '../../../src/model/program.js';
import { STORIES } from '../../helpers/goldens.js';
import { randomSource } from '../../helpers/random.js';
import { randomProgram } from '../../helpers/random-program.js';

const kinds = (ops: readonly LoweredOp[]) => ops.map(({ kind }) => kind);

test('A Llama layer becomes four products with nothing between them but norms and attention', () => {
  const { program } = loadModel(STORIES);
  const { tokenOps, rowOps } = lower(program, () => true);
  const attended = ['rms_norm', 'linear', 'rope', 'rope', 'attention'];
  const rest = ['to_bf16', 'linear', 'rms_norm', 'linear', 'linear'];
  const layers = Array(program.kvLayers.length - 1).fill([...attended, ...rest]);
  assert.deepEqual(kinds(tokenOps), ['embed', ...layers.flat(), ...attended]);
  assert.deepEqual(kinds(rowOps), ['gather', 'gather', ...rest, 'rms_norm', 'linear']);
  assert.ok(!kinds(lower(program, () => false).tokenOps).includes('to_bf16'));
});

test('Products whose results are read twice are not fused', () => {
  const { builder, weight } = start();
  const x = builder.embed(weight(8, 4));
  const product = builder.linear(x, weight(4, 4));
  const sum = builder.add(product, product);
  const other = builder.add(builder.linear(sum, weight(4, 4)), product);
  const program = builder.finish(builder.linear(builder.gather(other), weight(8, 4)));
  assert.deepEqual(kinds(lower(program, () => false).tokenOps), [
    'embed',
    'linear',
    'add',
    'linear',
  ]);
});

test('A weight needed in two layouts is listed twice, otherwise once', () => {
  const { builder, weight } = start();
  const embedding = weight(8, 4);
  const both = weight(8, 4);
  const x = builder.embed(embedding);
  const gated = builder.siluMul(builder.linear(x, both));
  const plain = builder.linear(gated, both);
  const program = builder.finish(builder.linear(builder.gather(gated), embedding));
  assert.equal(plain.width, 8);
  const { weights } = lower(program, () => false);
  assert.deepEqual(
    weights.map(({ weight: { id }, layout }) => `${id} ${layout}`),
    [`${embedding} matrix`, `${both} gateUp`, `${both} matrix`],
  );
});

test('No two matrices that are needed at the same time share memory', () => {
  for (let seed = 1; seed <= 30; seed++) {
    checkPlan(randomProgram(randomSource(seed)), seed % 2 === 0);
  }
  checkPlan(loadModel(STORIES).program, true);
});

/** Walks the operations and watches that none writes over what a later one reads. */
function checkPlan(program: Program, bf16: boolean): void {
  const [maxTokens, rowTile] = [64, 16];
  const lowered = lower(program, () => bf16);
  const plan = planMemory(lowered, program.logits.value, maxTokens, rowTile);
  const buffersOf = (value: number) =>
    [plan.floats.get(value), plan.halves.get(value)].filter((id) => id !== undefined);
  const range = (id: number) => {
    const { perToken, bf16: half, stride, offset } = plan.buffers[id];
    return [offset, offset + (perToken ? maxTokens : rowTile) * stride * (half ? 2 : 4)];
  };
  const ops = [...lowered.tokenOps, ...lowered.rowOps];
  ops.forEach((op, index) => {
    const later = new Set(
      ops.slice(index).flatMap((each) => reads(each).map(({ value }) => value)),
    );
    const written = new Set(ops.slice(0, index).map(({ out }) => out.value));
    for (const target of buffersOf(op.out.value)) {
      const [begin, end] = range(target);
      assert.ok(end <= plan.bytes);
      for (const value of written) {
        if (!later.has(value)) continue;
        for (const id of buffersOf(value)) {
          const [from, to] = range(id);
          assert.ok(end <= from || to <= begin, `${op.kind} ${index} writes over value ${value}`);
        }
      }
    }
  });
}

function start() {
  const builder = new ProgramBuilder();
  let count = 0;
  const weight = (...shape: number[]) =>
    builder.weight([{ tensor: `tensor.${count++}`, shape }], shape);
  return { builder, weight };
}
