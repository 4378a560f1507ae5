/**
 * The files of a checkpoint: one `model.safetensors`, or shards under
 * `model.safetensors.index.json`; and the check that they hold what the program needs.
 */
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { ModelError } from '../errors.js';
import { isJsonObject, readJsonObject } from './config-fields.js';
import { readFloats } from './formats/entry.js';
import type { CheckpointFormat } from './formats/format.js';
import type { Program, Weight, WeightPart } from './program.js';
import { readSafetensors, type TensorEntry } from './safetensors.js';
import { uniteParts } from './unite-parts.js';
import type { DType, FileTensor, MatrixStorage, TensorRef, WeightSource } from './weights.js';

const SINGLE = 'model.safetensors';
const INDEX = 'model.safetensors.index.json';

const DTYPES: Readonly<Record<string, DType>> = {
  F32: 'float32',
  F16: 'float16',
  BF16: 'bfloat16',
};

/** The tensors of the checkpoint in `directory`, by name. Throws `ModelError`. */
export function readCheckpoint(directory: string): Map<string, TensorEntry> {
  if (existsSync(join(directory, SINGLE))) {
    return new Map(readSafetensors(join(directory, SINGLE)).map((entry) => [entry.name, entry]));
  }
  if (existsSync(join(directory, INDEX))) return readShards(directory);
  const others = readdirSync(directory).filter((name) =>
    /\.(bin|pt|pth|gguf|safetensors)$/.test(name),
  );
  throw new ModelError(
    `${directory}: neither ${SINGLE} nor ${INDEX} is there` +
      (others.length > 0 ? `, only ${others.join(', ')}; convert the weights to safetensors` : '') +
      `. To try the architecture without weights, load with the format "dummy"`,
  );
}

function readShards(directory: string): Map<string, TensorEntry> {
  const index = join(directory, INDEX);
  const map = readJsonObject(index).weight_map;
  if (!isJsonObject(map)) throw new ModelError(`${index}: weight_map is not an object`);
  const tensors = new Map<string, TensorEntry>();
  for (const shard of new Set(Object.values(map))) {
    if (typeof shard !== 'string' || !/^[^/\\]+\.safetensors$/.test(shard)) {
      throw new ModelError(`${index}: ${JSON.stringify(shard)} is not the name of a shard`);
    }
    const path = join(directory, shard);
    if (!existsSync(path)) throw new ModelError(`${index} names ${shard}, which is missing`);
    for (const entry of readSafetensors(path)) {
      const other = tensors.get(entry.name);
      if (other !== undefined) {
        throw new ModelError(`${entry.name} is both in ${other.path} and in ${path}`);
      }
      tensors.set(entry.name, entry);
    }
  }
  for (const [name, shard] of Object.entries(map)) {
    if (tensors.get(name)?.path !== join(directory, shard as string)) {
      throw new ModelError(`${index} places ${name} in ${shard}, which does not have it`);
    }
  }
  return tensors;
}

/** A program's weights, and what a person should know of how they were read. */
export interface CheckedWeights {
  readonly weights: WeightSource;
  readonly notes: readonly string[];
}

/**
 * Checks `tensors` against what `program` needs and returns them as its weights; `format` says how
 * quantized ones are stored. One `ModelError` names everything missing, extra, misshapen or of an
 * unsupported type.
 */
