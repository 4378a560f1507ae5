import assert from 'node:assert/strict';
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { ModelError } from '../../src/errors.js';
import { loadModel } from '../../src/model/load-model.js';
import { readTensor } from '../../src/model/read-tensor.js';
import { readSafetensors } from '../../src/model/safetensors.js';
import { GOLDENS } from '../helpers/goldens.js';
import { randomInt, randomSource } from '../helpers/random.js';
import { safetensorsBytes, temporaryModel, zeroTensors } from '../helpers/tiny-model.js';

function read(t: TestContext, bytes: Uint8Array) {
  return readSafetensors(join(temporaryModel(t, { 'a.safetensors': bytes }), 'a.safetensors'));
}

function refuses(t: TestContext, message: RegExp, bytes: Uint8Array): void {
  assert.throws(
    () => read(t, bytes),
    (error) => {
      assert.ok(error instanceof ModelError, String(error));
      assert.match(error.message, message);
      assert.match(error.message, /a\.safetensors/);
      return true;
    },
  );
}

const entry = (begin: number, end: number, shape: unknown = [2], dtype: unknown = 'F32') => ({
  dtype,
  shape,
  data_offsets: [begin, end],
});

test('Tensors come in the order of their data, with ranges from the start of the file', (t) => {
  const bytes = safetensorsBytes(
    {
      b: entry(8, 12, [2], 'BF16'),
      __metadata__: { format: 'pt' },
      a: entry(0, 8),
      none: entry(12, 12, [0, 5]),
      scalar: entry(12, 16, []),
    },
    16,
  );
  const tensors = read(t, bytes);
  assert.deepEqual(tensors.map(({ name }) => name).sort(), ['a', 'b', 'none', 'scalar']);
  const data = bytes.length - 16;
  assert.equal(tensors.find(({ name }) => name === 'b')?.offset, data + 8);
  assert.deepEqual(tensors[0], {
    ...tensors[0],
    name: 'a',
    offset: data,
    dtype: 'F32',
    shape: [2],
  });
});

test('A file that ends early, or whose header claims too much, is refused', (t) => {
  refuses(t, /0 bytes are too few/, Buffer.alloc(0));
  refuses(t, /too few/, Buffer.alloc(7));
  refuses(t, /header claims 18446744073709552000 bytes/, Buffer.alloc(32, 0xff));
  const whole = safetensorsBytes({ a: entry(0, 8) }, 8);
  refuses(t, /header claims/, whole.subarray(0, 20));
  refuses(
    t,
    /describes 8 bytes of data but the file has 3: it is truncated/,
    whole.subarray(0, -5),
  );
  refuses(
    t,
    /describes 8 bytes of data but the file has 9/,
    Buffer.concat([whole, Buffer.alloc(1)]),
  );
});

test('A header that lies is refused', (t) => {
  const header = (json: object | string, data = 8) => safetensorsBytes(json, data);
  refuses(t, /not valid JSON/, header('{"a":'));
  refuses(t, /not valid JSON/, header('', 0));
  refuses(t, /not a JSON object/, header('[]'));
  refuses(t, /a: expected an object/, header({ a: 5 }));
  refuses(t, /dtype "F99" is not supported/, header({ a: entry(0, 8, [2], 'F99') }));
  refuses(t, /dtype "toString" is not supported/, header({ a: entry(0, 8, [2], 'toString') }));
  refuses(t, /dtype undefined is not supported/, header({ a: {} }));
  refuses(t, /shape is not/, header({ a: entry(0, 8, [-2]) }));
  refuses(t, /shape is not/, header({ a: entry(0, 8, [1.5]) }));
  refuses(t, /shape is not/, header({ a: entry(0, 8, 'x') }));
  refuses(t, /span 8 bytes but F32 \[3\] takes 12/, header({ a: entry(0, 8, [3]) }));
  refuses(t, /takes 2\.916e\+48/, header({ a: entry(0, 8, [9e15, 9e15, 9e15]) }));
  refuses(t, /ascending offsets/, header({ a: entry(8, 0) }));
  refuses(t, /ascending offsets/, header({ a: { ...entry(0, 8), data_offsets: [0] } }));
  refuses(t, /overlaps/, header({ a: entry(0, 8), b: entry(4, 12) }, 12));
  refuses(t, /leaves a hole/, header({ a: entry(0, 8), b: entry(12, 20) }, 20));
  refuses(
    t,
    /describes 16 bytes of data but the file has 8/,
    header({ a: entry(0, 8), b: entry(8, 16) }),
  );
  const twice =
    '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"\\u0061":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}';
  refuses(t, /has "a" twice/, header(twice));
  const deep = '{"a":{"dtype":"F32","shape":[1],"shape":[2],"data_offsets":[0,8]}}';
  refuses(t, /has "shape" twice/, header(deep));
  assert.equal(
    read(t, header('{"say \\"a\\": {": {"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'))[0].name,
    'say "a": {',
  );
});

