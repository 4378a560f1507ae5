/** The flags of `millrace bench serve`: those of `vllm bench serve` where it has one. */
import { type ParseArgsConfig, parseArgs } from 'node:util';
import { InvalidParameterError } from '../errors.js';
import type { Ramp } from './arrivals.js';
import { parseSlos, type Slos } from './goodput.js';
import { type Lengths, parseLengths, widen } from './workloads/lengths.js';

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

export interface ServeOptions {
  url: string;
  /** Chosen by the workload if not given. */
  endpoint?: string;
  model?: string;
  tokenizer?: string;
  apiKey?: string;
  headers: Record<string, string>;
  extraBody: Record<string, unknown>;
  ignoreEos?: boolean;
  temperature: number;
  /** Seconds. */
  timeout: number;
  readyTimeout: number;
  dataset: Dataset;
  datasetPath?: string;
  numPrompts?: number;
  input: Lengths;
  output: Lengths;
  /** For prompts that bring no length of their own. */
  outputTokens?: number;
  prefixTokens: number;
  prefixShare: number;
  prefixes: number;
  vocabSize?: number;
  seed: number;
  /** Not given: all at once, or a trace's own times. */
  requestRate?: number;
  burstiness: number;
  maxConcurrency?: number;
  ramp?: Ramp;
  speedup: number;
  /** Seconds over which a quantised trace's requests are spread. */
  traceJitter?: number;
  warmups: number;
  slos: Slos;
  sweep: boolean;
  sweepPoints: number;
  /** Seconds a point of the sweep. */
  sweepSeconds: number;
  label: string;
  outputJson?: string;
  outputRequests?: string;
  outputHtml?: string;
}

export const SERVE_HELP = `millrace bench serve --url URL [flags]

Sends a workload to an OpenAI-compatible server and measures it. Flags are those of
\`vllm bench serve\` where it has one.

the server
  --url URL                  its address, e.g. http://127.0.0.1:8000 (also --base-url)
  --endpoint PATH            /v1/completions, or /v1/chat/completions for prompts that are messages
  --model NAME               default: the first that /v1/models lists
  --api-key KEY              default: the environment's OPENAI_API_KEY
  --header KEY=VALUE         repeatable
  --extra-body JSON          set in every request
  --temperature T            default 0
  --ignore-eos, --no-ignore-eos   default: on for random prompts and traces
  --timeout S                silence that fails a request, default 600
  --ready-check-timeout-sec S     how long to wait for the server, default 0

the workload
  --dataset-name NAME        ${DATASETS.join(', ')}; default random
  --dataset-path FILE        for all but random
  --num-prompts N            default 1000 for random, else the whole file (also --limit)
  --random-input-len L, --random-output-len L
                             N, uniform:LOW:HIGH, normal:MEAN:STD, lognormal:MEAN:STD;
                             default 1024 and 128
  --random-range-ratio R     makes a fixed N uniform in N (1 - R) .. N (1 + R)
  --random-prefix-len N      tokens before every prompt, the same for all
  --random-prefix-share S    share of each prompt (0 to 1) that is a common prefix
  --random-num-prefixes K    of so many different ones, default 1
  --output-len N             for prompts that bring no length, default 256
  --vocab-size N             random ids are below it, default 2000
  --tokenizer PATH           a folder with tokenizer.json: sends random prompts as text
  --seed N                   the same seed gives the same requests, default 0

the arrivals
  --request-rate R           requests a second; default inf, or a trace's own times
  --burstiness B             1 Poisson (default), < 1 burstier, inf a constant rate
  --max-concurrency N        with an infinite rate: a closed loop of N
  --ramp-up-strategy S       linear or exponential, with --ramp-up-start-rps and --ramp-up-end-rps
  --speedup X                runs a trace X times as fast
  --trace-jitter S           spreads quantised times; default: found in Mooncake's traces
  --num-warmups N            requests sent before, not measured; default 0

the figures
  --goodput M:MS ...         objectives: ttft:500 tpot:50 e2e:10000
  --sweep                    from idle to saturation; --sweep-points 8, --sweep-seconds 20
  --label NAME
  --output-json FILE, --output-requests FILE, --output-html FILE
`;

