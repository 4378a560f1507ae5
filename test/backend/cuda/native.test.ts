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
import { readCheckpoint } from '../../../src/model/checkpoint.js';
import { dummyWeights } from '../../../src/model/dummy.js';
import { readFloats } from '../../../src/model/formats/entry.js';
import {
  type LoadedModel,
  type LoadModelOptions,
  loadModel,
} from '../../../src/model/load-model.js';
import type { WeightSource } from '../../../src/model/weights.js';
import { readGolden, STORIES } from '../../helpers/goldens.js';
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

/** Descriptions of the projections of the fp8 golden. */
function projections(options: LoadModelOptions, device = REQUEST.device) {
  const { path } = readGolden('quantized/compressed-fp8');
  const { program, weights } = loadModel(path, { dtype: 'bfloat16', ...options });
  const described = nativeConfig({ ...REQUEST, program, weights, device }).weights;
  const found = described.filter(({ name }) => name.endsWith('_proj.weight'));
  assert.equal(found.length, 2 * 4);
  return found;
}

test('A checkpoint in fp8 keeps its codes and scales, asked for or not', () => {
  const { path } = readGolden('quantized/compressed-fp8');
  const entries = readCheckpoint(path);
  for (const options of [{}, { quantization: 'fp8' }]) {
    for (const { name, fp8, parts } of projections(options)) {
      assert.ok(fp8, name);
      for (const part of parts) assert.equal(part.kind, 'fp8', name);
    }
  }
  const down = projections({}).find(({ name }) => name === 'model.layers.1.mlp.down_proj.weight')!;
  const [part] = down.parts;
  assert.ok(part.kind === 'fp8');
  const codes = entries.get(down.name)!;
  assert.deepEqual([part.path, part.offset, part.elements], [codes.path, codes.offset, 64 * 96]);
  const scales = readFloats(entries.get('model.layers.1.mlp.down_proj.weight_scale')!);
  assert.deepEqual(part.read(), scales);
});

test('A checkpoint in fp8 is widened where the GPU or the kernels do not have it, or float is asked for', () => {
  const widened = (found: ReturnType<typeof projections>) => {
    for (const { name, fp8, parts } of found) {
      assert.ok(!fp8, name);
      for (const { kind } of parts) assert.equal(kind, 'computed', name);
    }
  };
  for (const [major, minor] of [
    [8, 6],
    [8, 9],
    [12, 0],
  ]) {
    widened(projections({}, { ...REQUEST.device, major, minor }));
  }
  const asked = projections({ quantization: 'fp8' }, { ...REQUEST.device, major: 8, minor: 9 });
  assert.ok(asked.every(({ fp8 }) => fp8));
  widened(projections({ dtype: 'float16' }));
  widened(projections({ dtype: 'float32' }));
  widened(projections({ quantizationOverrides: '*=float' }));
  // Sizes that the kernels do not have, and experts.
  for (const name of ['mistral-tiny', 'mixtral-tiny']) {
    const { program, weights } = loadModel(readGolden(name).path, { dtype: 'bfloat16' });
    const source: WeightSource = {
      dtype: 'bfloat16',
      storage: ({ shape }) =>
        shape.length > 1 ? { kind: 'fp8', unasked: true } : { kind: 'float' },
      tensor(tensor) {
        const { shape } = weights.tensor(tensor);
        if (shape.length === 1) return weights.tensor(tensor);
        const readScales = () => new Float32Array(shape[0]);
        return { kind: 'fp8', shape, path: 'model.safetensors', offset: 0, readScales };
      },
    };
    const described = nativeConfig({ ...REQUEST, program, weights: source }).weights;
    for (const { layout, n, k, experts, fp8, parts } of described) {
      if (layout !== 'matrix') continue;
      const fits = experts === 1 && n % 16 === 0 && k % 16 === 0;
      if (!fits) assert.ok(!fp8, `${n} x ${k}`);
      for (const part of parts) assert.equal(part.kind, fp8 ? 'fp8' : 'computed');
    }
    assert.ok(described.some(({ fp8 }) => fp8));
  }
});

test('A checkpoint in fp8 is rounded anew where int4 is asked for', () => {
  for (const { name, fp8, int4, parts } of projections({ quantization: 'int4-g32' })) {
    assert.ok(!fp8 && int4?.group === 32, name);
    for (const { kind } of parts) assert.equal(kind, 'computed');
  }
});

test('A head that int4 alone makes int8 stays as it is, one that was asked for in int8 is refused', () => {
  const head = (quantizationOverrides?: string) => {
    const { path } = readGolden('llama-bias');
    const quantization = 'int4';
    const model = loadModel(path, { dtype: 'bfloat16', quantization, quantizationOverrides });
    const { weights } = nativeConfig({ ...REQUEST, ...model });
    return weights.find(({ name }) => name === 'lm_head.weight')!;
  };
  assert.equal(head().int4, undefined);
  assert.equal(head('lm_head.weight=int4-g64').int4?.group, 64);
  assert.throws(() => head('lm_head*=int8'), {
    name: 'InvalidParameterError',
    message: /^lm_head.weight cannot be int8: device cuda has no kernels for int8 weights/,
    param: 'quantization',
  });
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
