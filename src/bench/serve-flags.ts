/** The flags of `millrace bench serve`: those of `vllm bench serve` where it has one. */

import { expected } from '../flags/flag.js';
import { flagHelp } from '../flags/flag-help.js';
import {
  choice,
  HELP_FLAG,
  integer,
  number,
  outputFile,
  parsed,
  seconds,
  string,
  strings,
  toggle,
} from '../flags/kinds.js';
import { type Lengths, parseLengths } from './workloads/lengths.js';

const SERVER = 'The server';
const WORKLOAD = 'The workload';
const ARRIVALS = 'The arrivals';
const FIGURES = 'The figures';

export const DATASETS = [
  'random',
  'custom',
  'sharegpt',
  'mt-bench',
  'azure',
  'mooncake',
  'burstgpt',
] as const;

export type Dataset = (typeof DATASETS)[number];

export const BENCH_SERVE_FLAGS = {
  url: string({
    group: SERVER,
    help: 'Its address, such as http://127.0.0.1:8000.',
    placeholder: 'URL',
  }),
  'base-url': string({ group: SERVER, help: 'The same, as vLLM names it.', placeholder: 'URL' }),
  endpoint: string({
    group: SERVER,
    help: 'Path that requests go to.',
    placeholder: 'PATH',
    shownDefault: '/v1/completions, or /v1/chat/completions for prompts that are messages',
  }),
  model: string({
    group: SERVER,
    help: 'Name of the model.',
    placeholder: 'NAME',
    shownDefault: 'the first that /v1/models lists',
  }),
  'api-key': string({
    group: SERVER,
    help: 'Sent as the bearer token.',
    placeholder: 'KEY',
    shownDefault: "the environment's OPENAI_API_KEY",
  }),
  header: strings({
    group: SERVER,
    help: 'Sent with every request.',
    placeholder: 'KEY=VALUE',
    form: /^\s*[^=\s]+\s*=/,
  }),
  'extra-body': parsed<Record<string, unknown>>({
    group: SERVER,
    help: 'Set in every request.',
    placeholder: 'JSON',
    parse: parseObject,
  }),
  temperature: number({
    group: SERVER,
    help: '0 is greedy.',
    placeholder: 'T',
    min: 0,
    default: 0,
  }),
  'ignore-eos': toggle({
    group: SERVER,
    help: 'Whether answers run to the length asked for.',
    shownDefault: 'on for random prompts and traces',
  }),
  timeout: seconds({
    group: SERVER,
    help: 'Silence that fails a request.',
    min: 1,
    default: 600_000,
  }),
  'ready-check-timeout-sec': seconds({
    group: SERVER,
    help: 'How long to wait for the server.',
    default: 0,
  }),

  'dataset-name': choice({
    group: WORKLOAD,
    help: 'Where prompts and lengths come from.',
    of: DATASETS,
    default: 'random',
  }),
  'dataset-path': string({ group: WORKLOAD, help: 'For all but random.', placeholder: 'FILE' }),
  'num-prompts': integer({
    group: WORKLOAD,
    help: 'Requests to send.',
    min: 1,
    shownDefault: '1000 for random, else the whole file',
  }),
  limit: integer({ group: WORKLOAD, help: 'The same, in the words of a trace.', min: 1 }),
  'random-input-len': lengths('Tokens of a prompt', 1024),
  'random-output-len': lengths('Tokens of an answer', 128),
  'random-range-ratio': number({
    group: WORKLOAD,
    help: 'Makes a fixed length N uniform in N (1 - R) to N (1 + R).',
    placeholder: 'R',
    ...{ min: 0, max: 1, default: 0 },
  }),
  'random-prefix-len': integer({
    group: WORKLOAD,
    help: 'Tokens before every prompt, the same for all.',
    default: 0,
  }),
  'random-prefix-share': number({
    group: WORKLOAD,
    help: 'Share of each prompt that is a common prefix.',
    placeholder: 'S',
    ...{ min: 0, max: 1, default: 0 },
  }),
  'random-num-prefixes': integer({
    group: WORKLOAD,
    help: 'Of so many different ones.',
    min: 1,
    default: 1,
  }),
  'output-len': integer({
    group: WORKLOAD,
    help: 'Tokens of an answer, for prompts that bring no length.',
    min: 1,
    shownDefault: '256',
  }),
  'vocab-size': integer({
    group: WORKLOAD,
    help: 'Random ids are below it.',
    min: 2,
    shownDefault: '2000',
  }),
  tokenizer: string({
    group: WORKLOAD,
    help: 'A folder with tokenizer.json: random prompts are sent as text.',
    placeholder: 'PATH',
  }),
  seed: integer({ group: WORKLOAD, help: 'The same seed gives the same requests.', default: 0 }),

  'request-rate': number({
    group: ARRIVALS,
    help: 'Requests a second.',
    placeholder: 'R',
    above: 0,
    infinite: true,
    shownDefault: "inf, or a trace's own times",
  }),
  burstiness: number({
    group: ARRIVALS,
    help: '1 is Poisson, less is burstier, inf a constant rate.',
    placeholder: 'B',
    above: 0,
    infinite: true,
    default: 1,
  }),
  'max-concurrency': integer({
    group: ARRIVALS,
    help: 'Most requests in flight; with an infinite rate a closed loop of so many.',
    min: 1,
  }),
  'ramp-up-strategy': choice({
    group: ARRIVALS,
    help: 'How the rate grows.',
    of: ['linear', 'exponential'],
  }),
  'ramp-up-start-rps': number({
    group: ARRIVALS,
    help: 'Its rate at first.',
    placeholder: 'R',
    above: 0,
  }),
  'ramp-up-end-rps': number({
    group: ARRIVALS,
    help: 'Its rate at the end.',
    placeholder: 'R',
    above: 0,
  }),
  speedup: number({
    group: ARRIVALS,
    help: 'Runs a trace so many times as fast.',
    placeholder: 'X',
    above: 0,
    default: 1,
  }),
  'trace-jitter': seconds({
    group: ARRIVALS,
    help: "Spreads a trace's quantized times over so long.",
    shownDefault: "found in Mooncake's traces",
  }),
  'num-warmups': integer({
    group: ARRIVALS,
    help: 'Requests sent before, not measured.',
    default: 0,
  }),

  goodput: strings({
    group: FIGURES,
    help: 'Objectives: ttft:500 tpot:50 e2e:10000.',
    placeholder: 'METRIC:MS ...',
  }),
  sweep: toggle({ group: FIGURES, help: 'Measure from idle to saturation.', default: false }),
  'sweep-points': integer({ group: FIGURES, help: 'Rates between.', min: 1, default: 8 }),
  'sweep-seconds': number({
    group: FIGURES,
    help: 'How long each is measured.',
    placeholder: 'SECONDS',
    above: 0,
    default: 20,
  }),
  label: string({
    group: FIGURES,
    help: 'Names the measurement in reports.',
    default: 'millrace bench',
  }),
  'output-json': outputFile({ group: FIGURES, help: 'Write the figures.' }),
  'output-requests': outputFile({
    group: FIGURES,
    help: 'Write the times of every request as JSON lines.',
  }),
  'output-html': outputFile({ group: FIGURES, help: 'Write a page with charts.' }),
  help: HELP_FLAG,
} as const;

export const BENCH_SERVE_HELP = `Usage: millrace bench serve --url URL [options]

Sends a workload to an OpenAI-compatible server and measures it. Flags are those of
\`vllm bench serve\` where it has one.

${flagHelp(BENCH_SERVE_FLAGS)}`;

function lengths(help: string, byDefault: number) {
  return parsed<Lengths, Lengths>({
    group: WORKLOAD,
    help: `${help}: N, uniform:LOW:HIGH, normal:MEAN:STD or lognormal:MEAN:STD.`,
    placeholder: 'LENGTHS',
    default: { kind: 'fixed', value: byDefault },
    shownDefault: `${byDefault}`,
    parse: parseLengths,
  });
}

function parseObject(text: string, name: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
      return value as Record<string, unknown>;
    }
  } catch {}
  throw expected('a JSON object', name, text);
}
