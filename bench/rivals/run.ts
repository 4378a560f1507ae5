/**
 * Millrace beside its rivals on the same workload: streams of random prompts, all sent at once,
 * greedy, the end-of-sequence token ignored.
 *
 *     npm run build && node dist/bench/rivals/run.js [--models stories-7m,smol-135m]
 *         [--streams 1,4,16,32,64] [--input-len 128] [--output-len 128] [--runs 3] [--threads N]
 *         [--llama-server PATH] [--output-json FILE] [--check-only]
 *
 * docs/rivals.md says how it is done and why it is fair.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { cell } from '../../src/bench/text-table.js';
import { InvalidParameterError } from '../../src/errors.js';
import { type LoadFormat, loadModel } from '../../src/model/load-model.js';
import { root } from '../../test/helpers/root.js';
import { check } from './check.js';
import { CONTEXT, type Contender, startContender } from './contender.js';
import { exportGguf } from './export-gguf.js';
import { rivalChoices } from './fastest-settings.js';
import { installNodeLlamaCpp, NODE_LLAMA_CPP } from './install.js';
import { type Measurement, race } from './race.js';
import { raceReport } from './race-report.js';

interface Subject {
  directory: string;
  loadFormat: LoadFormat;
  /** Text to check agreement with, one prompt a line; none for dummy weights. */
  prompts?: string;
  /** Greedy continuations of the reference implementation. */
  golden?: string;
}

const SUBJECTS: Readonly<Record<string, Subject>> = {
  'stories-7m': {
    directory: join(root, 'models/stories-7m'),
    loadFormat: 'auto',
    prompts: join(root, 'models/stories-7m/story-prompts.jsonl'),
    golden: join(root, 'test/goldens/stories-7m.json'),
  },
  'smol-135m': { directory: join(root, 'bench/shapes/smol-135m'), loadFormat: 'dummy' },
};
const { values: flags } = parseArgs({
  options: {
    models: { type: 'string', default: 'stories-7m,smol-135m' },
    streams: { type: 'string', default: '1,4,16,32,64' },
    'input-len': { type: 'string', default: '128' },
    'output-len': { type: 'string', default: '128' },
    runs: { type: 'string', default: '3' },
    threads: { type: 'string', default: String(availableParallelism()) },
    'llama-server': { type: 'string' },
    'output-json': { type: 'string' },
    'check-only': { type: 'boolean', default: false },
  },
});
const streamCounts = flags.streams.split(',').map((text) => positive('streams', text));
const inputTokens = positive('input-len', flags['input-len']);
const outputTokens = positive('output-len', flags['output-len']);
const runs = positive('runs', flags.runs);
const threads = positive('threads', flags.threads);
if (inputTokens + outputTokens > CONTEXT) {
  throw InvalidParameterError.expected(
    `input and output of at most ${CONTEXT} tokens together`,
    'input-len + output-len',
    inputTokens + outputTokens,
  );
}

const folder = join(root, 'build/rivals');
const library = installNodeLlamaCpp(join(folder, 'node-llama-cpp'));
const measurements: (Measurement & { model: string })[] = [];
for (const name of flags.models.split(',')) {
  const subject = SUBJECTS[name];
  if (!subject) {
    throw InvalidParameterError.expected(Object.keys(SUBJECTS).join(' or '), 'models', name);
  }
  await compare(name, subject);
}
if (flags['output-json']) {
  mkdirSync(dirname(resolve(flags['output-json'])), { recursive: true });
  writeFileSync(flags['output-json'], `${JSON.stringify(measurements, null, 1)}\n`);
}

async function compare(name: string, subject: Subject): Promise<void> {
  const { directory, loadFormat } = subject;
  const gguf = join(folder, `${name}.gguf`);
  progress(`${name}: writing ${basename(gguf)}`);
  const model = loadModel(directory, { loadFormat });
  exportGguf(model, gguf);
  const contenders = new Map<string, Contender>();
  try {
    const start = async (key: string, module: string, args: string[]) => {
      progress(`${name}: starting ${key}`);
      contenders.set(key, await startContender(module, args));
    };
    await start('Millrace', './contender-millrace.js', [directory, loadFormat, `${threads}`]);
    const rivalArgs = [library, NODE_LLAMA_CPP, gguf, `${threads}`];
    await start('node-llama-cpp', './contender-node-llama-cpp.js', rivalArgs);
    if (flags['llama-server']) {
      const args = [resolve(flags['llama-server']), gguf];
      await start('llama-server', './contender-llama-server.js', args);
    }
    console.log(`\n${name}, ${inputTokens} tokens in, ${outputTokens} out`);
    for (const { description } of contenders.values()) console.log(`  ${description}`);
    // Tokens do not depend on the threads; one waits for nobody.
    const settings = { threads: 1, batchSize: 512, flashAttention: true };
    if (subject.prompts) {
      progress(`${name}: comparing greedy tokens`);
      const options = { ...subject, prompts: subject.prompts, settings };
      for await (const line of check(contenders, options)) console.log(`  ${line}`);
    }
    if (flags['check-only']) return;
    const ours = { threads: [threads], batchSize: [512], flashAttention: [true] };
    const found = await race(contenders, {
      ...{ streamCounts, inputTokens, outputTokens, runs },
      vocabSize: model.config.vocabSize,
      // Ours has nothing to choose.
      choices: (contender, streams) =>
        contender === 'Millrace' ? ours : rivalChoices(threads, streams * inputTokens),
      onProgress: (text) => progress(`${name}, ${text}`),
      onMeasured(rows) {
        progress('');
        for (const row of rows) console.log(`  ${describeRow(row)}`);
      },
    });
    progress('');
    measurements.push(...found.map((one) => ({ model: name, ...one })));
    console.log(raceReport(found));
  } finally {
    for (const contender of contenders.values()) await contender.close();
  }
}

/** A contender's run, as it is measured; the table at the end has the medians. */
function describeRow({ run, streams, contender, decode, endToEnd, prefill }: Measurement): string {
  return (
    `run ${run + 1}, ${streams} streams, ${contender}: decode ${cell(decode)} tok/s, ` +
    `end to end ${cell(endToEnd)}, prefill ${cell(prefill)}`
  );
}

function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
  else if (text !== '') process.stderr.write(`${text}\n`);
}

function positive(name: string, text: string): number {
  const value = Number(text);
  if (Number.isInteger(value) && value > 0) return value;
  throw InvalidParameterError.expected('positive integer', name, text);
}
