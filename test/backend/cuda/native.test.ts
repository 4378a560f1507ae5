import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { createCpuBackend } from '../../../src/backend/cpu/cpu-backend.js';
import { createCudaBackend, nativeConfig } from '../../../src/backend/cuda/cuda-backend.js';
import {
  type CudaDevice,
  devices,
  type NativeConfig,
  native,
} from '../../../src/backend/cuda/native.js';
import { referenceBackend } from '../../../src/backend/reference/reference.js';
import { dummyWeights } from '../../../src/model/dummy.js';
import { type LoadedModel, loadModel } from '../../../src/model/load-model.js';
import { STORIES } from '../../helpers/goldens.js';
import { asIntegers } from '../../helpers/quantized-weights.js';
import { randomSource } from '../../helpers/random.js';
import { randomProgram } from '../../helpers/random-program.js';
import { root } from '../../helpers/root.js';

const built = existsSync(join(root, 'build/millrace-cuda.node'));
const skip = built ? undefined : 'the CUDA code has not been built';

const PROGRAM = randomProgram(randomSource(1), { experts: 4 });
const REQUEST = {
  program: PROGRAM,
  weights: dummyWeights(PROGRAM, 'bfloat16', 1),
  options: { blockSize: 16, numBlocks: 8, maxTokens: 32, maxSeqs: 4, maxModelLen: 64 },
  device: { name: 'a GPU', major: 9, runtime: 13000 } as CudaDevice,
  enforceEager: false,
  profiling: false,
  overlapLaunches: true,
};

test('Without the CUDA code the error says how to build it', (t) => {
  if (built) return t.skip('it has been built');
  assert.throws(() => createCudaBackend(), { name: 'NativeError', message: /npm run build:cuda/ });
});

test('Without a GPU the error says what is missing', { skip }, (t) => {
  try {
    if (devices().length > 0) return t.skip('there is a GPU');
  } catch (error) {
    assert.match((error as Error).message, /^Device cuda cannot be used: .*(driver|GPU)/);
  }
  assert.throws(() => createCudaBackend(), { name: 'NativeError', message: /driver|GPU/ });
});

test('Weights in 8 bits are refused by name, and so are 4 bits where there are no kernels for them', () => {
  const cases = [
    { bits: 8, group: 0, dtype: 'bfloat16', message: /int8: .*Take fp8 or int4/ },
    { bits: 4, group: 32, dtype: 'float32', message: /int4-g32: .*float16 or bfloat16/ },
    { bits: 4, group: 0, dtype: 'bfloat16', message: /int4-row: .*groups of 32, 64 or 128/ },
    { bits: 4, group: 128, dtype: 'bfloat16', message: /int4-g128: .*embeddings and experts/ },
  ] as const;
  for (const { bits, group, dtype, message } of cases) {
    const storage = { kind: 'integer', bits, group, symmetric: true } as const;
    const weights = asIntegers(dummyWeights(PROGRAM, dtype, 1), storage);
    assert.throws(
      () => nativeConfig({ ...REQUEST, weights }),
      { name: 'InvalidParameterError', message, param: 'quantization' },
      message.source,
    );
  }
});

test('With quantization fp8 linears are in 8-bit floats; the head, embeddings and norms are not', () => {
  const { program, weights } = loadModel(STORIES, { dtype: 'bfloat16', quantization: 'fp8' });
  const described = nativeConfig({ ...REQUEST, program, weights }).weights;
  const fp8 = described.filter((weight) => weight.fp8).map(({ name }) => name);
  // Fused queries, keys and values; attention's output; fused gate and up; down.
  assert.equal(fp8.length, 4 * 8, fp8.join());
  const plain = loadModel(STORIES, { dtype: 'bfloat16' }).weights;
  for (const weight of program.weights) {
    if (fp8.includes(weight.name)) assert.equal(weights.storage(weight).kind, 'fp8');
    else assert.deepEqual(weights.storage(weight), plain.storage(weight), weight.name);
  }
});

