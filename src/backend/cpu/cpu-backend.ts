/** The CPU executor: lowers the program, hands it to the native code, calls that once a step. */
import { availableParallelism } from 'node:os';
import { InvalidParameterError, MemoryPlanError, ModelError } from '../../errors.js';
import type { Program } from '../../model/program.js';
import { schemeName } from '../../model/quantization.js';
import { readTensor } from '../../model/read-tensor.js';
import type { TensorRef, WeightSource } from '../../model/weights.js';
import { allocateResult } from '../allocate-result.js';
import type { Backend, ModelRunner, RunnerOptions, StepBatch, StepResult } from '../backend.js';
import { checkBatch } from '../check-batch.js';
import { describeWidened } from '../describe-widened.js';
import { withoutFp8 } from '../fp8.js';
import { checkKvCacheDtype, kvDtypeOf } from '../kv-dtype.js';
import { encode, floatOperand, OP_CODES } from './encode.js';
import { type LoweredWeight, lower } from './lower.js';
import {
  CPU_ISAS,
  type CpuIsa,
  type NativeConfig,
  type NativePart,
  type NativeRunner,
  type NativeWeight,
  native,
} from './native.js';
import { planMemory } from './plan-memory.js';

export interface CpuBackendOptions {
  /** Threads that compute, the caller's included. Default: as many as there are cores. */
  threads?: number;
  /** Forces an instruction set. Default: the best this machine has. */
  isa?: CpuIsa;
}

export interface CpuRunner extends ModelRunner {
  /** Time since the runner was made, by kind of operation, `sample` and `batch` (checks, plans). */
  profile(): Record<string, { seconds: number; calls: number }>;
}

export interface CpuBackend extends Backend {
  createRunner(
    program: Program,
    weights: WeightSource,
    options: RunnerOptions,
    onProgress?: (share: number) => void,
  ): CpuRunner;
}

/** The instruction sets this machine can run, slowest first. */
export function availableIsas(): CpuIsa[] {
  return native()
    .cpuFeatures()
    .map(({ name }) => name);
}

/**
 * Throws `NativeError` if the addon is missing, `InvalidParameterError` for options this machine
 * cannot meet.
 *
 * @example
 * const runner = createCpuBackend({ threads: 2 }).createRunner(program, weights, options);
 */
export function createCpuBackend(options: CpuBackendOptions = {}): CpuBackend {
  const { threads = availableParallelism() } = options;
  if (!Number.isInteger(threads) || threads < 1 || threads > 1024) {
    throw InvalidParameterError.expected('integer between 1 and 1024', 'threads', threads);
  }
  const features = native().cpuFeatures();
  const isa = options.isa ?? features[features.length - 1].name;
  if (!CPU_ISAS.includes(isa)) {
    throw InvalidParameterError.expected(`one of ${CPU_ISAS.join(', ')}`, 'cpu-isa', isa);
  }
  const feature = features.find(({ name }) => name === isa);
  if (!feature) {
    const here = features.map(({ name }) => name).join(', ');
    throw InvalidParameterError.expected(
      `an instruction set of this machine (${here})`,
      'cpu-isa',
      isa,
    );
  }
  const { wantsBf16 } = feature;
  return {
    name: 'cpu',
    kvBytesPerBlock: (program, blockSize, dtype) =>
      native().kvBytesPerBlock(program.kvLayers, dtype, blockSize),
    createRunner: (program, weights, runnerOptions, onProgress) =>
      createRunner({
        program,
        weights,
        options: runnerOptions,
        onProgress,
        isa,
        threads,
        wantsBf16,
      }),
  };
}

interface RunnerRequest {
  program: Program;
  weights: WeightSource;
  options: RunnerOptions;
  onProgress?: (share: number) => void;
  isa: CpuIsa;
  threads: number;
  wantsBf16: boolean;
}

/** Wanted rows whose logits are computed together, so that rows x vocabulary stays small. */
const ROW_TILE = 64;

function createRunner(request: RunnerRequest): CpuRunner {
  const { program, options, onProgress, isa, threads } = request;
  const config = nativeConfig(request);
  const handle = load(config, onProgress);
  const { maxTokens, keepLogits } = options;
  const result = allocateResult(maxTokens, keepLogits ? program.vocabSize : 0);
  const integers = new Set(config.weights.flatMap(({ name, integer }) => (integer ? name : [])));
  return {
    memory: native().memory(handle),
    description: `cpu (${isa}, ${threads} ${threads === 1 ? 'thread' : 'threads'}, ${describeStorage(config)}${describeCopies(config.weights)}${describeWidened(program, request.weights, integers)})`,
    step(batch: StepBatch): StepResult {
      checkBatch(program, options, batch);
      native().step(handle, batch, result);
      return result;
    },
    profile() {
      const names = [...OP_CODES, 'sample', 'batch'];
      const numbers = new Float64Array(2 * names.length);
      native().profile(handle, numbers);
      return Object.fromEntries(
        names.map((name, i) => [name, { seconds: numbers[2 * i], calls: numbers[2 * i + 1] }]),
      );
    },
    close: () => native().close(handle),
  };
}

