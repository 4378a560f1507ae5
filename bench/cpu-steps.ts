/**
 * Milliseconds of one step of the CPU executor, and where they go: decodes of 1 to 64 sequences at
 * a context of 192 tokens (or `--context`), prefill chunks of 512 and 2,048.
 *
 *     node dist/bench/cpu-steps.js MODEL_DIR [--threads 2] [--cpu-isa ISA] [--quantization int8]
 *         [--quantization-overrides PATTERN=SCHEME] [--kv-cache-dtype int8] [--context 192]
 *
 * Weights are dummies in the type the config names; each figure is the median of the steps of half
 * a second and more.
 */
import { parseArgs } from 'node:util';
import type { KvCacheDtype, StepBatch } from '../src/backend/backend.js';
import { type CpuRunner, createCpuBackend } from '../src/backend/cpu/cpu-backend.js';
import type { CpuIsa } from '../src/backend/cpu/native.js';
import { loadModel } from '../src/model/load-model.js';

const BLOCK = 16;
/** Tokens of each sequence in a step that fills the cache. */
const CHUNK = 32;
const SECONDS = 0.5;

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    threads: { type: 'string', default: '2' },
    'cpu-isa': { type: 'string' },
    quantization: { type: 'string' },
    'quantization-overrides': { type: 'string' },
    'kv-cache-dtype': { type: 'string', default: 'auto' },
    context: { type: 'string', default: '192' },
  },
});
const context = Number(flags.context);
const model = loadModel(positionals[0], {
  loadFormat: 'dummy',
  quantization: flags.quantization,
  quantizationOverrides: flags['quantization-overrides'],
});
const { maxModelLen } = model.config;
const start = performance.now();
const runner = createCpuBackend({
  threads: Number(flags.threads),
  isa: flags['cpu-isa'] as CpuIsa | undefined,
}).createRunner(model.program, model.weights, {
  ...{ blockSize: BLOCK, numBlocks: 64 * Math.ceil(context / BLOCK), maxTokens: 2048 },
  ...{ maxSeqs: 64, maxModelLen, kvCacheDtype: flags['kv-cache-dtype'] as KvCacheDtype },
});
console.log(`${runner.description}; loaded in ${((performance.now() - start) / 1e3).toFixed(2)} s`);
console.log(runner.memory);
for (const seqs of [1, 4, 16, 32, 64]) report(runner, `decode ${seqs}`, seqs, 1, context);
report(runner, 'prefill 128', 1, 128, 128);
report(runner, 'prefill 512', 1, 512, 512);
report(runner, 'prefill 16 x 128', 16, 128, 128);
runner.close();

function report(runner: CpuRunner, name: string, seqs: number, queries: number, context: number) {
  // Memory nobody wrote is no memory: the cache must hold what the step reads.
  for (let end = CHUNK; end < context; end += CHUNK) runner.step(makeBatch(seqs, CHUNK, end));
  const batch = makeBatch(seqs, queries, context);
  for (let i = 0; i < 3; i++) runner.step(batch);
  const before = runner.profile();
  const times: number[] = [];
  const end = performance.now() + SECONDS * 1e3;
  do {
    const begin = performance.now();
    runner.step(batch);
    times.push(performance.now() - begin);
  } while (performance.now() < end);
  const after = runner.profile();
  times.sort((a, b) => a - b);
  const median = times[Math.floor(times.length / 2)];
  const parts = Object.keys(after)
    .map((kind) => ({ kind, ms: share(kind) }))
    .filter(({ ms }) => ms > 0.005)
    .sort((a, b) => b.ms - a.ms)
    .map(({ kind, ms }) => `${kind} ${ms.toFixed(2)}`);
  const rate = (seqs * queries * 1e3) / median;
  console.log(
    `${name.padEnd(18)} ${median.toFixed(2).padStart(8)} ms (best ${times[0].toFixed(2)}) ${rate.toFixed(0).padStart(6)} tok/s   ${parts.join(', ')}`,
  );

  function share(kind: string): number {
    return ((after[kind].seconds - before[kind].seconds) * 1e3) / times.length;
  }
}

/** Sequences whose last `queries` tokens are computed; the tokens before them were computed. */
function makeBatch(seqs: number, queries: number, context: number): StepBatch {
  const tokens = seqs * queries;
  const blocks = Math.ceil(context / BLOCK);
  const each = <T>(count: number, value: (i: number) => T) =>
    Array.from({ length: count }, (_, i) => value(i));
  const position = (t: number) => context - queries + (t % queries);
  const block = (seq: number, i: number) => i * seqs + seq;
  const fill = (value: number) => new Float32Array(seqs).fill(value);
  return {
    numTokens: tokens,
    numSeqs: seqs,
    numRows: seqs,
    tokens: Int32Array.from(each(tokens, (t) => (t * 7919) % model.program.vocabSize)),
    positions: Int32Array.from(each(tokens, position)),
    slots: Int32Array.from(
      each(tokens, (t) => {
        const p = position(t);
        return block(Math.floor(t / queries), Math.floor(p / BLOCK)) * BLOCK + (p % BLOCK);
      }),
    ),
    queryStart: Int32Array.from(each(seqs + 1, (s) => s * queries)),
    contextLens: new Int32Array(seqs).fill(context),
    blockTables: Int32Array.from(
      each(seqs * blocks, (i) => block(Math.floor(i / blocks), i % blocks)),
    ),
    blockTableStart: Int32Array.from(each(seqs + 1, (s) => s * blocks)),
    rows: Int32Array.from(each(seqs, (s) => (s + 1) * queries - 1)),
    copies: new Int32Array(0),
    numCopies: 0,
    sampling: {
      temperature: fill(0),
      topK: new Int32Array(seqs),
      topP: fill(1),
      minP: fill(0),
      seed: new Uint32Array(2 * seqs),
      draw: new Uint32Array(seqs),
      repetitionPenalty: fill(1),
      presencePenalty: fill(0),
      frequencyPenalty: fill(0),
      historyStart: new Int32Array(seqs + 1),
      historyTokens: new Int32Array(0),
      historyCounts: new Int32Array(0),
      biasStart: new Int32Array(seqs + 1),
      biasTokens: new Int32Array(0),
      biasValues: new Float32Array(0),
      logprobs: new Int32Array(seqs).fill(-1),
      targets: new Int32Array(seqs).fill(-1),
    },
  };
}
