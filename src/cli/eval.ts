/** `millrace eval PATH --against BASE`: what a model has lost against another. */
import { writeFileSync } from 'node:fs';
import { KV_CACHE_DTYPES } from '../backend/backend.js';
import { evaluate } from '../quant/evaluate.js';
import { loadBackend, openModel, QUANT_DEVICES } from '../quant/load-runner.js';
import { parseQualityLimit, requireQuality } from '../quant/quality-limit.js';
import { describeEvaluation } from '../quant/report-evaluation.js';
import { BUNDLED_TEXT, readTexts, tokenSequences } from '../quant/texts.js';
import { loadTokenizer } from '../tokenizer/load-tokenizer.js';
import { choice, flagHelp, integer, parseFlags, string, toggle, UsageError } from './flags.js';
import { shareProgress } from './share-progress.js';

const MODEL = 'Model';
const TEXT = 'Text';
const OTHER = 'Other';
const DTYPES = ['auto', 'float32', 'float16', 'bfloat16'] as const;

const FLAGS = {
  against: string({
    group: MODEL,
    help: 'The model to compare with, such as the one that was quantized.',
    placeholder: 'BASE',
  }),
  quantization: string({
    group: MODEL,
    help: 'How PATH is quantized at load: int8, int4, with -g32, -g64, -g128 and -asym.',
    placeholder: 'SCHEME',
  }),
  'quantization-overrides': string({
    group: MODEL,
    help: 'PATTERN=SCHEME,... for single weights of PATH.',
    placeholder: 'LIST',
  }),
  'kv-cache-dtype': choice({
    group: MODEL,
    help: 'KV cache of PATH.',
    of: KV_CACHE_DTYPES,
    default: 'auto',
  }),
  dtype: choice({ group: MODEL, help: 'Float type of PATH.', of: DTYPES, default: 'auto' }),
  'base-dtype': choice({ group: MODEL, help: 'Float type of BASE.', of: DTYPES, default: 'auto' }),
  text: string({
    group: TEXT,
    help: 'Plain text, or .jsonl with a "text" on each line.',
    placeholder: 'FILE',
    shownDefault: 'the bundled stories',
  }),
  'max-tokens': integer({ group: TEXT, help: 'Tokens of it to use.', min: 2, default: 32_768 }),
  'max-length': integer({
    group: TEXT,
    help: 'Tokens of one sequence; longer documents are cut.',
    min: 2,
    default: 1024,
  }),
  'max-quality-loss': string({
    group: OTHER,
    help: 'kl=NATS or ppl=PERCENT%: exit with 1 where the loss is larger.',
    placeholder: 'LIMIT',
  }),
  'output-json': string({
    group: OTHER,
    help: 'Write the figures to this file.',
    placeholder: 'FILE',
  }),
  device: choice({ group: OTHER, help: 'Executor.', of: QUANT_DEVICES, default: 'cpu' }),
  threads: integer({ group: OTHER, help: 'Compute threads.', min: 1, shownDefault: 'all cores' }),
  help: toggle({ group: OTHER, help: 'This text.', default: false }),
} as const;

const USAGE = 'Usage: millrace eval PATH --against BASE [options]';

const HELP = `${USAGE}

Perplexity of both models on a text, mean and p99 KL divergence of their next-token distributions,
agreement of the likeliest token and of greedy continuations, with 95 % intervals. Both models are
in memory at once.

${flagHelp(FLAGS)}`;

export async function evalCommand(argv: string[]): Promise<number> {
  const { values: flags, positionals } = parseFlags(FLAGS, argv);
  if (flags.help) {
    console.log(HELP);
    return 0;
  }
  if (positionals.length !== 1 || flags.against === undefined) {
    throw new UsageError(`${USAGE}; --help tells the options`);
  }
  const [path] = positionals;
  const limit = flags['max-quality-loss'] && parseQualityLimit(flags['max-quality-loss']);
  const { quantization, 'quantization-overrides': quantizationOverrides, dtype } = flags;
  const model = openModel({ path, dtype, quantization, quantizationOverrides });
  const base = openModel({ path: flags.against, dtype: flags['base-dtype'] });
  const texts = readTexts(flags.text ?? BUNDLED_TEXT, 'text');
  const tokenizer = await loadTokenizer(flags.against);
  const length = Math.min(flags['max-length'], model.config.maxModelLen, base.config.maxModelLen);
  const evaluation = evaluate({
    backend: await loadBackend(flags),
    model,
    base,
    kvCacheDtype: flags['kv-cache-dtype'],
    sequences: tokenSequences(texts, tokenizer, length, flags['max-tokens']),
    onProgress: shareProgress('eval'),
  });
  for (const note of model.notes) console.log(`note: ${note}`);
  console.log(describeEvaluation(evaluation));
  if (flags['output-json'] !== undefined) {
    const report = { model: path, against: flags.against, quantization, ...evaluation };
    writeFileSync(flags['output-json'], `${JSON.stringify(report, null, 2)}\n`);
  }
  if (limit) requireQuality(limit, evaluation);
  return 0;
}