/** Throws InvalidParameterError naming the flag at fault. */
export function parseServeOptions(argv: readonly string[]): ServeOptions {
  const text = { type: 'string' } as const;
  const flag = { type: 'boolean' } as const;
  const { values, positionals } = parse([...argv], {
    url: text,
    'base-url': text,
    endpoint: text,
    model: text,
    tokenizer: text,
    'api-key': text,
    header: { type: 'string', multiple: true },
    'extra-body': text,
    temperature: text,
    'ignore-eos': flag,
    'no-ignore-eos': flag,
    timeout: text,
    'ready-check-timeout-sec': text,
    'dataset-name': text,
    'dataset-path': text,
    'num-prompts': text,
    limit: text,
    'random-input-len': text,
    'random-output-len': text,
    'random-range-ratio': text,
    'random-prefix-len': text,
    'random-prefix-share': text,
    'random-num-prefixes': text,
    'output-len': text,
    'vocab-size': text,
    seed: text,
    'request-rate': text,
    burstiness: text,
    'max-concurrency': text,
    'ramp-up-strategy': text,
    'ramp-up-start-rps': text,
    'ramp-up-end-rps': text,
    speedup: text,
    'trace-jitter': text,
    'num-warmups': text,
    goodput: { type: 'string', multiple: true },
    sweep: flag,
    'sweep-points': text,
    'sweep-seconds': text,
    label: text,
    'output-json': text,
    'output-requests': text,
    'output-html': text,
  });
  // vLLM's --goodput takes several values, which parseArgs hands out as positionals.
  const stray = positionals.find((word) => !/^[a-z0-9]+:/.test(word) || !values.goodput);
  if (stray !== undefined) throw InvalidParameterError.expected('a flag', 'bench serve', stray);

  const given = values as Given;
  const number = (name: string, bounds: Bounds = {}) => readNumber(given, name, bounds);
  const url = (given.url ?? given['base-url'])?.replace(/\/+$/, '').replace(/\/v1$/, '');
  if (!url || !/^https?:\/\//.test(url)) {
    throw InvalidParameterError.expected('an http address', '--url', url);
  }
  const dataset = oneOf(given, 'dataset-name', DATASETS) ?? 'random';
  if (dataset !== 'random' && !given['dataset-path']) {
    throw InvalidParameterError.expected(`a file for ${dataset}`, '--dataset-path', undefined);
  }
  const ratio = number('random-range-ratio', { least: 0, most: 1 }) ?? 0;
  const lengths = (name: string, byDefault: string) =>
    widen(parseLengths(given[name] ?? byDefault, `--${name}`), ratio);
  const options: ServeOptions = {
    url,
    endpoint: given.endpoint,
    model: given.model,
    tokenizer: given.tokenizer,
    apiKey: given['api-key'] ?? process.env.OPENAI_API_KEY,
    headers: readHeaders(values.header),
    extraBody: readJson(given, 'extra-body'),
    ignoreEos: values['ignore-eos'] ? true : values['no-ignore-eos'] ? false : undefined,
    temperature: number('temperature', { least: 0 }) ?? 0,
    timeout: number('timeout', { least: 0.001 }) ?? 600,
    readyTimeout: number('ready-check-timeout-sec', { least: 0 }) ?? 0,
    dataset,
    datasetPath: given['dataset-path'],
    numPrompts: number('num-prompts', { least: 1, whole: true }) ?? number('limit', COUNT),
    input: lengths('random-input-len', '1024'),
    output: lengths('random-output-len', '128'),
    outputTokens: number('output-len', COUNT),
    prefixTokens: number('random-prefix-len', { least: 0, whole: true }) ?? 0,
    prefixShare: number('random-prefix-share', { least: 0, most: 1 }) ?? 0,
    prefixes: number('random-num-prefixes', COUNT) ?? 1,
    vocabSize: number('vocab-size', { least: 2, whole: true }),
    seed: number('seed', { least: 0, whole: true }) ?? 0,
    requestRate: number('request-rate', { above: 0, infinite: true }),
    burstiness: number('burstiness', { above: 0, infinite: true }) ?? 1,
    maxConcurrency: number('max-concurrency', COUNT),
    speedup: number('speedup', { above: 0 }) ?? 1,
    traceJitter: number('trace-jitter', { least: 0 }),
    warmups: number('num-warmups', { least: 0, whole: true }) ?? 0,
    slos: parseSlos([...(values.goodput ?? []), ...positionals]),
    sweep: values.sweep === true,
    sweepPoints: number('sweep-points', COUNT) ?? 8,
    sweepSeconds: number('sweep-seconds', { above: 0 }) ?? 20,
    label: given.label ?? 'millrace bench',
    outputJson: given['output-json'],
    outputRequests: given['output-requests'],
    outputHtml: given['output-html'],
  };
  options.ramp = readRamp(given, options);
  return options;
}

