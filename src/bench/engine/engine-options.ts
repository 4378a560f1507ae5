/** The flags of `millrace bench engine`: vLLM's `bench latency` and `bench throughput` where they have one. */
import { parseArgs } from 'node:util';
import { CPU_ISAS, type CpuIsa } from '../../backend/cpu/native.js';
import { InvalidParameterError } from '../../errors.js';
import type { LoadModelOptions } from '../../model/load-model.js';
import type { GridOptions } from './grid.js';

export interface BenchEngineOptions
  extends GridOptions,
    Required<Pick<LoadModelOptions, 'dtype' | 'loadFormat'>> {
  model: string;
  maxNumBatchedTokens: number;
  blockSize: number;
  threads?: number;
  isa?: CpuIsa;
  breakdown: boolean;
  outputJson?: string;
}

export const BENCH_ENGINE_HELP = `millrace bench engine PATH [flags]

Measures the engine on the CPU without HTTP: prompts of random tokens, all at once, greedy. Prints
prefill and decode rates over a grid, and where the time of a step goes beside the roofline.

  --batch-sizes N,N,...      requests at once, default 1,4,16,32,64
  --input-lens N,N,...       tokens of each prompt, default 128
  --output-len N             tokens each request generates, default 32
  --num-iters N              measured repetitions of each point, default 3
  --num-iters-warmup N       repetitions before that do not count, default 1
  --load-format F            auto, safetensors or dummy (needs config.json only)
  --dtype D                  auto, float32, float16 or bfloat16
  --seed N                   of prompts and dummy weights, default 0
  --max-num-batched-tokens N tokens in one step, default 2048
  --block-size N             tokens in a block of the KV cache, default 16
  --threads N                default: all cores
  --cpu-isa ISA              ${CPU_ISAS.join(', ')}; default: the best this machine has
  --no-breakdown             rates only
  --output-json FILE
`;

/** Throws InvalidParameterError that names the flag. */
export function parseBenchEngineOptions(argv: readonly string[]): BenchEngineOptions {
  const { values, positionals } = parse(argv);
  const [model, stray] = positionals;
  if (model === undefined) {
    throw InvalidParameterError.expected('path of a checkpoint', 'bench engine', undefined);
  }
  if (stray !== undefined) throw InvalidParameterError.expected('one path', 'bench engine', stray);
  const batchSizes = integers('batch-sizes', values['batch-sizes'] ?? '1,4,16,32,64');
  const maxNumBatchedTokens = integer(
    'max-num-batched-tokens',
    values['max-num-batched-tokens'] ?? '2048',
  );
  const largest = Math.max(...batchSizes);
  if (largest > maxNumBatchedTokens) {
    const what = `at least the largest batch size (${largest})`;
    throw InvalidParameterError.expected(what, 'max-num-batched-tokens', maxNumBatchedTokens);
  }
  const blockSize = integer('block-size', values['block-size'] ?? '16');
  if (blockSize % 16 !== 0) {
    throw InvalidParameterError.expected('multiple of 16', 'block-size', blockSize);
  }
  return {
    model,
    batchSizes,
    inputLens: integers('input-lens', values['input-lens'] ?? '128'),
    outputLen: integer('output-len', values['output-len'] ?? '32'),
    numIters: integer('num-iters', values['num-iters'] ?? '3'),
    numItersWarmup: integer('num-iters-warmup', values['num-iters-warmup'] ?? '1', 0),
    seed: integer('seed', values.seed ?? '0', 0),
    maxNumBatchedTokens,
    blockSize,
    // loadModel and the backend check these themselves.
    loadFormat: (values['load-format'] ?? 'auto') as BenchEngineOptions['loadFormat'],
    dtype: (values.dtype ?? 'auto') as BenchEngineOptions['dtype'],
    threads: values.threads === undefined ? undefined : integer('threads', values.threads),
    isa: values['cpu-isa'] as CpuIsa | undefined,
    breakdown: !values['no-breakdown'],
    outputJson: values['output-json'],
  };
}

function parse(argv: readonly string[]) {
  const text = { type: 'string' } as const;
  try {
    return parseArgs({
      args: [...argv],
      allowPositionals: true,
      options: {
        'batch-sizes': text,
        'input-lens': text,
        'output-len': text,
        'num-iters': text,
        'num-iters-warmup': text,
        'load-format': text,
        dtype: text,
        seed: text,
        'max-num-batched-tokens': text,
        'block-size': text,
        threads: text,
        'cpu-isa': text,
        'no-breakdown': { type: 'boolean' },
        'output-json': text,
      },
    });
  } catch (error) {
    throw new InvalidParameterError((error as Error).message, { param: 'bench engine' });
  }
}

function integers(name: string, text: string): number[] {
  return text.split(',').map((part) => integer(name, part));
}

function integer(name: string, text: string, min = 1): number {
  const value = /^\d+$/.test(text.trim()) ? Number(text) : Number.NaN;
  if (Number.isSafeInteger(value) && value >= min) return value;
  throw InvalidParameterError.expected(`integer of at least ${min}`, name, text);
}
