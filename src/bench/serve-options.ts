/** What `millrace bench serve` is asked to do. */
import { validateHeaderName, validateHeaderValue } from 'node:http';
import { expected, type FlagValues, UsageError } from '../flags/flag.js';
import type { ParsedFlags } from '../flags/parse-flags.js';
import type { Ramp } from './arrivals.js';
import { parseSlos, type Slos } from './goodput.js';
import { refuseIdleFlags } from './idle-flags.js';
import type { BENCH_SERVE_FLAGS, Dataset } from './serve-flags.js';
import { type Lengths, widen } from './workloads/lengths.js';

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
  /** ms. */
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
  /** ms over which a quantised trace's requests are spread. */
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

type Flags = FlagValues<typeof BENCH_SERVE_FLAGS>;

/** Throws UsageError naming the flag at fault. */
export function serveOptions(flags: ParsedFlags<typeof BENCH_SERVE_FLAGS>): ServeOptions {
  const { values, positionals } = flags;
  // vLLM's --goodput takes several values, which the parser hands out as positionals.
  const stray = positionals.find(
    (word) => !/^[a-z0-9]+:/.test(word) || values.goodput.length === 0,
  );
  if (stray !== undefined) {
    throw new UsageError(`bench serve takes flags only, but received ${JSON.stringify(stray)}`);
  }
  const given = values.url ?? values['base-url'];
  const url = given?.replace(/\/+$/, '').replace(/\/v1$/, '');
  if (!url || !/^https?:\/\//.test(url) || !URL.canParse(url)) {
    throw expected('an http address', 'url', given);
  }
  if (values.endpoint !== undefined && !/^\/\S*$/.test(values.endpoint)) {
    throw expected('a path like /v1/completions', 'endpoint', values.endpoint);
  }
  const dataset = values['dataset-name'];
  if (dataset !== 'random' && !values['dataset-path']) {
    throw expected(`a file for ${dataset}`, 'dataset-path', undefined);
  }
  refuseIdleFlags(flags);
  const ratio = values['random-range-ratio'];
  return {
    url,
    endpoint: values.endpoint,
    model: values.model,
    tokenizer: values.tokenizer,
    apiKey: checkedKey(values['api-key'] ?? process.env.OPENAI_API_KEY),
    headers: Object.fromEntries(values.header.map(keyAndValue)),
    extraBody: values['extra-body'] ?? {},
    ignoreEos: values['ignore-eos'],
    temperature: values.temperature,
    timeout: values.timeout,
    readyTimeout: values['ready-check-timeout-sec'],
    dataset,
    datasetPath: values['dataset-path'],
    numPrompts: values['num-prompts'] ?? values.limit,
    input: widen(values['random-input-len'], ratio),
    output: widen(values['random-output-len'], ratio),
    outputTokens: values['output-len'],
    prefixTokens: values['random-prefix-len'],
    prefixShare: values['random-prefix-share'],
    prefixes: values['random-num-prefixes'],
    vocabSize: values['vocab-size'],
    seed: values.seed,
    requestRate: values['request-rate'],
    burstiness: values.burstiness,
    maxConcurrency: values['max-concurrency'],
    ramp: ramp(values),
    speedup: values.speedup,
    traceJitter: values['trace-jitter'],
    warmups: values['num-warmups'],
    slos: parseSlos([...values.goodput, ...positionals]),
    sweep: values.sweep,
    sweepPoints: values['sweep-points'],
    sweepSeconds: values['sweep-seconds'],
    label: values.label,
    outputJson: values['output-json'],
    outputRequests: values['output-requests'],
    outputHtml: values['output-html'],
  };
}

function keyAndValue(pair: string): [string, string] {
  const at = pair.indexOf('=');
  const [name, value] = [pair.slice(0, at).trim(), pair.slice(at + 1).trim()];
  try {
    validateHeaderName(name);
    validateHeaderValue(name, value);
  } catch {
    throw expected('a name and a value HTTP allows, as KEY=VALUE,', 'header', pair);
  }
  return [name, value];
}

/** The message does not repeat the key: terminals and logs keep what they are shown. */
function checkedKey(key: string | undefined): string | undefined {
  try {
    if (key !== undefined) validateHeaderValue('authorization', key);
    return key;
  } catch {
    throw new UsageError(
      'Expected characters that HTTP allows in a header for --api-key (or OPENAI_API_KEY) but received others, such as a line break',
    );
  }
}

function ramp(values: Flags): Ramp | undefined {
  const strategy = values['ramp-up-strategy'];
  if (strategy === undefined) return undefined;
  const rps = (name: 'ramp-up-start-rps' | 'ramp-up-end-rps') => {
    const rate = values[name];
    if (rate === undefined) throw expected('a rate for --ramp-up-strategy', name, undefined);
    return rate;
  };
  return { strategy, startRps: rps('ramp-up-start-rps'), endRps: rps('ramp-up-end-rps') };
}
