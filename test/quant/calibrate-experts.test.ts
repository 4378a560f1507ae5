import assert from 'node:assert/strict';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { referenceBackend } from '../../src/backend/reference/reference.js';
import { loadModel } from '../../src/model/load-model.js';
import type { MoeOp, Program, WeightPart } from '../../src/model/program.js';
import { parseScheme } from '../../src/model/quantization.js';
import { readTensor } from '../../src/model/read-tensor.js';
import type { TensorRef, WeightSource } from '../../src/model/weights.js';
import { quantizeExperts } from '../../src/quant/calibrate-experts.js';
import type { Hessian } from '../../src/quant/code-matrix.js';
import { evaluate } from '../../src/quant/evaluate.js';
import { quantizeCheckpoint } from '../../src/quant/quantize-checkpoint.js';
import { readGolden } from '../helpers/goldens.js';
import { randomSource } from '../helpers/random.js';
import { temporaryModel } from '../helpers/tiny-model.js';

const storage = parseScheme('int4-g32');

function randomSequences(seed: number, count: number, length: number): number[][] {
  const random = randomSource(seed);
  return Array.from({ length: count }, () =>
    Array.from({ length }, () => Math.floor(random() * 128)),
  );
}

test('Each expert is calibrated on its own tokens, its down matrix on what the quantized ones before it give', () => {
  // Three experts of 2 inputs and one inner column; every token goes to one of the first two.
  const [width, inner] = [2, 1];
  const names = [0, 1, 2].flatMap((e) => [`${e}.gate`, `${e}.up`]);
  const part = (tensor: string, shape: number[]): WeightPart => ({ tensor, shape });
  const gateUp = names.map((name) => part(name, [inner, width]));
  const down = [0, 1, 2].map((e) => part(`${e}.down`, [width, inner]));
  const op = {
    ...{ kind: 'moe', gateUp: 0, down: 1, experts: 3, inner, topK: 1, normalize: true },
    x: { value: 0, offset: 0, width },
  } as unknown as MoeOp;
  const program = { weights: [{ parts: gateUp }, { parts: down }] } as unknown as Program;
  const tensor = (values: readonly number[], shape: readonly number[]): TensorRef => ({
    ...{ kind: 'computed', shape },
    read: () => Float32Array.from(values),
  });
  const source = { tensor: () => tensor([9, 9], [1, 2]) } as unknown as WeightSource;
  // Tokens 0, 2, 3 to expert 0, tokens 1, 4 to expert 1.
  const inputs = Float32Array.from([1, 2, 10, 20, 3, 4, 5, 6, 30, 40]);
  const router = Float32Array.from([1, 0, 0, 0, 1, 0, 2, 1, 0, 5, 4, 3, -2, -1, -3]);
  const done = new Map<string, TensorRef>();
  const found = new Map<string, Hessian | undefined>();
  const wanted = (name: string) => name !== '1.up';
  quantizeExperts(
    { program, source, wanted },
    op,
    { inputs, router },
    done,
    ({ tensor: name }, hessian) => {
      found.set(name, hessian);
      // "Quantized" to a gate of x[0] and an up of x[1], for a result that is easy to tell.
      if (name.endsWith('gate')) done.set(name, tensor([1, 0], [1, 2]));
      if (name.endsWith('up')) done.set(name, tensor([0, 1], [1, 2]));
    },
  );
  assert.deepEqual(
    [...found.keys()].sort(),
    [...names, '0.down', '1.down', '2.down'].filter(wanted).sort(),
  );
  const damped = (diagonal: number[]) => {
    const mean = diagonal.reduce((a, b) => a + b) / diagonal.length;
    return diagonal.map((value) => value + 0.01 * mean);
  };
  const near = (name: string, diagonal: number[]) => {
    const importance = found.get(name)?.importance;
    assert.ok(importance, `${name} has a Hessian`);
    damped(diagonal).forEach((value, k) => {
      assert.ok(Math.abs(importance[k] / value - 1) < 1e-6, `${name}: ${importance} for ${value}`);
    });
  };
  near('0.gate', [1 + 9 + 25, 4 + 16 + 36]);
  near('0.up', [1 + 9 + 25, 4 + 16 + 36]);
  near('1.gate', [100 + 900, 400 + 1600]);
  const silu = (x: number) => x / (1 + Math.exp(-x));
  near('0.down', [(silu(1) * 2) ** 2 + (silu(3) * 4) ** 2 + (silu(5) * 6) ** 2]);
  // Expert 1's up matrix is not wanted, so it is the checkpoint's.
  near('1.down', [(silu(10) * 270) ** 2 + (silu(30) * 630) ** 2]);
  for (const name of ['2.gate', '2.up', '2.down']) assert.equal(found.get(name), undefined);
});

for (const name of ['mixtral-tiny', 'qwen3-moe-tiny', 'qwen3-moe-mixed']) {
  test(`GPTQ of the experts of ${name} loses less than rounding to nearest`, (t) => {
    const source = readGolden(name).path;
    const sequences = randomSequences(3, 20, 48);
    const quantized = quantizer(t, source);
    const loss = (target: string) =>
      evaluate({
        backend: referenceBackend,
        model: loadModel(target),
        base: loadModel(source),
        sequences: randomSequences(4, 6, 48),
      }).klMean.value;
    const rounded = quantized('rtn');
    const gptq = quantized('gptq', sequences);
    assert.deepEqual(gptq.notes, []);
    const [less, more] = [loss(gptq.target), loss(rounded.target)];
    assert.ok(more > 0 && less < 0.85 * more, `${less} against ${more}`);
  });
}

test('Experts that too few tokens came to are rounded to nearest, and a note says how many', (t) => {
  const source = readGolden('mixtral-tiny').path;
  const quantized = quantizer(t, source);
  // Matrices have 64 and 32 inputs: GPTQ wants 32 and 16 tokens, of which an expert has half on average.
  const few = quantized('few', randomSequences(5, 1, 12));
  const rounded = quantized('rtn');
  assert.equal(few.notes.length, 1);
  assert.match(few.notes[0], /^24 of 24 matrices of experts are rounded to nearest/);
  const [a, b] = [few, rounded].map(({ target }) => loadModel(target));
  for (const { parts } of a.program.weights) {
    for (const { tensor } of parts) {
      const [one, two] = [a, b].map(({ weights }) => readTensor(weights.tensor(tensor)));
      assert.deepEqual(one, two, tensor);
    }
  }
  const some = quantized('some', randomSequences(6, 1, 50));
  const [, count] = some.notes[0].match(/^(\d+) of 24 matrices/) ?? [];
  assert.ok(Number(count) > 0 && Number(count) < 24, some.notes[0]);
});

/** Quantizes the experts alone. */
function quantizer(t: TestContext, source: string) {
  const folder = temporaryModel(t, {});
  return (name: string, sequences?: number[][]) => {
    const target = join(folder, name);
    const calibration = sequences && { backend: referenceBackend, sequences };
    const ignore = ['*self_attn*', ...(source.endsWith('mixed') ? ['*layers.0.mlp*'] : [])];
    return { target, ...quantizeCheckpoint({ source, target, storage, calibration, ignore }) };
  };
}
