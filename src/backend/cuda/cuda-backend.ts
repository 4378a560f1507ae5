/** The CUDA executor: lowers the program, hands it to the native code, submits and collects steps. */
import { InvalidParameterError, MemoryPlanError, ModelError, NativeError } from '../../errors.js';
import type { Program } from '../../model/program.js';
import { BYTES, type WeightSource } from '../../model/weights.js';
import { allocateResult } from '../allocate-result.js';
import type { Backend, ModelRunner, RunnerOptions, StepBatch, StepResult } from '../backend.js';
import { checkBatch } from '../check-batch.js';
import { describeWidened } from '../describe-widened.js';
import { checkKvCacheDtype, type KvDtype } from '../kv-dtype.js';
import { describeStorage, describeWeights, type Fp8Support } from './describe-weights.js';
import { encode, OP_CODES, operand } from './encode.js';
import { cublasLibraries } from './libraries.js';
import { lower } from './lower.js';
import {
  type CudaDevice,
  devices,
  type NativeConfig,
  type NativeRunner,
  native,
} from './native.js';
import { planMemory } from './plan-memory.js';

export interface CudaBackendOptions {
  /** Launches every operation of a step anew instead of replaying a graph. Default false. */
  enforceEager?: boolean;
  /** Times every operation on the GPU for `profile`: no graphs, and steps take longer. Default false. */
  profiling?: boolean;
  /** Sets kernels up while those before them end, where the GPU can do that. Default true. */
  overlapLaunches?: boolean;
}

export interface CudaRunner extends ModelRunner {
  submit(batch: StepBatch): void;
  collect(): StepResult;
}

export interface CudaBackend extends Backend {
  profiling(): CudaBackend;
  memory(): { total: number; free: number };
  fixedBytes(
    program: Program,
    weights: WeightSource,
    limits: Omit<RunnerOptions, 'numBlocks'>,
  ): { weights: number; workspace: number; reserve: number };
  createRunner(
    program: Program,
    weights: WeightSource,
    options: RunnerOptions,
    onProgress?: (share: number) => void,
  ): CudaRunner;
}

/** Index of the GPU among those that CUDA_VISIBLE_DEVICES leaves. */
const DEVICE = 0;

/** Wanted rows whose logits are in memory together; no graph is made for more. */
const MAX_ROW_TILE = 512;
const MIN_ROW_TILE = 64;

/** What the driver takes for code and graphs besides what is asked for. */
const RESERVE = 512 * 2 ** 20;

/**
 * Throws `NativeError` if the addon is missing or there is no GPU that it can run on.
 *
 * @example
 * const runner = createCudaBackend().createRunner(program, weights, options);
 */
export function createCudaBackend(options: CudaBackendOptions = {}): CudaBackend {
  const { enforceEager = false, profiling = false, overlapLaunches = true } = options;
  const device = devices()[DEVICE];
  if (device.major < 8) {
    throw new NativeError(
      `${device.name} has compute capability ${capability(device)}; device cuda needs 8.0 (Ampere) or later.`,
    );
  }
  const modes = { enforceEager, profiling, overlapLaunches };
  return {
    name: 'cuda',
    memory: () => ({ total: device.total, free: native().freeMemory(DEVICE) }),
    kvBytesPerBlock,
    fixedBytes(program, weights, limits) {
      const config = nativeConfig({
        program,
        weights,
        options: { ...limits, numBlocks: 1 },
        device,
        ...modes,
      });
      const { weights: weightBytes, workspace } = native().plan(config);
      return { weights: weightBytes, workspace, reserve: RESERVE };
    },
    createRunner: (program, weights, runnerOptions, onProgress) =>
      createRunner({ program, weights, options: runnerOptions, device, ...modes }, onProgress),
    profiling: () => createCudaBackend({ ...options, profiling: true }),
  };
}

/** Keys and values of one block over all layers; heads are padded to multiples of 16 columns. */
export function kvBytesPerBlock(program: Program, blockSize: number, dtype: KvDtype): number {
  if (dtype === 'int8') throw InvalidParameterError.expected('no int8', 'dtype', dtype);
  const bytes = dtype === 'fp8' ? 1 : BYTES[dtype];
  return program.kvLayers.reduce((sum, { kvHeads, headDim }) => {
    const columns = Math.ceil(headDim / 16) * 16;
    return sum + 2 * kvHeads * blockSize * columns * bytes;
  }, 0);
}

interface RunnerRequest {
  program: Program;
  weights: WeightSource;
  options: RunnerOptions;
  device: CudaDevice;
  enforceEager: boolean;
  profiling: boolean;
  overlapLaunches: boolean;
}

function createRunner(request: RunnerRequest, onProgress?: (share: number) => void): CudaRunner {
  const { program, options } = request;
  checkKvCacheDtype('cuda', options.kvCacheDtype);
  const config = nativeConfig(request);
  const handle = load(config, request, onProgress);
  const result = allocateResult(options.maxTokens, options.keepLogits ? program.vocabSize : 0);
  let previousRows = 0;
  const runner: CudaRunner = {
    memory: native().memory(handle),
    description: describe(request, handle, config),
    overlaps: true,
    submit(batch) {
      checkBatch(program, options, batch, previousRows);
      native().submit(handle, batch);
      previousRows = batch.numRows;
    },
    collect() {
      native().collect(handle, result);
      return result;
    },
    step(batch) {
      runner.submit(batch);
      return runner.collect();
    },
    profile: request.profiling ? profile : undefined,
    close: () => native().close(handle),
  };
  return runner;

  /** `batch` is inputs and results. */
  function profile() {
    const names = [...OP_CODES, 'sample', 'batch'];
    const numbers = new Float64Array(2 * names.length);
    native().profile(handle, numbers);
    return Object.fromEntries(
      names.map((name, i) => [name, { seconds: numbers[2 * i], calls: numbers[2 * i + 1] }]),
    );
  }
}