interface Bounds {
  least?: number;
  above?: number;
  most?: number;
  whole?: boolean;
  infinite?: boolean;
}

const COUNT: Bounds = { least: 1, whole: true };

type Given = Record<string, string | undefined>;

function parse<T extends NonNullable<ParseArgsConfig['options']>>(args: string[], options: T) {
  try {
    return parseArgs({ args, options, allowPositionals: true });
  } catch (cause) {
    throw new InvalidParameterError((cause as Error).message, { cause });
  }
}

function readNumber(given: Given, name: string, bounds: Bounds): number | undefined {
  const text = given[name];
  if (text === undefined) return undefined;
  const { least = Number.NEGATIVE_INFINITY, above = Number.NEGATIVE_INFINITY } = bounds;
  const { most = Number.POSITIVE_INFINITY, whole, infinite } = bounds;
  const value = /^inf(inity)?$/i.test(text) ? Number.POSITIVE_INFINITY : Number(text);
  const sound = text.trim() !== '' && value >= least && value > above && value <= most;
  if (sound && (infinite || Number.isFinite(value)) && (!whole || Number.isInteger(value))) {
    return value;
  }
  const range = [
    ...(bounds.least === undefined ? [] : [`of at least ${least}`]),
    ...(bounds.above === undefined ? [] : [`above ${above}`]),
    ...(bounds.most === undefined ? [] : [`of at most ${most}`]),
    ...(infinite ? ['or inf'] : []),
  ].join(' ');
  throw InvalidParameterError.expected(
    `${whole ? 'integer' : 'number'} ${range}`,
    `--${name}`,
    text,
  );
}

function oneOf<T extends string>(given: Given, name: string, choices: readonly T[]): T | undefined {
  const text = given[name];
  if (text === undefined || choices.includes(text as T)) return text as T | undefined;
  throw InvalidParameterError.expected(`one of ${choices.join(', ')}`, `--${name}`, text);
}

function readHeaders(pairs: readonly string[] = []): Record<string, string> {
  return Object.fromEntries(
    pairs.map((pair) => {
      const at = pair.indexOf('=');
      if (at < 1) throw InvalidParameterError.expected('KEY=VALUE', '--header', pair);
      return [pair.slice(0, at).trim(), pair.slice(at + 1).trim()];
    }),
  );
}

function readJson(given: Given, name: string): Record<string, unknown> {
  const text = given[name];
  if (text === undefined) return {};
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
      return value as Record<string, unknown>;
    }
  } catch {}
  throw InvalidParameterError.expected('a JSON object', `--${name}`, text);
}

function readRamp(given: Given, options: ServeOptions): Ramp | undefined {
  const strategy = oneOf(given, 'ramp-up-strategy', ['linear', 'exponential'] as const);
  if (strategy === undefined) return undefined;
  if (options.requestRate !== undefined) {
    throw new InvalidParameterError('Expected --ramp-up-strategy or --request-rate, not both', {
      param: '--request-rate',
    });
  }
  const rps = (name: string) => {
    const value = readNumber(given, name, { above: 0 });
    if (value !== undefined) return value;
    throw InvalidParameterError.expected('a rate for --ramp-up-strategy', `--${name}`, undefined);
  };
  return { strategy, startRps: rps('ramp-up-start-rps'), endRps: rps('ramp-up-end-rps') };
}