test('fp8 is refused by name where there are no kernels or no GPU for it', () => {
  const stories = (dtype: 'bfloat16' | 'float32', quantizationOverrides?: string) =>
    loadModel(STORIES, { dtype, quantization: 'fp8', quantizationOverrides });
  const refused = (model: LoadedModel, device: CudaDevice, message: RegExp) =>
    assert.throws(
      () => nativeConfig({ ...REQUEST, ...model, device }),
      { name: 'InvalidParameterError', message, param: 'quantization' },
      message.source,
    );
  const [fine, old] = [REQUEST.device, { ...REQUEST.device, major: 8, minor: 6 }];
  refused(stories('bfloat16'), old, /proj.*fp8: a GPU has compute capability 8.6; 8.9 is needed/);
  refused(stories('float32'), fine, /fp8: .*float16 or bfloat16/);
  refused(
    stories('bfloat16', 'model.embed_tokens.weight=fp8'),
    fine,
    /fp8: embeddings and experts are floats/,
  );
  const mistral = join(root, 'test/goldens/mistral-tiny');
  const uneven = loadModel(mistral, { dtype: 'bfloat16', quantization: 'fp8' });
  refused(uneven, fine, /down_proj.*fp8: .*multiples of 16 .* not 200 and 96/);
  const experts = loadModel(join(root, 'test/goldens/mixtral-tiny'), {
    ...{ dtype: 'bfloat16', quantization: 'fp8' },
  });
  const kinds = nativeConfig({ ...REQUEST, ...experts }).weights.filter((each) => each.experts > 1);
  assert.ok(kinds.length > 0 && kinds.every(({ fp8 }) => !fp8), 'experts stay floats');
});

test('The CPU and the reference refuse fp8 by name', () => {
  const { program, weights } = loadModel(STORIES, { dtype: 'bfloat16', quantization: 'fp8' });
  for (const backend of [createCpuBackend(), referenceBackend]) {
    assert.throws(() => backend.createRunner(program, weights, REQUEST.options), {
      name: 'InvalidParameterError',
      message: /fp8: 8-bit floats are of device cuda/,
      param: 'quantization',
    });
  }
});

test('With quantization int4 linears are in 4 bits; the head, embeddings and norms are not', () => {
  const quantization = 'int4-g64-asym';
  const { program, weights } = loadModel(STORIES, { dtype: 'bfloat16', quantization });
  const request = { ...REQUEST, program, weights };
  const described = nativeConfig(request).weights;
  const logits = program.ops.find(({ out }) => out.value === program.logits.value);
  const head = logits?.kind === 'linear' ? program.weights[logits.weight].name : '';
  for (const { name, layout, int4 } of described) {
    const linear = program.ops.some(
      (op) => op.kind === 'linear' && program.weights[op.weight].name === name,
    );
    const kept = layout === 'matrix' && linear && name !== head;
    assert.deepEqual(
      int4 && { ...int4 },
      kept ? { group: 64, offsets: true, columns: undefined } : undefined,
      name,
    );
  }
  assert.ok(described.some(({ int4 }) => int4));
});

const BREAKAGES: [string, RegExp, (config: NativeConfig) => void][] = [
  ['a code cut off', /ends within an instruction/, ({ program }) => cut(program, -1)],
  ['an unknown operation', /no such operation/, ({ program }) => set(program.tokenCode, 0, 99)],
  ['an unknown weight', /no such weight/, ({ program }) => set(program.tokenCode, 1, 1e6)],
  ['an unknown buffer', /no such buffer/, ({ program }) => set(program.tokenCode, 2, 1e6)],
  ['a number that is none', /not an integer/, ({ program }) => set(program.tokenCode, 2, NaN)],
  ['columns beyond a buffer', /leaves its buffer/, ({ program }) => set(program.tokenCode, 4, 1e6)],
  [
    'too little memory',
    /leaves the workspace/,
    ({ program }) => {
      program.activationBytes -= 256;
    },
  ],
  [
    'logits elsewhere',
    /no logits/,
    ({ program }) => {
      program.logits.buffer = 1e6;
    },
  ],
  [
    'an odd head size',
    /even number for argument 0.program.kvLayers\[0\].headDim/,
    ({ program }) => {
      program.kvLayers = [{ kvHeads: 1, headDim: 7, fp8: false }];
    },
  ],
  [
    'an unknown layout',
    /vector, bias or matrix/,
    ({ weights }) => {
      weights[0].layout = 'gateUp' as never;
    },
  ],
];

for (const [what, message, change] of BREAKAGES) {
  test(`The native code refuses ${what} before it looks for a GPU`, { skip }, () => {
    const config = nativeConfig(REQUEST);
    change(config);
    const expected = { code: 'ERR_NATIVE_ARGUMENT', message };
    assert.throws(() => native().plan(config), expected);
    assert.throws(() => native().createRunner(config), expected);
  });
}

test('What is no runner is refused by every function', { skip }, () => {
  for (const name of ['submit', 'collect', 'memory', 'about', 'profile', 'close'] as const) {
    const call = native()[name] as (runner: object, argument: object) => unknown;
    assert.throws(() => call({}, {}), { code: 'ERR_NATIVE_ARGUMENT', message: /a runner/ }, name);
  }
});

function cut(program: NativeConfig['program'], end: number): void {
  program.tokenCode = program.tokenCode.slice(0, end);
}

function set(code: Float64Array, index: number, value: number): void {
  code[index] = value;
}
