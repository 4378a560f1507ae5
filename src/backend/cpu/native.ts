/** The native addon, typed: native/addon.cpp. Nothing else loads it. */
import { createRequire } from 'node:module';
import { arch, platform } from 'node:process';
import { fileURLToPath } from 'node:url';
import { NativeError } from '../../errors.js';
import type { DType, IntegerStorage, QuantizedMatrix } from '../../model/weights.js';
import type { StepBatch, StepResult } from '../backend.js';
import type { KvDtype } from '../kv-dtype.js';
import type { WeightLayout } from './lower.js';
import type { Buffer } from './plan-memory.js';

/** Instruction sets, slowest first. */
export const CPU_ISAS = ['portable', 'avx2', 'avx512', 'avx512bf16'] as const;
export type CpuIsa = (typeof CPU_ISAS)[number];

export type NativePart =
  | { kind: 'file'; elements: number; path: string; offset: number; dtype: DType }
  | { kind: 'dummy'; elements: number; seed: number; mean: number; scale: number }
  /** Both `read` are called once, at load; what they return is copied. */
  | { kind: 'computed'; elements: number; read: () => Float32Array }
  | {
      kind: 'quantized';
      elements: number;
      storage: IntegerStorage;
      read: () => QuantizedMatrix;
    };

export interface NativeWeight {
  name: string;
  layout: WeightLayout;
  n: number;
  k: number;
  experts: number;
  /** Absent: floats of the config's dtype. */
  integer?: IntegerStorage;
  parts: NativePart[];
}

export interface NativeConfig {
  isa: CpuIsa;
  threads: number;
  dtype: DType;
  kvDtype: KvDtype;
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
    kvLayers: readonly { kvHeads: number; headDim: number }[];
    logits: { buffer: number; column: number; width: number };
    workspaceBytes: number;
  };
  weights: NativeWeight[];
}

/** Opaque; a closed one is refused by every function. */
export type NativeRunner = object;

export interface Native {
  /** What this machine can run, slowest first. */
  cpuFeatures(): { name: CpuIsa; wantsBf16: boolean }[];
  kvBytesPerBlock(
    layers: readonly { kvHeads: number; headDim: number }[],
    dtype: KvDtype,
    blockSize: number,
  ): number;
  createRunner(config: NativeConfig, onProgress?: (share: number) => void): NativeRunner;
  step(runner: NativeRunner, batch: StepBatch, result: StepResult): void;
  memory(runner: NativeRunner): { weights: number; workspace: number; kvCache: number };
  /** Fills `out` with seconds and calls of each operation code, then of sampling and batch checks. */
  profile(runner: NativeRunner, out: Float64Array): void;
  close(runner: NativeRunner): void;
}

let loaded: Native | undefined;

/** The addon. Throws `NativeError`, which says what to type, if it is missing or cannot run. */
export function native(): Native {
  loaded ??= load();
  return loaded;
}

function load(): Native {
  // From dist/src/backend/cpu/ to the root of the package.
  const path = fileURLToPath(new URL('../../../../build/millrace.node', import.meta.url));
  try {
    return createRequire(import.meta.url)(path) as Native;
  } catch (cause) {
    const missing = (cause as NodeJS.ErrnoException).code === 'MODULE_NOT_FOUND';
    throw new NativeError(
      `The native CPU code ${missing ? 'has not been built' : `does not load (${(cause as Error).message})`} ` +
        `for ${platform}-${arch}. Type \`npm run build\` in the package's directory; it needs g++.`,
      { cause },
    );
  }
}
