import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { StepBatch } from '../../../src/backend/backend.js';
import { availableIsas, createCpuBackend } from '../../../src/backend/cpu/cpu-backend.js';
import { dummyWeights } from '../../../src/model/dummy.js';
import { type DummyTensor, dummyValue, type WeightSource } from '../../../src/model/weights.js';
import { stepBatch } from '../../helpers/batch.js';
import { randomSource } from '../../helpers/random.js';
import { randomProgram, randomSequences, runSequences } from '../../helpers/random-program.js';

const OPTIONS = { blockSize: 16, numBlocks: 8, maxTokens: 32, maxSeqs: 4, maxModelLen: 64 };

for (const isa of availableIsas()) {
  for (const dtype of ['float32', 'bfloat16'] as const) {
    test(`On ${isa} a sequence's ${dtype} logits are the same bits whatever else is in the batch`, () => {
      for (const seed of [3, 4, 5]) {
        const random = randomSource(seed);
        const program = randomProgram(random);
        const weights = dummyWeights(program, dtype, seed);
        const sequences = randomSequences(random, 21, program.vocabSize);
        const backend = createCpuBackend({ isa, threads: 2 });
        const together = runSequences(backend, program, weights, sequences, 16);
        for (const n of [0, 7, 20]) {
          const alone = runSequences(backend, program, weights, [sequences[n]], 16);
          assert.deepEqual(alone.logits[0], together.logits[n]);
          assert.deepEqual(alone.tokens[0], together.tokens[n]);
        }
      }
    });
  }

  test(`On ${isa} a row's logits are the same bits whichever others are wanted`, () => {
    // With chunks of 70 more rows than a tile has, with chunks of 6 none in every other step.
    const wanted = (position: number) => position % 11 > 8;
    for (const [seed, dtype] of [
      [1, 'float32'],
      [2, 'bfloat16'],
      [3, 'bfloat16'],
      [4, 'float32'],
    ] as const) {
      const random = randomSource(seed);
      const program = randomProgram(random);
      const vocab = program.vocabSize;
      const weights = dummyWeights(program, dtype, seed);
      const sequences = randomSequences(random, 21, vocab);
      const backend = createCpuBackend({ isa, threads: 2 });
      for (const chunk of [6, 70]) {
        const all = runSequences(backend, program, weights, sequences, chunk);
        const few = runSequences(backend, program, weights, sequences, chunk, { wanted });
        all.logits.forEach((logits, n) => {
          const expected = logits.map((logit, i) => (wanted(Math.floor(i / vocab)) ? logit : 0));
          assert.deepEqual(few.logits[n], expected);
          assert.deepEqual(
            few.tokens[n],
            all.tokens[n].filter((_, position) => wanted(position)),
          );
        });
      }
    }
  });

  test(`On ${isa} a sequence whose activations are NaN fails alone`, (t) => {
    const directory = mkdtempSync(join(tmpdir(), 'millrace-'));
    t.after(() => rmSync(directory, { recursive: true }));
    for (const experts of [0, 4]) {
      const random = randomSource(11);
      const program = randomProgram(random, { experts, tied: false });
      const vocab = program.vocabSize;
      const poison = vocab - 1;
      const healthy = randomSequences(random, 4, vocab - 1);
      const whole = dummyWeights(program, 'bfloat16', 1);
      const weights = withNaN(whole, program.weights[0].name, poison, directory);
      const backend = createCpuBackend({ isa, threads: 2 });
      const sick = [1, 2, 3, 4, 5, 6, 7, 8, poison, 4, 5, poison];
      const without = runSequences(backend, program, weights, healthy, 8);
      const { logits, tokens } = runSequences(backend, program, weights, [...healthy, sick], 8);
      assert.deepEqual(logits.slice(0, 4), without.logits);
      assert.deepEqual(tokens.slice(0, 4), without.tokens);
      // What an earlier step computed stands; all that sees the poisoned token is lost.
      assert.ok(tokens[4].slice(0, 8).every((token) => token >= 0 && token < vocab));
      assert.deepEqual(tokens[4].slice(8), [-1, -1, -1, -1]);
    }
  });
}

