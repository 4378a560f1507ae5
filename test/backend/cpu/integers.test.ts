/** Integer weights and the int8 KV cache against the reference, which does the same arithmetic. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Backend, RunnerOptions } from '../../../src/backend/backend.js';
import { availableIsas, createCpuBackend } from '../../../src/backend/cpu/cpu-backend.js';
import { referenceBackend } from '../../../src/backend/reference/reference.js';
import { ModelError } from '../../../src/errors.js';
import { dummyWeights } from '../../../src/model/dummy.js';
import { type Program, ProgramBuilder } from '../../../src/model/program.js';
import { parseScheme } from '../../../src/model/quantization.js';
import type { IntegerStorage, WeightSource } from '../../../src/model/weights.js';
import { stepBatch } from '../../helpers/batch.js';
import { asIntegers, asQuantizedTensors } from '../../helpers/quantized-weights.js';
import { randomInt, randomSource } from '../../helpers/random.js';
import { randomProgram, randomSequences, runSequences } from '../../helpers/random-program.js';

const SCHEMES: readonly IntegerStorage[] = [
  ...['int8', 'int8-asym', 'int8-g32', 'int8-g128-asym', 'int4-g32', 'int4-g64-asym'],
  ...['int4-g128', 'int4-g32-asym'],
].map((name) => parseScheme(name));
const PER_ROW: IntegerStorage = { kind: 'integer', bits: 4, group: 0, symmetric: false };
/** Rows that meet every register tile, and more than one. */
const ROWS = [1, 2, 3, 5, 8, 13, 33, 70];

/** Rows of inputs; as many as the widest product has columns, or tokens could have no row. */
const INPUTS = 100;

/** Rows of inputs, one for each token, times one matrix of at least 70 columns: the logits. */
function oneProduct(k: number, n: number, gated: boolean): Program {
  const builder = new ProgramBuilder();
  const weight = (tensor: string, shape: number[]) => builder.weight([{ tensor, shape }], shape);
  const x = builder.gather(builder.embed(weight('inputs', [INPUTS, k])));
  const product = builder.linear(x, weight('matrix', [n, k]));
  return builder.finish(gated ? builder.siluMul(product) : product);
}

/** The inputs and the matrix in files of float32, so that a test can say what is in them. */
function files(directory: string, k: number, n: number, seed: number): WeightSource {
  const random = randomSource(seed);
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const inputs = Float32Array.from({ length: INPUTS * k }, normal);
  const matrix = Float32Array.from({ length: n * k }, normal);
  // Outliers, a row of zeros, and a group of zeros in each.
  for (let i = 0; i < 70; i++) inputs[randomInt(random, 0, inputs.length - 1)] *= 1e4;
  for (let i = 0; i < 5; i++) matrix[randomInt(random, 0, matrix.length - 1)] *= 1e3;
  inputs.fill(0, 2 * k, 3 * k);
  inputs.fill(0, 4 * k, 4 * k + Math.min(k, 32));
  matrix.fill(0, 0, Math.min(k, 32));
  const shapes: Record<string, number[]> = { inputs: [INPUTS, k], matrix: [n, k] };
  writeFileSync(join(directory, 'inputs'), inputs);
  writeFileSync(join(directory, 'matrix'), matrix);
  return {
    dtype: 'float32',
    storage: () => ({ kind: 'float' }),
    tensor: (name) => ({
      ...{ kind: 'file', path: join(directory, name), offset: 0, dtype: 'float32' },
      shape: shapes[name],
    }),
  };
}

/** The source with the matrix, and not the inputs, as integers. */
function matrixAs(source: WeightSource, storage: IntegerStorage): WeightSource {
  return {
    ...source,
    storage: ({ name }) => (name === 'matrix' ? storage : { kind: 'float' }),
  };
}

function product(backend: Backend, program: Program, weights: WeightSource, rows: number) {
  const runner = backend.createRunner(program, weights, {
    ...{ blockSize: 16, numBlocks: 8, maxTokens: 70, maxSeqs: 1, maxModelLen: 128 },
    keepLogits: true,
  });
  const tokens = Array.from({ length: rows }, (_, i) => i);
  const chunk = { tokens, from: 0, to: rows, blocks: [0, 1, 2, 3, 4], rows: tokens };
  const logits = runner.step(stepBatch([chunk], 16)).logits!.slice(0, rows * program.vocabSize);
  runner.close();
  return logits;
}