test('A missing file and a directory are model errors', (t) => {
  const directory = temporaryModel(t, {});
  assert.throws(() => readSafetensors(join(directory, 'none')), ModelError);
  assert.throws(() => readSafetensors(directory), ModelError);
});

test('Random byte flips and truncations give a model error or a model, never anything else', (t) => {
  const source = join(GOLDENS, 'llama-bf16');
  const directory = temporaryModel(t, {});
  copyFileSync(join(source, 'config.json'), join(directory, 'config.json'));
  const original = readFileSync(join(source, 'model.safetensors'));
  const headerEnd = 8 + Number(original.readBigUInt64LE());
  const random = randomSource(42);
  let refused = 0;
  const rounds = 300;
  for (let round = 0; round < rounds; round++) {
    let bytes = Buffer.from(original);
    for (let flips = randomInt(random, 1, 4); flips > 0; flips--) {
      const at = random() < 0.2 ? randomInt(random, 0, 7) : randomInt(random, 0, headerEnd - 1);
      bytes[at] ^= 1 << randomInt(random, 0, 7);
    }
    if (random() < 0.3) bytes = bytes.subarray(0, randomInt(random, 0, bytes.length));
    writeFileSync(join(directory, 'model.safetensors'), bytes);
    try {
      const { program, weights } = loadModel(directory);
      for (const { tensor } of program.weights.flatMap(({ parts }) => parts)) {
        readTensor(weights.tensor(tensor));
      }
    } catch (error) {
      assert.ok(error instanceof ModelError, `round ${round}: ${(error as Error).stack}`);
      refused++;
    }
  }
  // A flip within a name of the metadata, or of a letter's case in white space, may go unseen.
  assert.ok(refused > rounds * 0.8, `only ${refused} of ${rounds} were noticed`);
});

test('Shards are found through the index, whose lies are refused', (t) => {
  const shard = (names: string[]) =>
    zeroTensors(Object.fromEntries(names.map((name) => [name, [2]])));
  const load = (files: Record<string, Uint8Array | object>) =>
    loadModel(
      temporaryModel(t, {
        'config.json': readFileSync(join(GOLDENS, 'llama-tiny/config.json')),
        ...files,
      }),
    );
  const index = (map: unknown) => ({ 'model.safetensors.index.json': { weight_map: map } });
  const one = { 'x-1.safetensors': shard(['a']) };
  const refusesModel = (message: RegExp, files: Record<string, Uint8Array | object>) =>
    assert.throws(() => load(files), { name: 'ModelError', message });
  refusesModel(/names x-2\.safetensors, which is missing/, {
    ...one,
    ...index({ a: 'x-1.safetensors', b: 'x-2.safetensors' }),
  });
  refusesModel(/places b in x-1\.safetensors, which does not have it/, {
    ...one,
    ...index({ a: 'x-1.safetensors', b: 'x-1.safetensors' }),
  });
  refusesModel(/a is both in/, {
    ...one,
    'x-2.safetensors': shard(['a', 'b']),
    ...index({ a: 'x-1.safetensors', b: 'x-2.safetensors' }),
  });
  refusesModel(
    /"\.\.\/x\.safetensors" is not the name of a shard/,
    index({ a: '../x.safetensors' }),
  );
  refusesModel(/is not the name of a shard/, index({ a: 7 }));
  refusesModel(/weight_map is not an object/, index([]));
  refusesModel(/cannot be read as JSON/, { 'model.safetensors.index.json': Buffer.from('{') });
});
