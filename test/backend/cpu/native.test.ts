import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { StepResult } from '../../../src/backend/backend.js';
import {
  availableIsas,
  createCpuBackend,
  nativeConfig,
} from '../../../src/backend/cpu/cpu-backend.js';
import { CPU_ISAS, type CpuIsa, native } from '../../../src/backend/cpu/native.js';
import { InvalidParameterError, MemoryPlanError, ModelError } from '../../../src/errors.js';
import { dummyWeights } from '../../../src/model/dummy.js';
import { ProgramBuilder } from '../../../src/model/program.js';
import type { WeightSource } from '../../../src/model/weights.js';
import { stepBatch } from '../../helpers/batch.js';
import { randomInt, randomSource } from '../../helpers/random.js';
import { randomProgram } from '../../helpers/random-program.js';

const OPTIONS = { blockSize: 16, numBlocks: 8, maxTokens: 8, maxSeqs: 4, maxModelLen: 64 };
const BATCH = stepBatch(
  [{ tokens: [1, 2, 3], from: 0, to: 3, blocks: [5], rows: [1, 2] }],
  OPTIONS.blockSize,
);

test('Options this machine cannot meet are refused by name', () => {
  assert.throws(() => createCpuBackend({ threads: 0 }), InvalidParameterError);
  assert.throws(() => createCpuBackend({ threads: 1.5 }), /threads but received 1.5/);
  assert.throws(() => createCpuBackend({ isa: 'sse9' as CpuIsa }), /cpu-isa but received "sse9"/);
  for (const isa of CPU_ISAS.filter((name) => !availableIsas().includes(name))) {
    assert.throws(() => createCpuBackend({ isa }), /an instruction set of this machine \(portable/);
  }
});

test('A weight file shorter than its ranges is an error that names it', (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'millrace-'));
  t.after(() => rmSync(directory, { recursive: true }));
  const path = join(directory, 'weights.bin');
  const program = randomProgram(randomSource(1));
  const weights = fromFile(dummyWeights(program, 'float32', 1), path);
  const create = () => createCpuBackend().createRunner(program, weights, OPTIONS);
  assert.throws(create, ModelError);
  assert.throws(create, /weights.bin cannot be opened: No such file/);
  writeFileSync(path, new Uint8Array(1 << 20));
  create().close();
  truncateSync(path, 100);
  assert.throws(create, /weights.bin is truncated: .* beyond its end at 100/);
  truncateSync(path, 0);
  assert.throws(create, /weights.bin is truncated/);
});

test('Memory the system refuses is a plan that does not fit', () => {
  const builder = new ProgramBuilder();
  const weight = (...shape: number[]) =>
    builder.weight([{ tensor: shape.join(' '), shape }], shape);
  const heads = { heads: 64, kvHeads: 64, headDim: 256, scale: 1 };
  const x = builder.linear(builder.embed(weight(8, 2)), weight(64 * 256, 2));
  const attended = builder.attention({ q: x, k: x, v: x, ...heads });
  const program = builder.finish(builder.linear(builder.gather(attended), weight(8, 64 * 256)));
  const numBlocks = 2 ** 27 - 1;
  // More than a process can address.
  assert.ok(numBlocks * createCpuBackend().kvBytesPerBlock(program, 16, 'float32') > 2 ** 47);
  const weights = dummyWeights(program, 'float32', 1);
  assert.throws(
    () => createCpuBackend().createRunner(program, weights, { ...OPTIONS, numBlocks }),
    MemoryPlanError,
  );
});

test('Progress rises to 1 while weights load', () => {
  const program = randomProgram(randomSource(1));
  const shares: number[] = [];
  createCpuBackend()
    .createRunner(program, dummyWeights(program, 'float32', 1), OPTIONS, (share) => {
      shares.push(share);
    })
    .close();
  assert.deepEqual(
    shares,
    [...shares].sort((a, b) => a - b),
  );
  assert.equal(shares.at(-1), 1);
});

