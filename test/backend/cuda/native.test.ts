import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { createCudaBackend, nativeConfig } from '../../../src/backend/cuda/cuda-backend.js';
import {
  type CudaDevice,
  devices,
  type NativeConfig,
  native,
} from '../../../src/backend/cuda/native.js';
import { dummyWeights } from '../../../src/model/dummy.js';
import { loadModel } from '../../../src/model/load-model.js';
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
    { bits: 8, group: 0, dtype: 'bfloat16', message: /int8: .*Take int4/ },
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
