/** A golden checkpoint with other tensors or another config, in a folder of its own. */
import { cpSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { readRange } from '../../src/model/read-tensor.js';
import { readSafetensors } from '../../src/model/safetensors.js';
import { readGolden } from './goldens.js';
import { temporaryModel } from './tiny-model.js';

export interface StoredTensor {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly data: Uint8Array;
}

export interface Changes {
  readonly quantization?: (config: Record<string, never>) => object;
  readonly tensor?: (tensor: StoredTensor) => StoredTensor;
}

/** The folder, removed when the test ends. */
export function changedCheckpoint(
  t: TestContext,
  golden: string,
  { quantization, tensor = (same) => same }: Changes,
): string {
  const folder = temporaryModel(t, {});
  cpSync(readGolden(golden).path, folder, { recursive: true });
  const file = join(folder, 'config.json');
  const config = JSON.parse(readFileSync(file, 'utf8'));
  if (quantization) config.quantization_config = quantization(config.quantization_config);
  writeFileSync(file, JSON.stringify(config));
  const weights = join(folder, 'model.safetensors');
  const entries = readSafetensors(weights);
  const tensors = entries.map(({ name, path, dtype, shape, offset }, i) => {
    const end = entries[i + 1]?.offset ?? readFileSync(path).length;
    return tensor({ name, dtype, shape, data: readRange(path, offset, end - offset) });
  });
  let end = 0;
  const header = tensors.map(({ name, dtype, shape, data }) => {
    const begin = end;
    end += data.length;
    return [name, { dtype, shape, data_offsets: [begin, end] }];
  });
  const json = Buffer.from(JSON.stringify(Object.fromEntries(header)));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(json.length));
  writeFileSync(weights, Buffer.concat([length, json, ...tensors.map(({ data }) => data)]));
  return folder;
}

/** The scale of the first row for all rows: an fp8 checkpoint with one scale a tensor. */
export function oneScale(tensor: StoredTensor): StoredTensor {
  return tensor.name.endsWith('.weight_scale')
    ? { ...tensor, shape: [1], data: tensor.data.subarray(0, 4) }
    : tensor;
}
