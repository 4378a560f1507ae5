/**
 * The flags that say which model runs and how: one table, from which every command that runs a model
 * takes what it has. They are named as vLLM names them, and as the engine's options are, in kebab case.
 */
import { KV_CACHE_DTYPES } from '../backend/backend.js';
import { CPU_ISAS } from '../backend/cpu/native.js';
import { DEVICES } from '../backend/load-backend.js';
import { SCHEDULING_POLICIES } from '../engine/policy.js';
import { InvalidParameterError } from '../errors.js';
import { type FlagTable, UsageError } from './flag.js';
import { bytes, choice, integer, number, string, toggle } from './kinds.js';

const MODEL = 'Model';
const ENGINE = 'Engine';

export const DTYPES = ['auto', 'float32', 'float16', 'bfloat16'] as const;

export const MODEL_FLAGS = {
  dtype: choice({
    group: MODEL,
    help: 'What matrices and the KV cache are kept in; auto is what the checkpoint has.',
    of: DTYPES,
    default: 'auto',
  }),
  quantization: string({
    group: MODEL,
    help: 'Keep matrices as integers: int8 or int4, with -g32, -g64, -g128 for groups, -asym for offsets; or fp8 (cuda).',
    placeholder: 'SCHEME',
  }),
  'quantization-overrides': string({
    group: MODEL,
    help: 'Schemes of single weights, or float; * is any text: *.down_proj=int8,lm_head=float.',
    placeholder: 'PATTERN=SCHEME,...',
  }),
  'load-format': choice({
    group: MODEL,
    help: 'dummy makes random weights from config.json alone.',
    of: ['auto', 'safetensors', 'dummy'],
    default: 'auto',
  }),
  'max-model-len': integer({
    group: MODEL,
    help: 'Tokens of prompt and answer together.',
    min: 1,
    shownDefault: "the model's own limit",
  }),
} as const;

export const ENGINE_FLAGS = {
  'max-num-seqs': integer({
    group: ENGINE,
    help: 'Sequences in one step.',
    min: 1,
    shownDefault: '256; cuda: 512',
  }),
  'max-num-batched-tokens': integer({
    group: ENGINE,
    help: 'Tokens in one step.',
    min: 1,
    shownDefault: '2048; cuda: 8192',
  }),
  'block-size': integer({
    group: ENGINE,
    help: 'Tokens in a block of the KV cache, a multiple of 16.',
    min: 1,
    default: 16,
  }),
  'kv-cache-memory': bytes({
    group: ENGINE,
    help: 'Memory of the KV cache: 4GiB, 512MiB or bytes.',
    shownDefault: 'what the model leaves of half the free memory; cuda: of its share',
  }),
  'gpu-memory-utilization': number({
    group: ENGINE,
    help: "With cuda: share of the GPU's memory that all programs on it may take.",
    above: 0,
    max: 1,
    placeholder: 'SHARE',
    shownDefault: '0.92',
  }),
  'kv-cache-dtype': choice({
    group: ENGINE,
    help: 'What keys and values are kept in; auto is what matrices are, int8 is not for cuda, fp8 only.',
    of: KV_CACHE_DTYPES,
    default: 'auto',
  }),
  'enable-prefix-caching': toggle({
    group: ENGINE,
    help: 'Compute shared beginnings of prompts anew for each request.',
    default: true,
  }),
  'scheduling-policy': choice({
    group: ENGINE,
    help: 'priority serves requests with a lower `priority` first.',
    of: SCHEDULING_POLICIES,
    default: 'fcfs',
  }),
  'max-num-queued-reqs': integer({
    group: ENGINE,
    help: 'Requests waiting before further ones get 429.',
    min: 1,
    shownDefault: 'unlimited',
  }),
  'max-num-queued-tokens': integer({
    group: ENGINE,
    help: 'Prompt tokens waiting before further requests get 429.',
    min: 1,
    shownDefault: 'unlimited',
  }),
  seed: integer({
    group: ENGINE,
    help: 'Seed of dummy weights.',
    min: Number.MIN_SAFE_INTEGER,
    default: 0,
  }),
  device: choice({
    group: ENGINE,
    help: 'Executor: cuda is an NVIDIA GPU (npm run build:cuda), reference is slow plain TypeScript.',
    of: DEVICES,
    default: 'cpu',
  }),
  'enforce-eager': toggle({
    group: ENGINE,
    help: 'With cuda: launch every operation anew, replay no CUDA graphs.',
    default: false,
  }),
  threads: integer({
    group: ENGINE,
    help: 'With cpu: compute threads.',
    min: 1,
    shownDefault: 'all cores',
  }),
  'cpu-isa': choice({
    group: ENGINE,
    help: 'With cpu: instruction set to use.',
    of: CPU_ISAS,
    shownDefault: 'the best this machine has',
  }),
} as const;

/** Of commands that measure what is lost before they run a model. */
export const QUALITY_FLAGS = {
  'max-quality-loss': string({
    group: MODEL,
    help: 'kl=NATS or ppl=PERCENT%: first measure what was lost and refuse where it is more. Both models are in memory for it.',
    placeholder: 'LIMIT',
  }),
  'quality-base': string({
    group: MODEL,
    help: 'What --max-quality-loss compares with.',
    placeholder: 'BASE',
    shownDefault: 'PATH without --quantization',
  }),
  'quality-text': string({
    group: MODEL,
    help: 'Text it measures on: plain, or .jsonl with a "text" on each line.',
    placeholder: 'FILE',
    shownDefault: 'the bundled stories',
  }),
} as const;

/**
 * Throws the error on: an option that the engine refuses is a wrong command line, and is named as it
 * was written there.
 */
export function asUsage(table: FlagTable, error: unknown): never {
  if (!(error instanceof InvalidParameterError) || error.param === undefined) throw error;
  const flag = error.param.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
  if (!Object.hasOwn(table, flag)) throw error;
  // The word, not a part of a path or what was received.
  const word = new RegExp(`(?<![\\w./"-])${error.param}(?!\\w|[./]\\w)`, 'g');
  throw new UsageError(error.message.replace(word, `--${flag}`));
}
