/** From a directory with a checkpoint, or a GGUF file, to everything the engine and the executors need. */
import { existsSync, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { InvalidParameterError, ModelError } from '../errors.js';
import { findGguf } from '../gguf/find-gguf.js';
import { ggufConfig } from '../gguf/gguf-config.js';
import { readGguf } from '../gguf/gguf-file.js';
import { ggufWeights } from '../gguf/load-gguf.js';
import { type CheckedWeights, checkedWeights, readCheckpoint } from './checkpoint.js';
import { type ModelConfig, parseConfig } from './config.js';
import { ConfigFields, type JsonObject, readJsonObject } from './config-fields.js';
import { dummyWeights } from './dummy.js';
import { recordProgram } from './families.js';
import { checkpointFormat } from './formats/format.js';
import type { Program } from './program.js';
import { type QuantizationOptions, withQuantization } from './quantization.js';
import type { DType, WeightSource } from './weights.js';

export type DTypeOption = 'auto' | DType;
export type LoadFormat = 'auto' | 'safetensors' | 'dummy';

export interface LoadModelOptions extends QuantizationOptions {
  /** What to keep matrices in; `auto` is what the config says, float32 if it says nothing. */
  dtype?: DTypeOption;
  /** `dummy` needs nothing but config.json. */
  loadFormat?: LoadFormat;
  /** Of the dummy weights. */
  seed?: number;
  /** Longest context to serve; at most, and by default, what the model was made for. */
  maxModelLen?: number;
}

/** Sampling defaults of generation_config.json; only what the file has. */
export interface GenerationDefaults {
  readonly temperature?: number;
  readonly topP?: number;
  readonly topK?: number;
  readonly minP?: number;
  readonly repetitionPenalty?: number;
}

export interface LoadedModel {
  /** The directory, or the GGUF file. */
  readonly path: string;
  readonly config: ModelConfig;
  readonly program: Program;
  readonly weights: WeightSource;
  /** What a person should know of how the weights were read. */
  readonly notes: readonly string[];
  /** Tokens that end an answer: those of config.json and generation_config.json. */
  readonly eosTokenIds: readonly number[];
  readonly generationDefaults: GenerationDefaults;
}

/**
 * Reads config and headers, not the weights themselves. Throws `ModelError` for a checkpoint that
 * cannot be used and `InvalidParameterError` for an option.
 *
 * @example
 * const { program, weights } = loadModel('models/stories-7m', { dtype: 'float32' });
 */
export function loadModel(path: string, options: LoadModelOptions = {}): LoadedModel {
  const { dtype: wanted = 'auto', loadFormat = 'auto', seed = 0, maxModelLen } = options;
  requireOneOf('dtype', wanted, ['auto', 'float32', 'bfloat16', 'float16']);
  requireOneOf('loadFormat', loadFormat, ['auto', 'safetensors', 'dummy']);
  if (!Number.isSafeInteger(seed)) throw InvalidParameterError.expected('integer', 'seed', seed);
  const gguf = findGguf(path);
  if (gguf !== undefined && loadFormat === 'safetensors') {
    throw InvalidParameterError.expected(
      `auto or dummy of a GGUF file (${gguf})`,
      'loadFormat',
      loadFormat,
    );
  }
  const file = gguf === undefined ? undefined : readGguf(gguf);
  const { name, json } = file ? { name: file.path, json: ggufConfig(file) } : readConfig(path);
  const config = withMaxModelLen(parseConfig(name, json), maxModelLen);
  const program = recordProgram(config);
  const dtype = wanted === 'auto' ? (config.dtype ?? 'float32') : wanted;
  const source = (): CheckedWeights => {
    if (loadFormat === 'dummy') return { weights: dummyWeights(program, dtype, seed), notes: [] };
    if (file) return ggufWeights(file, config, program, dtype);
    const format = checkpointFormat(config.fields);
    return checkedWeights(path, program, readCheckpoint(path), dtype, format);
  };
  const own = source();
  const { weights, notes } = withQuantization(own.weights, program, options);
  const all = [...own.notes, ...notes];
  return { path, config, program, weights, notes: all, ...readGenerationConfig(path, config) };
}

function readConfig(path: string): { name: string; json: JsonObject } {
  if (!existsSync(path) || !statSync(path).isDirectory()) {
    throw new ModelError(
      `${path}: expected a directory with config.json and safetensors, or a GGUF file`,
    );
  }
  const name = join(path, 'config.json');
  if (!existsSync(name)) throw new ModelError(`${name}: the file is missing`);
  return { name, json: readJsonObject(name) };
}

function withMaxModelLen(config: ModelConfig, maxModelLen?: number): ModelConfig {
  if (maxModelLen === undefined) return config;
  const most = config.maxPositionEmbeddings;
  if (Number.isInteger(maxModelLen) && maxModelLen >= 1 && maxModelLen <= most) {
    return { ...config, maxModelLen };
  }
  throw InvalidParameterError.expected(
    `integer between 1 and ${most} (the model's own limit)`,
    'maxModelLen',
    maxModelLen,
  );
}

function readGenerationConfig(
  path: string,
  config: ModelConfig,
): { eosTokenIds: number[]; generationDefaults: GenerationDefaults } {
  const file = join(
    existsSync(path) && statSync(path).isFile() ? dirname(path) : path,
    'generation_config.json',
  );
  const fields = new ConfigFields(file, existsSync(file) ? readJsonObject(file) : {});
  const optional = (name: string) => (fields.has(name) ? fields.number(name) : undefined);
  const eosTokenIds = [...new Set([...config.eosTokenIds, ...fields.ids('eos_token_id')])];
  const outside = eosTokenIds.find((id) => id >= config.vocabSize);
  if (outside !== undefined) {
    throw new ModelError(
      `${path}: eos_token_id ${outside} lies outside the vocabulary of ${config.vocabSize}`,
    );
  }
  return {
    eosTokenIds,
    generationDefaults: {
      temperature: optional('temperature'),
      topP: optional('top_p'),
      topK: optional('top_k'),
      minP: optional('min_p'),
      repetitionPenalty: optional('repetition_penalty'),
    },
  };
}

function requireOneOf(param: string, value: unknown, choices: readonly string[]): void {
  if (choices.includes(value as string)) return;
  throw InvalidParameterError.expected(`one of ${choices.join(', ')}`, param, value);
}
