/** The flags of `millrace serve`, named as vLLM names them. */
import { ENGINE_FLAGS, MODEL_FLAGS, QUALITY_FLAGS } from '../flags/engine-flags.js';
import {
  bytes,
  choice,
  HELP_FLAG,
  integer,
  seconds,
  string,
  strings,
  toggle,
} from '../flags/kinds.js';
import { LOG_LEVELS } from '../server/log.js';
import { DEFAULT_MAX_BODY_SIZE } from '../server/server.js';

const MODEL = 'Model';
const SERVER = 'Server';

export const SERVE_FLAGS = {
  'served-model-name': strings({
    group: MODEL,
    help: 'Name the model answers to; responses carry the first.',
    placeholder: 'NAME',
    shownDefault: 'PATH',
  }),
  ...MODEL_FLAGS,
  ...QUALITY_FLAGS,
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
  ...ENGINE_FLAGS,
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
  help: HELP_FLAG,
} as const;