export function checkedWeights(
  directory: string,
  program: Program,
  tensors: ReadonlyMap<string, TensorEntry>,
  dtype: DType,
  format?: CheckpointFormat,
): CheckedWeights {
  const problems: string[] = [];
  const notes = new Set<string>();
  const used = new Set<string>();
  const find = (part: WeightPart): TensorRef | undefined => {
    used.add(part.tensor);
    try {
      const found = format?.find(part, tensors);
      if (found === undefined) return floatTensor(part, tensors);
      for (const name of found.uses) used.add(name);
      if (found.note !== undefined) notes.add(found.note);
      return found.tensor;
    } catch (error) {
      if (!(error instanceof ModelError)) throw error;
      problems.push(error.message);
      return undefined;
    }
  };
  const found = program.weights.map((weight) => ({ weight, parts: weight.parts.map(find) }));
  for (const [name, entry] of tensors) {
    if (used.has(name) || isHarmless(name) || (format && isZeroBias(entry))) continue;
    if (format && KV_SCALE.test(name)) {
      notes.add('scales for a KV cache in 8 bits, which the checkpoint has, are not used');
      continue;
    }
    problems.push(`unexpected ${name}`);
  }
  if (problems.length > 0) throw mismatch(directory, problems);
  const parts = found.map(({ weight, parts }) => ({ weight, parts: parts as TensorRef[] }));
  const weights = weightSource(directory, program, parts, dtype, notes);
  return { weights, notes: [...notes] };
}

/** The weights of `program` from the tensors of their parts; what had to change goes to `notes`. */
export function weightSource(
  directory: string,
  program: Program,
  found: readonly { weight: Weight; parts: readonly TensorRef[] }[],
  dtype: DType,
  notes: Set<string>,
): WeightSource {
  const tensors = new Map<string, TensorRef>();
  const storages = new Map<number, MatrixStorage>();
  const embedded = new Set(program.ops.flatMap((op) => (op.kind === 'embed' ? op.weight : [])));
  for (const { weight, parts } of found) {
    const united = uniteParts(parts, embedded.has(weight.id));
    weight.parts.forEach(({ tensor }, n) => {
      tensors.set(tensor, united.parts[n]);
    });
    storages.set(weight.id, united.storage);
    if (united.lost !== undefined) notes.add(`${weight.name} becomes floats: ${united.lost}`);
  }
  return {
    dtype,
    storage: ({ id }) => storages.get(id) ?? { kind: 'float' },
    tensor(name) {
      const tensor = tensors.get(name);
      if (tensor !== undefined) return tensor;
      throw new ModelError(`${directory}: the program has no tensor ${name}`);
    },
  };
}

function floatTensor(
  { tensor, shape }: WeightPart,
  tensors: ReadonlyMap<string, TensorEntry>,
): FileTensor {
  const entry = tensors.get(tensor);
  if (entry === undefined) throw new ModelError(`missing ${tensor} [${shape.join(', ')}]`);
  if (entry.shape.join() !== shape.join()) {
    throw new ModelError(
      `${tensor} is [${entry.shape.join(', ')}], expected [${shape.join(', ')}]`,
    );
  }
  if (!Object.hasOwn(DTYPES, entry.dtype)) {
    throw new ModelError(`${tensor} is ${entry.dtype}, expected F32, F16 or BF16`);
  }
  const { path, offset } = entry;
  return { kind: 'file', path, offset, dtype: DTYPES[entry.dtype], shape };
}

/** AutoGPTQ and AutoAWQ write biases of zeros for linears that have none. */
function isZeroBias(entry: TensorEntry): boolean {
  const isBias = entry.name.endsWith('.bias') && Object.hasOwn(DTYPES, entry.dtype);
  return isBias && readFloats(entry).every((value) => value === 0);
}

/** Static ones of compressed-tensors' `kv_cache_scheme` and of AutoFP8. */
const KV_SCALE = /\.self_attn\.(?:[kv]|[kv]_proj\.output)_scale$/;

/**
 * Tensors that checkpoints carry without need: frequencies that follow from the config, and a copy
 * of tied embeddings (an untied head is needed, so never asked about here).
 */
function isHarmless(name: string): boolean {
  return name.endsWith('rotary_emb.inv_freq') || name === 'lm_head.weight';
}

function mismatch(directory: string, problems: readonly string[]): ModelError {
  const shown = problems.slice(0, 20).join('; ');
  const more = problems.length > 20 ? `; and ${problems.length - 20} more` : '';
  return new ModelError(`${directory}: the weights do not fit the config: ${shown}${more}`);
}
