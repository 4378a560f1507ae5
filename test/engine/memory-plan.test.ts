import assert from 'node:assert/strict';
import { test } from 'node:test';
import { freeMemory } from '../../src/engine/free-memory.js';
import { MEMORY_SHARE, planMemory } from '../../src/engine/memory-plan.js';
import { MemoryPlanError } from '../../src/errors.js';
import { ProgramBuilder } from '../../src/model/program.js';

/** Embedding [1000, 64], one linear, logits. 256,000 + 16,384 + 256,000 bytes in float32. */
function program() {
  const builder = new ProgramBuilder();
  const weight = (tensor: string, shape: number[]) => builder.weight([{ tensor, shape }], shape);
  let x = builder.embed(weight('embed', [1000, 64]));
  x = builder.linear(x, weight('inner', [64, 64]));
  return builder.finish(builder.linear(builder.gather(x), weight('head', [1000, 64])));
}

const INPUT = {
  program: program(),
  weights: { dtype: 'float32' as const, storage: () => ({ kind: 'float' as const }) },
  freeMemory: 64 * 2 ** 20,
  kvBytesPerBlock: 2 ** 16,
  blockSize: 16,
  maxModelLen: 512,
  maxModelLenGiven: false,
  maxNumSeqs: 256,
  maxNumBatchedTokens: 512,
};

test('Without a stated size the cache takes what weights and workspace leave of its share of free memory', () => {
  const { numBlocks, kvCacheBytes, lines } = planMemory(INPUT);
  assert.equal(kvCacheBytes, numBlocks * INPUT.kvBytesPerBlock);
  const budget = INPUT.freeMemory * MEMORY_SHARE;
  assert.ok(kvCacheBytes < budget && kvCacheBytes > budget - 4 * 2 ** 20);
  assert.match(lines.join('\n'), new RegExp(`${numBlocks} blocks of 16 tokens`));
});

test('A stated size is used to the last whole block and never exceeded', () => {
  const { numBlocks } = planMemory({ ...INPUT, kvCacheMemory: 40 * 2 ** 16 + 1 });
  assert.equal(numBlocks, 40);
});

test('No more blocks are planned than the sequences can use', () => {
  const plan = planMemory({ ...INPUT, freeMemory: 2 ** 40, maxNumSeqs: 2 });
  assert.equal(plan.numBlocks, 2 * 32);
});

test('A context longer than the cache is lowered, and said so, unless the operator asked for it', () => {
  const small = { ...INPUT, kvCacheMemory: 10 * 2 ** 16 };
  const plan = planMemory(small);
  assert.equal(plan.maxModelLen, 160);
  assert.match(plan.lines.join('\n'), /max-model-len lowered from 512 to 160/);
  assert.throws(() => planMemory({ ...small, maxModelLenGiven: true }), {
    code: 'memory_plan',
    message: /Lower max-model-len to 160, or give the KV cache at least 2097152 bytes/,
  });
});

test('What cannot fit is an error that says what to change', () => {
  assert.throws(() => planMemory({ ...INPUT, kvCacheMemory: 2 ** 40 }), MemoryPlanError);
  assert.throws(() => planMemory({ ...INPUT, kvCacheMemory: 1000 }), /Raise the KV cache memory/);
  assert.throws(() => planMemory({ ...INPUT, freeMemory: 2 ** 20 }), /leave no room/);
});

test('Some memory is free on the machine that runs this', () => {
  assert.ok(freeMemory() > 2 ** 20);
  assert.ok(freeMemory() < 2 ** 50);
});