test('Arguments of the wrong kind are errors, not crashes', () => {
  const addon = native();
  const nothing = {} as never;
  assert.throws(() => addon.createRunner(nothing), /expected a string for argument 0.isa/);
  assert.throws(() => addon.step(nothing, BATCH, nothing), /expected a runner for argument 0/);
  assert.throws(() => addon.close(7 as never), /expected a runner/);
  assert.throws(
    () => addon.kvBytesPerBlock([{ kvHeads: 1, headDim: 7 }], 'float32', 16),
    /headDim/,
  );
  const handle = makeHandle();
  const result = makeResult();
  const bad = { ...BATCH, tokens: new Float64Array(3) as never };
  assert.throws(() => addon.step(handle, bad, result), /typed array of another type .*tokens/);
  const short = { ...result, tokens: new Int32Array(1) };
  assert.throws(() => addon.step(handle, BATCH, short), /array of 2 elements for .*tokens/);
  addon.close(handle);
});

test('The native code checks batches itself, whatever JavaScript let through', () => {
  const addon = native();
  const handle = makeHandle();
  const result = makeResult();
  const random = randomSource(5);
  let refused = 0;
  for (let i = 0; i < 3000; i++) {
    const batch = structuredClone(BATCH);
    const arrays = [...Object.values(batch), ...Object.values(batch.sampling)].filter(
      (value): value is Int32Array => value instanceof Int32Array && value.length > 0,
    );
    const array = arrays[randomInt(random, 0, arrays.length - 1)];
    const value = [-1, 1, 2, 7, 100, 1 << 20, -(2 ** 31), 2 ** 31 - 1][randomInt(random, 0, 7)];
    array[randomInt(random, 0, array.length - 1)] = value;
    try {
      addon.step(handle, batch, result);
    } catch (error) {
      assert.match(String(error), /batch\./);
      refused++;
    }
  }
  assert.ok(refused > 1000, `${refused} of 3000 refused`);
  addon.step(handle, BATCH, result);
  addon.close(handle);
});

test('A corrupt program is refused or stays within its memory', () => {
  const addon = native();
  const random = randomSource(6);
  const result = makeResult();
  let refused = 0;
  for (let i = 0; i < 1500; i++) {
    const config = makeConfig();
    const { tokenCode, rowCode } = config.program;
    const code = random() < 0.8 ? tokenCode : rowCode;
    const value = [-1, 0, 1, 2, 5, 16, 64, 1000, 2 ** 31, Number.NaN][randomInt(random, 0, 9)];
    code[randomInt(random, 0, code.length - 1)] = value;
    try {
      const handle = addon.createRunner(config);
      addon.step(handle, BATCH, result);
      addon.close(handle);
    } catch (error) {
      assert.match(String(error), /lowered program: /);
      refused++;
    }
  }
  assert.ok(refused > 700, `${refused} of 1500 refused`);
});

function makeConfig() {
  const program = randomProgram(randomSource(4), { experts: 3, layers: 1 });
  return nativeConfig({
    program,
    weights: dummyWeights(program, 'bfloat16', 1),
    options: OPTIONS,
    isa: availableIsas().at(-1)!,
    threads: 1,
    wantsBf16: native().cpuFeatures().at(-1)!.wantsBf16,
  });
}

function makeHandle() {
  return native().createRunner(makeConfig());
}

function makeResult(): StepResult {
  return {
    tokens: new Int32Array(8),
    logprobs: new Float32Array(8),
    ranks: new Int32Array(8),
    topTokens: new Int32Array(160),
    topLogprobs: new Float32Array(160),
  };
}

/** The same weights' shapes, all from the first bytes of one file. */
function fromFile(weights: WeightSource, path: string): WeightSource {
  return {
    dtype: weights.dtype,
    storage: weights.storage,
    tensor(name) {
      const { shape } = weights.tensor(name);
      return { kind: 'file', path, offset: 64, dtype: 'float32', shape };
    },
  };
}
