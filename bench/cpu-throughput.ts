/**
 * Output tokens per second of the engine (no HTTP) on the smol-135m shape with dummy bf16 weights:
 * 128 tokens in, 128 out by default, at several numbers of streams.
 *
 *     npm run build && node dist/bench/cpu-throughput.js [--streams 1,4,16,32,64] [--runs 3]
 *         [--input 128] [--output 128] [--quantization int8] [--quantization-overrides PATTERN=SCHEME]
 *         [--kv-cache-dtype auto,int8]
 *
 * With several KV cache types there is an engine for each; they take turns, the first in the next run
 * last, and the ratios are of runs beside each other. What the int8 cache does to decoding at contexts
 * around 1,000 (some 3 minutes on two cores):
 *
 *     node dist/bench/cpu-throughput.js --kv-cache-dtype auto,int8 --streams 32 --input 936 --runs 7
 *
 * decode: tokens per second while every stream is decoding (from the last first token to the
 * first end). end to end: all output tokens over the whole run, prefill included. prefill: prompt
 * tokens per second until the last first token. Runs go round-robin over the stream counts, so
 * that a noisy minute hits all of them; medians with (least - most).
 */
import { parseArgs } from 'node:util';
import { textTable } from '../src/bench/text-table.js';
import { type Engine, now } from '../src/engine/api.js';
import { samplingParams } from '../src/engine/sampling-params.js';
import { startEngine } from '../src/engine/start-engine.js';
import { root } from '../test/helpers/root.js';
import { spread } from './spread.js';

const { values: flags } = parseArgs({
  options: {
    model: { type: 'string', default: `${root}bench/shapes/smol-135m` },
    streams: { type: 'string', default: '1,4,16,32,64' },
    runs: { type: 'string', default: '3' },
    input: { type: 'string', default: '128' },
    output: { type: 'string', default: '128' },
    threads: { type: 'string' },
    'cpu-isa': { type: 'string' },
    dtype: { type: 'string', default: 'auto' },
    quantization: { type: 'string' },
    'quantization-overrides': { type: 'string' },
    'kv-cache-dtype': { type: 'string', default: 'auto' },
  },
});
const streamCounts = flags.streams.split(',').map(Number);
const [runs, input, output] = [flags.runs, flags.input, flags.output].map(Number);

interface Measured {
  decode: number;
  endToEnd: number;
  prefill: number;
}

const kvDtypes = flags['kv-cache-dtype'].split(',');
const engines: Engine[] = [];
for (const kvCacheDtype of kvDtypes) {
  const engine = await startEngine({
    model: flags.model,
    device: 'cpu',
    loadFormat: 'dummy',
    dtype: flags.dtype as 'auto',
    quantization: flags.quantization,
    quantizationOverrides: flags['quantization-overrides'],
    kvCacheDtype: kvCacheDtype as 'auto',
    maxModelLen: Math.max(512, input + output),
    kvCacheMemory: 1 << 30,
    threads: flags.threads === undefined ? undefined : Number(flags.threads),
    cpuIsa: flags['cpu-isa'] as undefined,
  });
  engines.push(engine);
  console.log(engine.info.plan.at(-1));
  await measure(engine, 1);
}

interface Row {
  streams: number;
  /** By engine, then by run. */
  measured: Measured[][];
}

const rows: Row[] = streamCounts.map((streams) => ({ streams, measured: engines.map(() => []) }));
for (let run = 0; run < runs; run++) {
  for (const { streams, measured } of rows) {
    const turns = engines.map((engine, n) => ({ engine, into: measured[n] }));
    for (const { engine, into } of run % 2 === 0 ? turns : turns.reverse()) {
      into.push(await measure(engine, streams));
      process.stderr.write(`\rrun ${run + 1}/${runs}, ${streams} streams   `);
    }
  }
}
process.stderr.write('\r                              \r');
const cells = rows.flatMap(({ streams, measured }) =>
  measured.map((all, n) => {
    const of = (key: keyof Measured) =>
      spread(
        all.map((one) => one[key]),
        0,
      );
    return [String(streams), kvDtypes[n], of('decode'), of('endToEnd'), of('prefill')];
  }),
);
const heads = ['streams', 'KV cache', 'decode tok/s', 'end to end tok/s', 'prefill tok/s'];
console.log(textTable(heads, cells));
for (const { streams, measured } of rows) {
  for (let n = 1; n < engines.length; n++) {
    const ratios = measured[n].map(({ decode }, run) => decode / measured[0][run].decode);
    console.log(
      `${streams} streams, decode, ${kvDtypes[n]} over ${kvDtypes[0]}: ${spread(ratios, 3)}`,
    );
  }
}
for (const engine of engines) await engine.close();

/** Runs `count` streams of random prompts at once and times their tokens. */
async function measure(engine: Engine, count: number): Promise<Measured> {
  const start = now();
  const times: number[][] = [];
  await Promise.all(
    Array.from({ length: count }, (_, stream) => {
      const arrivals: number[] = [];
      times.push(arrivals);
      return new Promise<void>((resolve, reject) => {
        engine.generate(
          {
            id: `${start}-${stream}`,
            prompt: Array.from({ length: input }, () =>
              Math.floor(Math.random() * engine.info.vocabSize),
            ),
            params: samplingParams(
              { temperature: 0, maxTokens: output, ignoreEos: true },
              engine.info,
            ),
          },
          ({ tokens, finish }) => {
            const at = now();
            for (const _ of tokens) arrivals.push(at);
            if (finish?.reason === 'length') resolve();
            else if (finish) reject(new Error(`a stream ended with ${finish.reason}`));
          },
        );
      });
    }),
  );
  const lastFirst = Math.max(...times.map((one) => one[0]));
  const firstEnd = Math.min(...times.map((one) => one[output - 1]));
  const end = Math.max(...times.map((one) => one[output - 1]));
  const steady = times.flat().filter((at) => at > lastFirst && at <= firstEnd).length;
  return {
    decode: (steady / (firstEnd - lastFirst)) * 1000,
    endToEnd: ((count * output) / (end - start)) * 1000,
    prefill: ((count * input) / (lastFirst - start)) * 1000,
  };
}