function load(
  config: NativeConfig,
  request: RunnerRequest,
  onProgress?: (share: number) => void,
): NativeRunner {
  try {
    return native().createRunner(config, onProgress);
  } catch (cause) {
    const { code, message } = cause as NodeJS.ErrnoException;
    const { device } = request;
    if (code === 'ERR_NATIVE_MEMORY') {
      const { weights, workspace, kvCache } = native().plan(config);
      throw new MemoryPlanError(
        `${device.name} refused the memory for weights (${mebibytes(weights)}), workspace ` +
          `(${mebibytes(workspace)}) and ${config.limits.numBlocks} KV blocks (${mebibytes(kvCache)}); ` +
          `${mebibytes(native().freeMemory(DEVICE))} are free. Lower gpu-memory-utilization, the KV cache ` +
          'memory or the tokens in a step, or stop other programs on the GPU',
        { cause },
      );
    }
    if (code === 'ERR_NATIVE_DEVICE')
      throw new NativeError(`${message}${fp8Advice(message, request)}`, { cause });
    if (code === 'ERR_NATIVE') throw new ModelError(message, { cause });
    throw cause;
  }
}

/** An old cuBLASLt has no products of fp8, which nobody may have asked for. */
function fp8Advice(message: string, { program, weights }: RunnerRequest): string {
  const published = program.weights.some((weight) => {
    const storage = weights.storage(weight);
    return storage.kind === 'fp8' && storage.unasked;
  });
  return published && /products of fp8/.test(message)
    ? `. The checkpoint is in fp8; quantization-overrides '*=float' widens it`
    : '';
}

/** What the native code is told of a model: its lowered program, memory plan and weights. */
export function nativeConfig(request: RunnerRequest): NativeConfig {
  const { program, weights, options, device, enforceEager, profiling, overlapLaunches } = request;
  const { blockSize, numBlocks, maxTokens, maxSeqs, maxModelLen, keepLogits = false } = options;
  const lowered = lower(program);
  const rowTile = Math.min(maxTokens, Math.max(MIN_ROW_TILE, Math.min(maxSeqs, MAX_ROW_TILE)));
  const plan = planMemory(lowered, weights.dtype, maxTokens, rowTile);
  const [buffer, column, width] = operand(program.logits, plan);
  return {
    device: DEVICE,
    dtype: weights.dtype,
    limits: { blockSize, numBlocks, maxTokens, maxSeqs, maxModelLen, rowTile, keepLogits },
    program: {
      buffers: plan.buffers,
      tokenCode: encode(lowered.tokenOps, plan),
      rowCode: encode(lowered.rowOps, plan),
      ropeTables: program.ropeTables.map(({ invFreq, scale }) => ({
        invFreq: Float64Array.from(invFreq),
        scale,
      })),
      kvLayers: program.kvLayers.map((layer) => ({
        ...layer,
        fp8: options.kvCacheDtype === 'fp8',
      })),
      logits: { buffer, column, width },
      activationBytes: plan.bytes,
    },
    weights: describeWeights(lowered, weights, fp8Support(device)),
    ...{ enforceEager, profiling, overlap: overlapLaunches },
    libraries: cublasLibraries(Math.floor(device.runtime / 1000)),
  };
}

function describe(
  request: RunnerRequest,
  handle: NativeRunner,
  { weights, dtype, program }: NativeConfig,
): string {
  const { device } = request;
  const codes = new Set(weights.flatMap(({ name, int4, fp8 }) => (int4 || fp8 ? name : [])));
  const widened = describeWidened(request.program, request.weights, codes);
  const { graphs, library, overhead, tuning, products } = native().about(handle);
  const times = products
    .filter(({ seconds }) => seconds > 0)
    .map(({ rows, seconds, chains }) => {
      const norms = chains > 0 ? ` (${chains} chains, norms and gates included)` : '';
      return `, ${(1e3 * seconds).toFixed(2)} ms with ${rows} rows${norms}`;
    });
  const tuned = tuning > 0 ? `products tuned in ${tuning.toFixed(1)} s${times.join('')}, ` : '';
  const kvDtype = program.kvLayers.some(({ fp8 }) => fp8) ? 'fp8' : dtype;
  return (
    `cuda (${device.name}, compute capability ${capability(device)}, ${device.sms} SMs, ${library}, ` +
    `${graphs} ${graphs === 1 ? 'graph' : 'graphs'}, weights in ${describeStorage(weights, dtype)}${widened}, KV cache in ${kvDtype}, ${tuned}` +
    `${mebibytes(overhead)} of ${mebibytes(RESERVE)} reserved for code and graphs taken)`
  );
}

/** cuBLASLt has products with a scale for each row on 9.0; from 8.9 on it may. */
function fp8Support(device: CudaDevice): Fp8Support {
  const known = 10 * device.major + device.minor;
  return known < 89
    ? {
        refused: `${device.name} has compute capability ${capability(device)}; 8.9 is needed`,
        certain: false,
      }
    : { certain: device.major === 9 };
}

function capability({ major, minor }: CudaDevice): string {
  return `${major}.${minor}`;
}

function mebibytes(bytes: number): string {
  return `${Math.round(bytes / 2 ** 20)} MiB`;
}
