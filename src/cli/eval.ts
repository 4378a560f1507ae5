/** `millrace eval PATH --against BASE`: what a model has lost against another. */
import { writeFileSync } from 'node:fs';
import { loadBackend } from '../backend/load-backend.js';
import { asUsage, DTYPES, ENGINE_FLAGS, MODEL_FLAGS } from '../flags/engine-flags.js';
import { type FlagValues, pick, UsageError } from '../flags/flag.js';
import { flagHelp } from '../flags/flag-help.js';
import { choice, HELP_FLAG, integer, outputFile, string } from '../flags/kinds.js';
import { parseFlags } from '../flags/parse-flags.js';
import { evaluate } from '../quant/evaluate.js';
import { openModel } from '../quant/load-runner.js';
import { parseQualityLimit, requireQuality } from '../quant/quality-limit.js';
import { describeEvaluation } from '../quant/report-evaluation.js';
import { BUNDLED_TEXT, readTexts, tokenSequences } from '../quant/texts.js';
import { loadTokenizer } from '../tokenizer/load-tokenizer.js';
import { shareProgress } from './share-progress.js';

const MODEL = 'Model';
const TEXT = 'Text';
const OTHER = 'Other';

const FLAGS = {
  against: string({
    group: MODEL,
    help: 'The model to compare with, such as the one that was quantized.',
    placeholder: 'BASE',
  }),
  ...pick(MODEL_FLAGS, 'dtype', 'quantization', 'quantization-overrides'),
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
  ...pick(ENGINE_FLAGS, 'kv-cache-dtype', 'device', 'enforce-eager', 'threads', 'cpu-isa'),
  'max-quality-loss': string({
    group: OTHER,
    help: 'kl=NATS or ppl=PERCENT%: exit with 1 where the loss is larger.',
    placeholder: 'LIMIT',
  }),
  'output-json': outputFile({ group: OTHER, help: 'Write the figures to this file.' }),
  help: HELP_FLAG,
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
  const paths = { path: positionals[0], against: flags.against };
  return judge(paths, flags).catch((error: unknown) => asUsage(FLAGS, error));
}

async function judge(
  { path, against }: { path: string; against: string },
  flags: FlagValues<typeof FLAGS>,
): Promise<number> {
  const limit = flags['max-quality-loss'] && parseQualityLimit(flags['max-quality-loss']);
  const output = flags['output-json'];
  const { quantization, 'quantization-overrides': quantizationOverrides, dtype } = flags;
  const model = openModel({ path, dtype, quantization, quantizationOverrides });
  const base = openModel({ path: against, dtype: flags['base-dtype'] });
  const texts = readTexts(flags.text ?? BUNDLED_TEXT, 'text');
  const tokenizer = await loadTokenizer(against);
  const length = Math.min(flags['max-length'], model.config.maxModelLen, base.config.maxModelLen);
  const evaluation = evaluate({
    backend: await loadBackend({
      ...flags,
      cpuIsa: flags['cpu-isa'],
      enforceEager: flags['enforce-eager'],
    }),
    model,
    base,
    kvCacheDtype: flags['kv-cache-dtype'],
    sequences: tokenSequences(texts, tokenizer, length, flags['max-tokens']),
    onProgress: shareProgress('eval'),
  });
  for (const note of model.notes) console.log(`note: ${note}`);
  console.log(describeEvaluation(evaluation));
  if (output !== undefined) {
    const report = {
      ...{ model: path, against, quantization, quantizationOverrides, device: flags.device },
      ...{ dtype: model.weights.dtype, baseDtype: base.weights.dtype },
      kvCacheDtype: flags['kv-cache-dtype'],
      ...evaluation,
    };
    writeFileSync(output, `${JSON.stringify(report, null, 2)}\n`);
  }
  if (limit) requireQuality(limit, evaluation);
  return 0;
}