test('Any number of threads computes the same tokens', () => {
  const random = randomSource(2);
  const program = randomProgram(random);
  const weights = dummyWeights(program, 'float32', 2);
  const sequences = randomSequences(random, 12, program.vocabSize);
  const [one, two, three] = [1, 2, 3].map((threads) =>
    runSequences(createCpuBackend({ threads }), program, weights, sequences, 11),
  );
  assert.deepEqual(two.tokens, one.tokens);
  assert.deepEqual(three.tokens, one.tokens);
});

test('A malformed batch is refused before any work', () => {
  const program = randomProgram(randomSource(1));
  const runner = createCpuBackend().createRunner(
    program,
    dummyWeights(program, 'float32', 1),
    OPTIONS,
  );
  const good = () =>
    stepBatch([{ tokens: [1, 2, 3], from: 0, to: 3, blocks: [5], rows: [2] }], OPTIONS.blockSize);
  const broken: [RegExp, (batch: StepBatch) => void][] = [
    [/tokens\[1\] is 9999/, (batch) => batch.tokens.fill(9999, 1)],
    [/slots/, (batch) => batch.slots.fill(-1)],
    [/blockTables/, (batch) => batch.blockTables.fill(8)],
    [/contextLens/, (batch) => batch.contextLens.fill(65)],
    [/rows/, (batch) => batch.rows.fill(3)],
    [/numTokens/, (batch) => Object.assign(batch, { numTokens: 33 })],
    [/positions/, (batch) => Object.assign(batch, { positions: new Int32Array(2) })],
    [/sampling\.temperature/, (batch) => batch.sampling.temperature.fill(Number.NaN)],
  ];
  const { tokens } = runner.step(good());
  const token = tokens[0];
  for (const [message, breakIt] of broken) {
    const batch = good();
    breakIt(batch);
    assert.throws(() => runner.step(batch), message);
  }
  assert.equal(runner.step(good()).tokens[0], token);
  runner.close();
});

test('A closed runner refuses to step, and closing frees its memory', () => {
  const program = randomProgram(randomSource(1), { layers: 1 });
  const weights = dummyWeights(program, 'float32', 1);
  const batch = stepBatch([{ tokens: [1], from: 0, to: 1, blocks: [0], rows: [0] }], 16);
  const before = process.memoryUsage.rss();
  const blockBytes = createCpuBackend().kvBytesPerBlock(program, 16, 'float32');
  const numBlocks = Math.ceil(64e6 / blockBytes);
  for (let i = 0; i < 8; i++) {
    const runner = createCpuBackend().createRunner(program, weights, { ...OPTIONS, numBlocks });
    assert.ok(runner.memory.kvCache === numBlocks * blockBytes);
    // Copies make the system give the cache its pages.
    const copies = Int32Array.from({ length: 2 * (numBlocks - 1) }, (_, j) => (j + 1) >> 1);
    runner.step({ ...batch, copies, numCopies: numBlocks - 1 });
    runner.close();
    runner.close();
    assert.throws(() => runner.step(batch), /closed/);
  }
  const grown = process.memoryUsage.rss() - before;
  assert.ok(grown < 128e6, `the process grew by ${grown} bytes`);
});

/** The weights with one row of a dummy matrix replaced by NaN, from a file in `directory`. */
function withNaN(
  weights: WeightSource,
  name: string,
  row: number,
  directory: string,
): WeightSource {
  const dummy = weights.tensor(name) as DummyTensor;
  const [rows, width] = dummy.shape;
  const numbers = Float32Array.from({ length: rows * width }, (_, i) => dummyValue(dummy, i));
  numbers.fill(Number.NaN, row * width, (row + 1) * width);
  const path = join(directory, 'nan.bin');
  writeFileSync(path, numbers);
  const { shape } = dummy;
  return {
    dtype: weights.dtype,
    storage: weights.storage,
    tensor: (tensor) =>
      tensor === name
        ? { kind: 'file', path, offset: 0, dtype: 'float32', shape }
        : weights.tensor(tensor),
  };
}
