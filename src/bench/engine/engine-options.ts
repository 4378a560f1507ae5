/**
 * The flags of `millrace bench engine`: vLLM's `bench latency` and `bench throughput` where they have
 * one, and the engine's own where it has.
 */
import type { KvCacheDtype } from '../../backend/backend.js';
import type { DeviceOptions } from '../../backend/load-backend.js';
import { ENGINE_FLAGS, MODEL_FLAGS, QUALITY_FLAGS } from '../../flags/engine-flags.js';
import { expected, pick, UsageError } from '../../flags/flag.js';
import { flagHelp } from '../../flags/flag-help.js';
import { HELP_FLAG, integer, integers, outputFile, toggle } from '../../flags/kinds.js';
import type { ParsedFlags } from '../../flags/parse-flags.js';
import type { LoadModelOptions } from '../../model/load-model.js';
import type { GridOptions } from './grid.js';

export interface BenchEngineOptions
  extends GridOptions,
    Required<Pick<LoadModelOptions, 'dtype' | 'loadFormat'>>,
    Pick<LoadModelOptions, 'quantization' | 'quantizationOverrides'>,
    DeviceOptions {
  model: string;
  maxNumBatchedTokens: number;
  blockSize: number;
  kvCacheDtype: KvCacheDtype;
  breakdown: boolean;
  outputJson?: string;
}

const GRID = 'Grid';
const OTHER = 'Other';

export const BENCH_ENGINE_FLAGS = {
  'batch-sizes': integers({
    group: GRID,
    help: 'Requests at once.',
    min: 1,
    default: [1, 4, 16, 32, 64],
  }),
  'input-lens': integers({ group: GRID, help: 'Tokens of each prompt.', min: 1, default: [128] }),
  'output-len': integer({
    group: GRID,
    help: 'Tokens each request generates.',
    min: 1,
    default: 32,
  }),
  'num-iters': integer({
    group: GRID,
    help: 'Measured repetitions of each point.',
    min: 1,
    default: 3,
  }),
  'num-iters-warmup': integer({
    group: GRID,
    help: 'Repetitions before that do not count.',
    default: 1,
  }),
  seed: integer({ group: GRID, help: 'Of prompts and of dummy weights.', default: 0 }),
  ...pick(MODEL_FLAGS, 'dtype', 'quantization', 'quantization-overrides', 'load-format'),
  ...QUALITY_FLAGS,
  ...pick(ENGINE_FLAGS, 'max-num-batched-tokens', 'block-size', 'kv-cache-dtype'),
  ...pick(ENGINE_FLAGS, 'device', 'enforce-eager', 'threads', 'cpu-isa'),
  breakdown: toggle({ group: OTHER, help: 'Rates only.', default: true }),
  'output-json': outputFile({ group: OTHER, help: 'Write the figures.' }),
  help: HELP_FLAG,
} as const;

const USAGE = 'Usage: millrace bench engine PATH [options]';

export const BENCH_ENGINE_HELP = `${USAGE}

Measures the engine without HTTP on the model in the folder or GGUF file PATH, each step by itself:
prompts of random tokens, all at once, greedy. Prints prefill and decode rates over a grid, and where
the time of a step goes beside the roofline.

${flagHelp(BENCH_ENGINE_FLAGS)}`;

/** Throws UsageError that names the flag. */
export function benchEngineOptions({
  values,
  positionals,
}: ParsedFlags<typeof BENCH_ENGINE_FLAGS>): BenchEngineOptions {
  if (positionals.length !== 1) throw new UsageError(`${USAGE}; --help tells the options`);
  const batchSizes = values['batch-sizes'];
  const largest = Math.max(...batchSizes);
  const maxNumBatchedTokens = values['max-num-batched-tokens'] ?? Math.max(2048, largest);
  if (largest > maxNumBatchedTokens) {
    const what = `at least the largest batch size (${largest})`;
    throw expected(what, 'max-num-batched-tokens', `${maxNumBatchedTokens}`);
  }
  const blockSize = values['block-size'];
  if (blockSize % 16 !== 0) throw expected('multiple of 16', 'block-size', `${blockSize}`);
  return {
    model: positionals[0],
    batchSizes,
    inputLens: values['input-lens'],
    outputLen: values['output-len'],
    numIters: values['num-iters'],
    numItersWarmup: values['num-iters-warmup'],
    seed: values.seed,
    maxNumBatchedTokens,
    blockSize,
    kvCacheDtype: values['kv-cache-dtype'],
    loadFormat: values['load-format'],
    dtype: values.dtype,
    quantization: values.quantization,
    quantizationOverrides: values['quantization-overrides'],
    device: values.device,
    enforceEager: values['enforce-eager'],
    threads: values.threads,
    cpuIsa: values['cpu-isa'],
    breakdown: values.breakdown,
    outputJson: values['output-json'],
  };
}