function load(config: NativeConfig, onProgress?: (share: number) => void): NativeRunner {
  try {
    return native().createRunner(config, onProgress);
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    if (code === 'ERR_NATIVE_MEMORY') {
      throw new MemoryPlanError(
        `Cannot allocate weights, workspace and ${config.limits.numBlocks} KV blocks: ${message}. ` +
          'Lower the KV cache memory or the tokens in a step.',
        { cause },
      );
    }
    if (code === 'ERR_NATIVE') throw new ModelError(message, { cause });
    throw cause;
  }
}

/** What the native code is told of a model: its lowered program, memory plan and weights. */
export function nativeConfig(request: Omit<RunnerRequest, 'onProgress'>): NativeConfig {
  const { program, options, isa, threads, wantsBf16 } = request;
  const weights = withoutFp8(request.weights);
  const { blockSize, numBlocks, maxTokens, maxSeqs, maxModelLen, keepLogits = false } = options;
  checkKvCacheDtype('cpu', options.kvCacheDtype);
  const bf16 = wantsBf16 && weights.dtype === 'bfloat16';
  const lowered = lower(program, (weight) => bf16 && weights.storage(weight).kind === 'float');
  const rowTile = Math.min(ROW_TILE, maxTokens);
  const plan = planMemory(lowered, program.logits.value, maxTokens, rowTile);
  const [buffer, column, width] = floatOperand(program.logits, plan);
  return {
    isa,
    threads,
    dtype: weights.dtype,
    kvDtype: kvDtypeOf(weights, options.kvCacheDtype),
    limits: { blockSize, numBlocks, maxTokens, maxSeqs, maxModelLen, rowTile, keepLogits },
    program: {
      buffers: plan.buffers,
      tokenCode: encode(lowered.tokenOps, lowered, plan),
      rowCode: encode(lowered.rowOps, lowered, plan),
      ropeTables: program.ropeTables.map(({ invFreq, scale }) => ({
        invFreq: Float64Array.from(invFreq),
        scale,
      })),
      kvLayers: program.kvLayers,
      logits: { buffer, column, width },
      workspaceBytes: plan.bytes,
    },
    weights: lowered.weights.map((weight) => describeWeight(weight, weights)),
  };
}

function describeWeight({ weight, layout }: LoweredWeight, source: WeightSource): NativeWeight {
  const [experts, n, k] =
    layout === 'vector'
      ? [1, weight.shape[0], 1]
      : weight.shape.length === 3
        ? weight.shape
        : [1, ...weight.shape];
  const parts = weight.parts.map(({ tensor }) => describePart(source.tensor(tensor)));
  const storage = source.storage(weight);
  const integer = layout !== 'vector' && storage.kind === 'integer' ? storage : undefined;
  return { name: weight.name, layout, n, k, experts, integer, parts };
}

function describePart(tensor: TensorRef): NativePart {
  const elements = tensor.shape.reduce((product, size) => product * size, 1);
  if (tensor.kind === 'file') {
    const { kind, path, offset, dtype } = tensor;
    return { kind, elements, path, offset, dtype };
  }
  if (tensor.kind === 'computed') {
    return { kind: tensor.kind, elements, read: () => tensor.read() };
  }
  if (tensor.kind === 'fp8') return { kind: 'computed', elements, read: () => readTensor(tensor) };
  if (tensor.kind === 'quantized') {
    const { kind, storage } = tensor;
    return { kind, elements, storage, read: () => tensor.read() };
  }
  const { kind, seed, mean, scale } = tensor;
  return { kind, elements, seed, mean, scale };
}

/** What matrices and KV cache are kept in, most columns first. */
function describeStorage({ weights, dtype, kvDtype }: NativeConfig): string {
  const elements = new Map<string, number>();
  for (const { layout, integer, experts, n, k } of weights) {
    if (layout === 'vector') continue;
    const name = integer ? schemeName(integer) : dtype;
    elements.set(name, (elements.get(name) ?? 0) + experts * n * k);
  }
  const names = [...elements].sort(([, a], [, b]) => b - a).map(([name]) => name);
  if (names.length === 1 && names[0] === kvDtype) return `weights and KV cache in ${kvDtype}`;
  return `weights in ${names.join(' and ')}, KV cache in ${kvDtype}`;
}

/** Names weights that two uses forced to be packed in two ways. */
function describeCopies(weights: readonly NativeWeight[]): string {
  const names = weights.map(({ name }) => name);
  const twice = names.filter((name, index) => names.indexOf(name) !== index);
  return twice.length === 0 ? '' : `, kept twice: ${twice.join(', ')}`;
}

export type { CpuIsa };
