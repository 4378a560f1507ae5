/** The flags of `millrace serve`, named as vLLM names them. */
import { KV_CACHE_DTYPES } from '../backend/backend.js';
import { CPU_ISAS } from '../backend/cpu/native.js';
import { DEVICES } from '../engine/engine-options.js';
import { SCHEDULING_POLICIES } from '../engine/policy.js';
import { LOG_LEVELS } from '../server/log.js';
import { DEFAULT_MAX_BODY_SIZE } from '../server/server.js';
import { bytes, choice, integer, seconds, string, strings, toggle } from './flags.js';

const MODEL = 'Model';
const ENGINE = 'Engine';
const SERVER = 'Server';
const OTHER = 'Other';

export const SERVE_FLAGS = {
  'served-model-name': strings({
    group: MODEL,
    help: 'Name the model answers to; responses carry the first.',
    placeholder: 'NAME',
    shownDefault: 'PATH',
  }),
  dtype: choice({
    group: MODEL,
    help: 'What matrices and the KV cache are kept in; auto is what the checkpoint has.',
    of: ['auto', 'float32', 'float16', 'bfloat16'],
    default: 'auto',
  }),
  quantization: string({
    group: MODEL,
    help: 'Keep matrices as integers: int8 or int4, with -g32, -g64, -g128 for groups, -asym for offsets.',
    placeholder: 'SCHEME',
  }),
  'quantization-overrides': string({
    group: MODEL,
    help: 'Schemes of single weights, or float: *.down_proj.weight=int8,lm_head.weight=float.',
    placeholder: 'PATTERN=SCHEME,...',
  }),
  'load-format': choice({
    group: MODEL,
    help: 'dummy makes random weights from config.json alone.',
    of: ['auto', 'safetensors', 'dummy'],
    default: 'auto',
  }),
  'max-quality-loss': string({
    group: MODEL,
    help: 'kl=NATS or ppl=PERCENT%: before serving, measure what was lost and refuse where it is more. Both models are in memory for it.',
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
  'max-model-len': integer({
    group: MODEL,
    help: 'Tokens of prompt and answer together.',
    min: 1,
    shownDefault: "the model's own limit",
  }),
  'skip-tokenizer-init': toggle({
    group: MODEL,
    help: 'Load no tokenizer: token ids in and out only.',
    default: false,
  }),
  'chat-template': string({
    group: MODEL,
    help: "File with a Jinja chat template to use in place of the checkpoint's.",
    placeholder: 'FILE',
  }),
  'generation-config': choice({
    group: MODEL,
    help: 'Where sampling defaults come from: auto is generation_config.json, vllm is neutral ones.',
    of: ['auto', 'vllm'],
    default: 'auto',
  }),
  'max-num-seqs': integer({
    group: ENGINE,
    help: 'Sequences in one step.',
    min: 1,
    shownDefault: '256',
  }),
  'max-num-batched-tokens': integer({
    group: ENGINE,
    help: 'Tokens in one step.',
    min: 1,
    shownDefault: '2048',
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
    shownDefault: 'what the model leaves of half the free memory',
  }),
  'kv-cache-dtype': choice({
    group: ENGINE,
    help: 'What keys and values are kept in; auto is what matrices are.',
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
    help: 'Executor: cpu is native code, reference is slow plain TypeScript.',
    of: DEVICES,
    default: 'cpu',
  }),
  threads: integer({
    group: ENGINE,
    help: 'Compute threads.',
    min: 1,
    shownDefault: 'all cores',
  }),
  'cpu-isa': choice({
    group: ENGINE,
    help: 'Instruction set to use.',
    of: CPU_ISAS,
    shownDefault: 'the best this machine has',
  }),
  host: string({
    group: SERVER,
    help: 'Address to listen on. Not all interfaces by default, because without --api-key everybody who reaches the port may use it.',
    placeholder: 'ADDRESS',
    default: '127.0.0.1',
  }),
  port: integer({
    group: SERVER,
    help: 'Port to listen on; 0 picks a free one.',
    max: 65_535,
    default: 8000,
  }),
  'api-key': strings({
    group: SERVER,
    help: 'Key that clients must send; covers every route but /health.',
    placeholder: 'KEY',
  }),
  'max-body-size': bytes({
    group: SERVER,
    help: 'Largest request body: 8MiB, 512KiB or bytes.',
    default: DEFAULT_MAX_BODY_SIZE,
    shownDefault: '8MiB',
  }),
  'trust-request-chat-template': toggle({
    group: SERVER,
    help: 'Run chat templates that requests bring; a template is a program.',
    default: false,
  }),
  'shutdown-timeout': seconds({
    group: SERVER,
    help: 'How long SIGTERM and SIGINT wait for requests in flight; a second signal does not.',
    default: 30_000,
  }),
  'log-level': choice({
    group: SERVER,
    help: 'JSON lines on stderr; info has one line a request.',
    of: LOG_LEVELS,
    default: 'warn',
  }),
  help: toggle({ group: OTHER, help: 'This text.', default: false }),
} as const;
