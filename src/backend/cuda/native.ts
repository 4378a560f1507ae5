/** The CUDA addon, typed: native/addon_cuda.cpp. Nothing else loads it. */
import { createRequire } from 'node:module';
import { arch, platform } from 'node:process';
import { fileURLToPath } from 'node:url';
import { NativeError } from '../../errors.js';
import type { DType, QuantizedMatrix } from '../../model/weights.js';
import type { StepBatch, StepResult } from '../backend.js';
import type { WeightLayout } from './lower.js';
import type { Buffer } from './plan-memory.js';

export type NativePart =
  | { kind: 'file'; elements: number; path: string; offset: number; dtype: DType }
  | { kind: 'dummy'; elements: number; seed: number; mean: number; scale: number }
  /** Each `read` is called once, at load; what they return is copied. */
  | { kind: 'computed'; elements: number; read: () => Float32Array }
  /** Of a weight in fp8, its codes as they are in a file, with a scale a row. */
  | { kind: 'fp8'; elements: number; path: string; offset: number; read: () => Float32Array }
  /** Of a weight in 4 bits, in its groups. */
  | { kind: 'codes'; elements: number; read: () => QuantizedMatrix };

export interface NativeWeight {
  name: string;
  layout: WeightLayout;
  n: number;
  k: number;
  experts: number;
  /** Kept in 4 bits; absent: floats. `columns` as in `QuantizedTensor`. */
  int4?: { group: 32 | 64 | 128; offsets: boolean; columns?: Int32Array };
  /** Kept as 8-bit floats with a scale a row. */
  fp8: boolean;
  parts: NativePart[];
}

export interface NativeConfig {
  /** Index of the GPU. */
  device: number;
  dtype: DType;
  limits: {
    blockSize: number;
    numBlocks: number;
    maxTokens: number;
    maxSeqs: number;
    maxModelLen: number;
    rowTile: number;
    keepLogits: boolean;
  };
  program: {
    buffers: readonly Buffer[];
    tokenCode: Float64Array;
    rowCode: Float64Array;
    ropeTables: { invFreq: Float64Array; scale: number }[];
    kvLayers: readonly { kvHeads: number; headDim: number; fp8: boolean }[];
    logits: { buffer: number; column: number; width: number };
    activationBytes: number;
  };
  weights: NativeWeight[];
  enforceEager: boolean;
  profiling: boolean;
  /** Kernels are set up while those before them end, where the GPU can do that. */
  overlap: boolean;
  /** Where cuBLASLt may be, best first. */
  libraries: string[];
}

export interface CudaDevice {
  name: string;
  /** Compute capability. */
  major: number;
  minor: number;
  sms: number;
  /** Bytes of memory. */
  total: number;
  /** CUDA versions that the driver knows and that the addon was built with: 1000 * major + 10 * minor. */
  driver: number;
  runtime: number;
}

export interface NativeMemory {
  weights: number;
  workspace: number;
  kvCache: number;
}

/** Opaque; a closed one is refused by every function. */
export type NativeRunner = object;

export interface Native {
  /** Throws where there is no driver or no GPU. */
  devices(): CudaDevice[];
  /** Bytes of a GPU that can be had. */
  freeMemory(device: number): number;
  /** What `createRunner` would allocate. */
  plan(config: NativeConfig): NativeMemory;
  createRunner(config: NativeConfig, onProgress?: (share: number) => void): NativeRunner;
  submit(runner: NativeRunner, batch: StepBatch): void;
  collect(runner: NativeRunner, result: StepResult): void;
  memory(runner: NativeRunner): NativeMemory;
  /** `overhead`: bytes of the GPU that libraries and graphs took besides. */
  about(runner: NativeRunner): {
    graphs: number;
    library: string;
    overhead: number;
    /** Seconds it took to choose algorithms. */
    tuning: number;
    /** Seconds of all products in steps of so many rows, 0 if unknown; chains with what lies between. */
    products: { rows: number; seconds: number; chains: number }[];
  };
  /** Fills `out` with seconds and calls of each operation code, then of sampling, inputs and results. */
  profile(runner: NativeRunner, out: Float64Array): void;
  close(runner: NativeRunner): void;
}

let loaded: Native | undefined;

/** The addon. Throws `NativeError`, which says what to type, if it is missing or does not load. */
export function native(): Native {
  loaded ??= load();
  return loaded;
}

/** The GPUs of this machine. Throws `NativeError`, which says what is missing. */
export function devices(): CudaDevice[] {
  const addon = native();
  try {
    return addon.devices();
  } catch (cause) {
    throw new NativeError(`Device cuda cannot be used: ${(cause as Error).message}.`, { cause });
  }
}

function load(): Native {
  // From dist/src/backend/cuda/ to the root of the package.
  const path = fileURLToPath(new URL('../../../../build/millrace-cuda.node', import.meta.url));
  try {
    return createRequire(import.meta.url)(path) as Native;
  } catch (cause) {
    const missing = (cause as NodeJS.ErrnoException).code === 'MODULE_NOT_FOUND';
    throw new NativeError(
      `The CUDA code ${missing ? 'has not been built' : `does not load (${(cause as Error).message})`} ` +
        `for ${platform}-${arch}. Type \`npm run build:cuda\` in the package's directory; ` +
        "it needs the CUDA toolkit's nvcc (12.4 or later).",
      { cause },
    );
  }
}
