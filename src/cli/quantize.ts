/** `millrace quantize SRC DST`: writes a quantized checkpoint. */
import { rmSync } from 'node:fs';
import { loadBackend } from '../backend/load-backend.js';
import { InvalidParameterError, ModelError } from '../errors.js';
import { asUsage, ENGINE_FLAGS } from '../flags/engine-flags.js';
import { type FlagValues, pick, refuseIdle, UsageError } from '../flags/flag.js';
import { flagHelp } from '../flags/flag-help.js';
import { choice, HELP_FLAG, integer, string, strings } from '../flags/kinds.js';
import { parseFlags } from '../flags/parse-flags.js';
import { parseScheme } from '../model/quantization.js';
import type { IntegerStorage } from '../model/weights.js';
import { evaluate } from '../quant/evaluate.js';
import { openModel } from '../quant/load-runner.js';
import { parseQualityLimit, requireQuality } from '../quant/quality-limit.js';
import { quantizeCheckpoint } from '../quant/quantize-checkpoint.js';
import { describeEvaluation } from '../quant/report-evaluation.js';
import { BUNDLED_TEXT, readTexts, tokenSequences } from '../quant/texts.js';
import { loadTokenizer } from '../tokenizer/load-tokenizer.js';
import { shareProgress } from './share-progress.js';

const QUANTIZATION = 'Quantization';
const CALIBRATION_TOKENS = 16_384;

const FLAGS = {
  scheme: string({
    group: QUANTIZATION,
    help: 'int8, or int4-g32, int4-g64, int4-g128 (weights a scale), with -asym for zero points.',
    placeholder: 'SCHEME',
  }),
  method: choice({
    group: QUANTIZATION,
    help: 'rtn rounds to nearest; gptq makes up for the rounding on calibration text.',
    of: ['rtn', 'gptq'],
    shownDefault: 'gptq for int4, rtn for int8',
  }),
  calibration: string({
    group: QUANTIZATION,
    help: 'Text for gptq: plain, or .jsonl with a "text" on each line. Should be like what the model is used for.',
    placeholder: 'FILE',
    shownDefault: 'the bundled stories',
  }),
  'calibration-tokens': integer({
    group: QUANTIZATION,
    help: 'Tokens of it to use.',
    min: 128,
    shownDefault: `${CALIBRATION_TOKENS}`,
  }),
  ignore: strings({
    group: QUANTIZATION,
    help: 'Linears to leave as they are; * is any text.',
    placeholder: 'PATTERN',
  }),
  'max-quality-loss': string({
    group: QUANTIZATION,
    help: 'kl=NATS or ppl=PERCENT%: measure the result on --eval-text and delete it where it lost more.',
    placeholder: 'LIMIT',
  }),
  'eval-text': string({
    group: QUANTIZATION,
    help: 'Text to measure with; not that of the calibration.',
    placeholder: 'FILE',
    shownDefault: 'bundled stories that do not calibrate',
  }),
  device: choice({ group: 'Engine', help: 'Executor.', of: ['cpu', 'reference'], default: 'cpu' }),
  ...pick(ENGINE_FLAGS, 'threads', 'cpu-isa'),
  help: HELP_FLAG,
} as const;

const USAGE = 'Usage: millrace quantize SRC DST --scheme SCHEME [options]';

const HELP = `${USAGE}

Writes the checkpoint in the folder SRC, quantized, to the folder DST, in the compressed-tensors
layout. Embeddings, the head, norms and routers keep their type. Memory: one matrix with rtn; with
gptq half a layer in float32, the calibration tokens' activations and a square matrix of its widest
input.

${flagHelp(FLAGS)}`;

/** Bundled documents before this one calibrate, those from it on measure. */
const SPLIT = 200;

export async function quantize(argv: string[]): Promise<number> {
  const { values: flags, positionals } = parseFlags(FLAGS, argv);
  if (flags.help) {
    console.log(HELP);
    return 0;
  }
  if (positionals.length !== 2 || flags.scheme === undefined) {
    throw new UsageError(`${USAGE}; --help tells the options`);
  }
  const [source, target] = positionals;
  const order = { source, target, scheme: flags.scheme };
  return writeQuantized(order, flags).catch((error: unknown) => asUsage(FLAGS, error));
}

async function writeQuantized(
  { source, target, scheme }: { source: string; target: string; scheme: string },
  flags: FlagValues<typeof FLAGS>,
): Promise<number> {
  const storage = requireScheme(scheme);
  const method = flags.method ?? (storage.bits === 4 ? 'gptq' : 'rtn');
  if (method === 'rtn') refuseIdle(flags, ['calibration', 'calibration-tokens'], '--method gptq');
  if (!flags['max-quality-loss']) refuseIdle(flags, ['eval-text'], '--max-quality-loss');
  const limit = flags['max-quality-loss'] && parseQualityLimit(flags['max-quality-loss']);
  const sequencesOf = async (texts: readonly string[], tokens: number) => {
    const { maxModelLen } = openModel({ path: source }).config;
    return tokenSequences(texts, await loadTokenizer(source), Math.min(512, maxModelLen), tokens);
  };
  const textsOf = (file: string | undefined, param: string, bundled: [number, number?]) =>
    file === undefined ? readTexts(BUNDLED_TEXT, param).slice(...bundled) : readTexts(file, param);
  const backend =
    method === 'gptq' || limit
      ? await loadBackend({ ...flags, cpuIsa: flags['cpu-isa'] })
      : undefined;
  const calibration =
    backend && method === 'gptq'
      ? {
          backend,
          sequences: await sequencesOf(
            textsOf(flags.calibration, 'calibration', [0, SPLIT]),
            flags['calibration-tokens'] ?? CALIBRATION_TOKENS,
          ),
        }
      : undefined;
  const calibrated = calibration?.sequences.reduce((sum, { length }) => sum + length, 0);
  const began = performance.now();
  const result = quantizeCheckpoint({
    source,
    target,
    storage,
    calibration,
    ignore: flags.ignore,
    onProgress: shareProgress('quantize'),
  });
  for (const note of result.notes) console.log(`note: ${note}`);
  const mebibytes = (bytes: number) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
  console.log(
    `${target}: ${result.quantized} matrices to ${scheme} (${method}${calibrated ? ` on ${calibrated} tokens` : ''}) in ` +
      `${((performance.now() - began) / 1000).toFixed(1)} s, weights ` +
      `${mebibytes(result.bytesBefore)} before, ${mebibytes(result.bytesAfter)} after`,
  );
  if (limit && backend) {
    const texts = textsOf(flags['eval-text'], 'eval-text', [SPLIT]);
    const evaluation = evaluate({
      backend,
      model: openModel({ path: target }),
      base: openModel({ path: source }),
      sequences: await sequencesOf(texts, 32_768),
      onProgress: shareProgress('eval'),
    });
    console.log(describeEvaluation(evaluation));
    try {
      requireQuality(limit, evaluation);
    } catch (error) {
      rmSync(target, { recursive: true });
      throw new ModelError(`${(error as Error).message}: ${target} was deleted`, { cause: error });
    }
  }
  return 0;
}

/** What the compressed-tensors layout and the kernels both have. */
const SCHEMES = /^(?:int8|int4(?:-g(?:32|64|128))?(?:-asym)?)$/;

function requireScheme(scheme: string): IntegerStorage {
  if (SCHEMES.test(scheme)) return parseScheme(scheme, 'scheme');
  throw InvalidParameterError.expected(
    'int8, or int4-g32, int4-g64, int4-g128, with -asym if wanted',
    'scheme',
    scheme,
  );
}
