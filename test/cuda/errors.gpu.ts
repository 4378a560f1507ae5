import assert from 'node:assert/strict';
import { test } from 'node:test';
import { startEngine } from '../../src/engine/start-engine.js';
import { MemoryPlanError } from '../../src/errors.js';
import { dummyWeights } from '../../src/model/dummy.js';
import { stepBatch } from '../helpers/batch.js';
import { storiesEngine, TEST_DEVICE, testBackend } from '../helpers/gpu.js';
import { randomSource } from '../helpers/random.js';
import { randomProgram } from '../helpers/random-program.js';

const OPTIONS = { blockSize: 16, numBlocks: 8, maxTokens: 32, maxSeqs: 4, maxModelLen: 64 };
const backend = await testBackend();
const onGpu = TEST_DEVICE === 'cuda';

test('A share of the GPU that cannot hold the model is an error that says what to raise', async (t) => {
  if (!onGpu) return t.skip('only a GPU has a share');
  const tiny = storiesEngine({ gpuMemoryUtilization: 0.0001, kvCacheMemory: undefined });
  await assert.rejects(startEngine(tiny), {
    code: 'memory_plan',
    message: /Raise gpu-memory-utilization/,
  });
});

test('A KV cache larger than the memory is an error before anything is allocated', async () => {
  await assert.rejects(startEngine(storiesEngine({ kvCacheMemory: 2 ** 44 })), {
    code: 'memory_plan',
    message: /Lower the KV cache memory/,
  });
  const program = randomProgram(randomSource(1));
  const numBlocks = 2 ** 27 - 1;
  if (numBlocks * backend.kvBytesPerBlock(program, 16, 'float32') < 2 ** 40) return;
  const weights = dummyWeights(program, 'float32', 1);
  assert.throws(
    () => backend.createRunner(program, weights, { ...OPTIONS, numBlocks }),
    MemoryPlanError,
  );
});

test('What is planned is what is allocated, and closing gives it back', async (t) => {
  if (!backend.memory || !backend.fixedBytes) return t.skip('the device has no memory of its own');
  const program = randomProgram(randomSource(1), { layers: 2 });
  const weights = dummyWeights(program, 'bfloat16', 1);
  const create = () => backend.createRunner(program, weights, { ...OPTIONS, numBlocks: 2 ** 14 });
  create().close(); // what libraries take once
  const planned = backend.fixedBytes(program, weights, OPTIONS);
  const kvCache = 2 ** 14 * backend.kvBytesPerBlock(program, 16, 'bfloat16');
  const most = planned.weights + planned.workspace + planned.reserve + kvCache;
  const free = () => backend.memory!().free;
  const tries = Array.from({ length: 5 }, () => {
    const before = free();
    const runner = create();
    const taken = before - free();
    assert.equal(runner.memory.kvCache, kvCache);
    runner.close();
    runner.close();
    assert.throws(() => runner.step(oneToken()), /closed/);
    return { taken, lost: before - free() };
  });
  // What is free is the whole GPU's, where other tests come and go: a leak would be there every time.
  const taken = Math.min(...tries.map((each) => each.taken));
  assert.ok(taken <= most, `${taken} bytes taken, ${most} planned`);
  const lost = Math.min(...tries.map((each) => each.lost));
  assert.ok(lost < 64 * 2 ** 20, `${lost} bytes did not come back`);
});

test('A malformed batch is refused before any work, and the runner goes on', () => {
  const program = randomProgram(randomSource(1));
  const runner = backend.createRunner(program, dummyWeights(program, 'float32', 1), OPTIONS);
  try {
    const [token] = runner.step(oneToken()).tokens;
    const broken = oneToken();
    broken.tokens.fill(9999);
    assert.throws(() => runner.step(broken), /tokens\[0\] is 9999/);
    broken.tokens.fill(1);
    broken.blockTables.fill(8);
    assert.throws(() => runner.step(broken), /blockTables/);
    assert.equal(runner.step(oneToken()).tokens[0], token);
  } finally {
    runner.close();
  }
});

test('Integer weights are refused by name where the device has no kernels for them', async (t) => {
  if (!onGpu) return t.skip('the CPU has them');
  await assert.rejects(startEngine(storiesEngine({ quantization: 'int8' })), {
    message: /int8|integer|quantiz/i,
  });
});

function oneToken() {
  return stepBatch([{ tokens: [1], from: 0, to: 1, blocks: [0], rows: [0] }], 16);
}
