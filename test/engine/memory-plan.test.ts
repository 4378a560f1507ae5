import assert from 'node:assert/strict';
import { test } from 'node:test';
import { estimateFixedBytes } from '../../src/engine/fixed-bytes.js';
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

const WEIGHTS = { dtype: 'float32' as const, storage: () => ({ kind: 'float' as const }) };
const GIB = 2 ** 30;

const INPUT = {
  memory: { kind: 'machine' as const, free: 64 * 2 ** 20 },
  fixed: estimateFixedBytes(program(), WEIGHTS, 512),
  kvBytesPerBlock: 2 ** 16,
  blockSize: 16,
  maxModelLen: 512,
  maxModelLenGiven: false,
  maxNumSeqs: 256,
};

/** Llama-3.1-8B in bfloat16 on a GPU of 140 GiB of which a process beside us has 2. */
const GPU = {
  memory: { kind: 'device' as const, total: 140 * GIB, free: 138 * GIB, utilization: 0.9 },
  fixed: { weights: 15 * GIB, workspace: 2 * GIB, reserve: GIB },
  kvBytesPerBlock: 2 * 2 ** 20,
  blockSize: 16,
  maxModelLen: 131_072,
  maxModelLenGiven: false,
  maxNumSeqs: 512,
};

const machine = (free: number) => ({ kind: 'machine' as const, free });

test('Without a stated size the cache takes what weights and workspace leave of its share of free memory', () => {
  const { numBlocks, kvCacheBytes, lines } = planMemory(INPUT);
  assert.equal(kvCacheBytes, numBlocks * INPUT.kvBytesPerBlock);
  const budget = INPUT.memory.free * MEMORY_SHARE;
  assert.ok(kvCacheBytes < budget && kvCacheBytes > budget - 4 * 2 ** 20);
  assert.match(lines.join('\n'), new RegExp(`${numBlocks} blocks of 16 tokens`));
});

test('A stated size is used to the last whole block and never exceeded', () => {
  const { numBlocks } = planMemory({ ...INPUT, kvCacheMemory: 40 * 2 ** 16 + 1 });
  assert.equal(numBlocks, 40);
});

test('No more blocks are planned than the sequences can use', () => {
  const plan = planMemory({ ...INPUT, memory: machine(2 ** 40), maxNumSeqs: 2 });
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
  assert.throws(() => planMemory({ ...INPUT, memory: machine(2 ** 20) }), /leave no room/);
});

test('Some memory is free on the machine that runs this', () => {
  assert.ok(freeMemory() > 2 ** 20);
  assert.ok(freeMemory() < 2 ** 50);
});

test('On a GPU the cache takes all of its share that others, weights, workspace and libraries leave', () => {
  const { numBlocks, maxModelLen, lines } = planMemory(GPU);
  // 126 GiB are the share, 2 in use, 18 fixed: 106 GiB in blocks of 2 MiB.
  assert.equal(numBlocks, 106 * 512);
  assert.equal(maxModelLen, 131_072);
  assert.deepEqual(lines, [
    'GPU memory 140.0 GiB, of which 90% may be taken and 2.0 GiB are already in use',
    'weights 15.0 GiB, workspace 2.0 GiB, reserve 1.0 GiB',
    'KV cache 106.0 GiB: 54272 blocks of 16 tokens, 868352 tokens, 6.6 sequences of 131072',
  ]);
});

test('On a GPU no more blocks are planned than the sequences can use, or than was asked for', () => {
  assert.equal(planMemory({ ...GPU, maxModelLen: 256 }).numBlocks, 512 * 16);
  assert.equal(planMemory({ ...GPU, kvCacheMemory: 100 * 2 ** 21 + 5 }).numBlocks, 100);
});

test('What a GPU cannot hold is an error that says what is taken and what to change', () => {
  const crowded = { ...GPU.memory, free: 20 * GIB };
  assert.throws(() => planMemory({ ...GPU, memory: crowded }), {
    code: 'memory_plan',
    message:
      "Weights (15.0 GiB), workspace (2.0 GiB), the device's libraries (1.0 GiB) leave no room for " +
      "a KV cache within the 6.0 GiB that are ours: 90% of the GPU's 140.0 GiB, less 120.0 GiB " +
      'already in use. Raise gpu-memory-utilization, end other programs on the GPU, lower ' +
      'max-num-batched-tokens, or take a smaller model or dtype',
  });
  assert.throws(
    () => planMemory({ ...GPU, kvCacheMemory: 107 * GIB }),
    /a KV cache of 107.0 GiB need more than the 124.0 GiB .* Lower the KV cache memory, or raise gpu-memory-utilization/,
  );
  assert.throws(
    () => planMemory({ ...GPU, memory: { ...GPU.memory, utilization: 0.01 } }),
    /within the 0.0 MiB that are ours: 1%/,
  );
});

test('Utilization 1 takes what is free and not a byte more', () => {
  const { kvCacheBytes } = planMemory({ ...GPU, memory: { ...GPU.memory, utilization: 1 } });
  assert.equal(kvCacheBytes, (138 - 18) * GIB);
});