for (const isa of availableIsas()) {
  test(`The ${isa} products of integers are those of the reference, over odd shapes`, (t) => {
    const directory = mkdtempSync(join(tmpdir(), 'millrace-'));
    t.after(() => rmSync(directory, { recursive: true }));
    let seed = 1;
    for (const storage of [...SCHEMES, PER_ROW]) {
      for (const [k, n, gated] of [
        [1, 71, false],
        [7, 150, true],
        [33, 96, false],
        [130, 188, true],
        [203, 81, false],
      ] as const) {
        const program = oneProduct(k, n, gated);
        const weights = matrixAs(files(directory, k, n, seed++), storage);
        const expected = product(referenceBackend, program, weights, 70);
        const backend = createCpuBackend({ isa, threads: 1 + (seed % 2) });
        for (const rows of ROWS) {
          const computed = product(backend, program, weights, rows);
          const width = program.vocabSize;
          for (let row = 0; row < rows; row++) {
            // Groups are summed in float32: off by a rounding each, of the largest of them. With
            // offsets two large terms may leave a small difference.
            const of = expected.subarray(row * width, (row + 1) * width);
            const largest = of.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
            of.forEach((value, i) => {
              const error = Math.abs(computed[row * width + i] - value);
              assert.ok(
                error <= (storage.symmetric ? 1e-5 : 1e-4) * largest,
                `${JSON.stringify({ storage, k, n, rows, row, i })}: ${computed[row * width + i]} for ${value}`,
              );
            });
          }
        }
      }
    }
  });

  test(`The ${isa} kernels run random programs of integers as the reference does`, () => {
    [...SCHEMES, PER_ROW].forEach((storage, seed) => {
      for (const kvCacheDtype of ['auto', 'int8'] as const) {
        const random = randomSource(seed + 20);
        const program = randomProgram(random, { layers: 1, experts: seed % 2 === 0 ? 4 : 0 });
        const plain = dummyWeights(program, 'float32', seed);
        const weights =
          seed % 3 === 0
            ? asIntegers(plain, storage)
            : asQuantizedTensors(plain, program, storage, seed % 3 === 1);
        const sequences = randomSequences(random, 4, program.vocabSize);
        const options: Partial<RunnerOptions> = { kvCacheDtype };
        const run = (backend: Backend, chunk: number) =>
          runSequences(backend, program, weights, sequences, chunk, options);
        const expected = run(referenceBackend, 80);
        const computed = run(createCpuBackend({ isa, threads: 2 }), 9);
        // A sum that falls between two codes may round to either. That moves the logits of one token
        // by some hundredth, and those that attend to it by less: most are equal to rounding.
        const errors = expected.logits.flatMap((logits, n) => {
          const scale = Math.sqrt(logits.reduce((sum, x) => sum + x * x, 0) / logits.length);
          return Array.from(logits, (value, i) => Math.abs(computed.logits[n][i] - value) / scale);
        });
        errors.sort((a, b) => a - b);
        const median = errors[errors.length >> 1];
        const high = errors[Math.floor(errors.length * 0.99)];
        const name = `${JSON.stringify(storage)} ${kvCacheDtype}`;
        assert.ok(median < 2e-3, `${name}: median ${median}`);
        assert.ok(high < 5e-2, `${name}: 99th percentile ${high}`);
      }
    });
  });

  test(`On ${isa} integers give a sequence the same bits alone and in a batch`, () => {
    for (const [seed, storage] of SCHEMES.entries()) {
      const random = randomSource(seed);
      const program = randomProgram(random, { experts: seed % 3 });
      const weights = asIntegers(dummyWeights(program, 'bfloat16', seed), storage);
      const sequences = randomSequences(random, 11, program.vocabSize);
      const backend = createCpuBackend({ isa, threads: 2 });
      const options: Partial<RunnerOptions> = { kvCacheDtype: seed % 2 === 0 ? 'int8' : 'auto' };
      const together = runSequences(backend, program, weights, sequences, 16, options);
      for (const n of [0, 10]) {
        const alone = runSequences(backend, program, weights, [sequences[n]], 16, options);
        assert.deepEqual(alone.logits[0], together.logits[n]);
      }
    }
  });
}

test('Weights that are not finite cannot be quantized, and the error says which', (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'millrace-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const program = oneProduct(8, 70, false);
  const weights = matrixAs(files(directory, 8, 70, 1), parseScheme('int8'));
  const matrix = new Float32Array(8 * 70).fill(1);
  matrix[77] = Number.POSITIVE_INFINITY;
  writeFileSync(join(directory, 'matrix'), matrix);
  assert.throws(() => product(createCpuBackend(), program, weights, 1), ModelError);
  assert.throws(() => product(createCpuBackend(), program, weights, 1), /matrix has numbers that/);
});

test('An activation that is not finite spoils its own row and no other', (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'millrace-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const program = oneProduct(40, 70, false);
  for (const isa of availableIsas()) {
    for (const scheme of ['int8', 'int4-g32']) {
      const weights = matrixAs(files(directory, 40, 70, 1), parseScheme(scheme));
      const before = product(createCpuBackend({ isa }), program, weights, 9);
      const inputs = new Float32Array(INPUTS * 40).fill(1);
      inputs[5 * 40 + 3] = Number.POSITIVE_INFINITY;
      writeFileSync(join(directory, 'inputs'), inputs);
      const after = product(createCpuBackend({ isa }), program, weights, 9);
      assert.ok(before.every(Number.isFinite));
      after.forEach((value, i) => {
        assert.equal(Number.isFinite(value), Math.floor(i / 70) !== 5);
      });
    }
  }
});

test('An int8 cache holds 1.88 times the tokens of bf16 at head size 64', () => {
  const builder = new ProgramBuilder();
  const heads = { heads: 4, kvHeads: 2, headDim: 64, scale: 1 };
  const x = builder.embed(builder.weight([{ tensor: 'e', shape: [8, 256] }], [8, 256]));
  const kv = { ...x, width: 128 };
  builder.attention({ q: x, k: kv, v: kv, ...heads });
  const program = builder.finish(builder.gather(x));
  const backend = createCpuBackend();
  const bf16 = backend.kvBytesPerBlock(program, 16, 'bfloat16');
  assert.equal(bf16, 16 * 2 * 2 * 64 * 2);
  assert.equal(backend.kvBytesPerBlock(program, 16, 'int8'), 16 * 2 * 2 * (64 + 4));
});
