/**
 * Output tokens per second of the engine (no HTTP) on the smol-135m shape with dummy bf16 weights:
 * 128 tokens in, 128 out, at several numbers of streams, beside the limits of the machine.
 *
 *     npm run build && node dist/bench/cpu-throughput.js [--streams 1,4,16,32,64] [--runs 3]
 *         [--quantization int8] [--quantization-overrides PATTERN=SCHEME] [--kv-cache-dtype int8]
 *
 * decode: tokens per second while every stream is decoding (from the last first token to the
 * first end). end to end: all output tokens over the whole run, prefill included. prefill: prompt
 * tokens per second until the last first token. Runs go round-robin over the stream counts, so
 * that a noisy minute hits all of them; medians with (least - most).
 */
import { parseArgs } from 'node:util';
import { median } from '../src/bench/statistics.js';
import { textTable } from '../src/bench/text-table.js';
import { type Engine, now } from '../src/engine/api.js';
import { samplingParams } from '../src/engine/sampling-params.js';
import { startEngine } from '../src/engine/start-engine.js';
import { root } from '../test/helpers/root.js';

const INPUT = 128;
const OUTPUT = 128;

const { values: flags } = parseArgs({
  options: {
    model: { type: 'string', default: `${root}bench/shapes/smol-135m` },
    streams: { type: 'string', default: '1,4,16,32,64' },
    runs: { type: 'string', default: '3' },
    threads: { type: 'string' },
    'cpu-isa': { type: 'string' },
    dtype: { type: 'string', default: 'auto' },
    quantization: { type: 'string' },
    'quantization-overrides': { type: 'string' },
    'kv-cache-dtype': { type: 'string', default: 'auto' },
  },
});
const streamCounts = flags.streams.split(',').map(Number);
const runs = Number(flags.runs);

interface Measured {
  decode: number;
  endToEnd: number;
  prefill: number;
}

const engine = await startEngine({
  model: flags.model,
  device: 'cpu',
  loadFormat: 'dummy',
  dtype: flags.dtype as 'auto',
  quantization: flags.quantization,
  quantizationOverrides: flags['quantization-overrides'],
  kvCacheDtype: flags['kv-cache-dtype'] as 'auto',
  maxModelLen: 512,
  kvCacheMemory: 1 << 30,
  threads: flags.threads === undefined ? undefined : Number(flags.threads),
  cpuIsa: flags['cpu-isa'] as undefined,
});
console.log(engine.info.plan.at(-1));

const measured = new Map<number, Measured[]>(streamCounts.map((count) => [count, []]));
await measure(engine, 1);
for (let run = 0; run < runs; run++) {
  for (const count of streamCounts) {
    measured.get(count)!.push(await measure(engine, count));
    process.stderr.write(`\rrun ${run + 1}/${runs}, ${count} streams   `);
  }
}
process.stderr.write('\r                              \r');
const rows = streamCounts.map((count) => {
  const all = measured.get(count)!;
  const of = (key: keyof Measured) => spread(all.map((one) => one[key]));
  return [String(count), of('decode'), of('endToEnd'), of('prefill')];
});
console.log(textTable(['streams', 'decode tok/s', 'end to end tok/s', 'prefill tok/s'], rows));
await engine.close();

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
            prompt: Array.from({ length: INPUT }, () =>
              Math.floor(Math.random() * engine.info.vocabSize),
            ),
            params: samplingParams(
              { temperature: 0, maxTokens: OUTPUT, ignoreEos: true },
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
  const firstEnd = Math.min(...times.map((one) => one[OUTPUT - 1]));
  const end = Math.max(...times.map((one) => one[OUTPUT - 1]));
  const steady = times.flat().filter((at) => at > lastFirst && at <= firstEnd).length;
  return {
    decode: (steady / (firstEnd - lastFirst)) * 1000,
    endToEnd: ((count * OUTPUT) / (end - start)) * 1000,
    prefill: ((count * INPUT) / (lastFirst - start)) * 1000,
  };
}

function spread(samples: number[]): string {
  const whole = (value: number) => Math.round(value).toString();
  return `${whole(median(samples))} (${whole(Math.min(...samples))} - ${whole(Math.max(...samples))})`;
}
