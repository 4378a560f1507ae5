/** `millrace bench serve`: measures a server under one load, or sweeps from idle to saturation. */
import { writeFileSync } from 'node:fs';
import { setTimeout as pause } from 'node:timers/promises';
import { InvalidParameterError } from '../errors.js';
import { parseFlags } from '../flags/parse-flags.js';
import { LiveLine } from './live-line.js';
import { runLoad } from './load.js';
import { intendedTimes, type LoadedWorkload, loadWorkload } from './load-workload.js';
import { htmlReport } from './report-html.js';
import { jsonReport, requestLines, sweepJson } from './report-json.js';
import { sweepReport, textReport } from './report-text.js';
import type { BenchResult, Settings, SweepPoint, SweepResult } from './result.js';
import { BENCH_SERVE_FLAGS, BENCH_SERVE_HELP } from './serve-flags.js';
import { type ServeOptions, serveOptions } from './serve-options.js';
import { summarize } from './summary.js';
import { type MeasuredPoint, sweep } from './sweep.js';
import { sweepNotes } from './sweep-notes.js';
import { firstModel, Target } from './target.js';

/** What the shell is told. */
export const EXIT = { ok: 0, nothingCompleted: 1, clientBottleneck: 3, interrupted: 130 } as const;

/** In flight while a sweep saturates the server, unless --max-concurrency says otherwise. */
const SATURATING = 256;

/**
 * Runs to its end and returns the exit code. The first SIGINT ends the run with a report of what
 * was measured; a second one ends the process. Throws UsageError
 * or InvalidParameterError.
 */
export async function benchServe(argv: readonly string[]): Promise<number> {
  const flags = parseFlags(BENCH_SERVE_FLAGS, argv);
  if (flags.values.help) {
    console.log(BENCH_SERVE_HELP);
    return EXIT.ok;
  }
  const options = serveOptions(flags);
  const workload = await loadWorkload(options);
  if (workload.requests.length === 0) {
    throw InvalidParameterError.expected(
      'at least one request',
      '--dataset-path',
      options.datasetPath,
    );
  }
  const model =
    options.model ?? (await firstModel(options.url, options.apiKey, options.readyTimeout));
  const target = makeTarget(options, workload, model);
  const settings = describe(options, workload, target);
  const controller = new AbortController();
  const interrupt = () => {
    if (controller.signal.aborted) process.exit(EXIT.interrupted);
    controller.abort();
  };
  process.on('SIGINT', interrupt);
  try {
    await warmUp(workload, target, options.warmups, controller.signal);
    return options.sweep
      ? await runSweep(options, workload, target, settings, controller.signal)
      : await runOnce(options, workload, target, settings, controller.signal);
  } finally {
    process.off('SIGINT', interrupt);
    target.close();
  }
}

function makeTarget(options: ServeOptions, workload: LoadedWorkload, model: string): Target {
  const { url, apiKey, headers, temperature, timeout } = options;
  return new Target({
    url,
    endpoint: workload.endpoint,
    model,
    apiKey,
    headers,
    timeout,
    extraBody: {
      temperature,
      ...(workload.ignoreEos ? { ignore_eos: true } : {}),
      ...options.extraBody,
    },
    decode: workload.decode,
  });
}

function describe(options: ServeOptions, workload: LoadedWorkload, target: Target): Settings {
  const { requestRate, ramp } = options;
  const fromTrace = workload.requests[0].at !== undefined && requestRate === undefined && !ramp;
  return {
    label: options.label,
    url: options.url,
    endpoint: workload.endpoint,
    model: target.options.model,
    dataset: workload.name,
    workload: workload.description,
    numPrompts: workload.requests.length,
    requestRate: fromTrace ? null : (requestRate ?? Number.POSITIVE_INFINITY),
    burstiness: options.burstiness,
    maxConcurrency: options.maxConcurrency ?? null,
    ramp,
    speedup: fromTrace ? options.speedup : undefined,
    seed: options.seed,
  };
}

async function warmUp(
  workload: LoadedWorkload,
  target: Target,
  count: number,
  signal: AbortSignal,
): Promise<void> {
  if (count === 0) return;
  // The last ones, so that the first do not find themselves in the server's prefix cache.
  const { requests } = workload;
  const request = (index: number) => requests[requests.length - 1 - (index % requests.length)];
  await runLoad({ count, request, maxConcurrency: 8 }, target, { signal });
  // Lets the server's last work and our garbage settle.
  await pause(100);
}

async function runOnce(
  options: ServeOptions,
  workload: LoadedWorkload,
  target: Target,
  settings: Settings,
  signal: AbortSignal,
): Promise<number> {
  const { requests, notes } = workload;
  const times = intendedTimes(requests, options);
  const load = { count: requests.length, request: (index: number) => requests[index] };
  const live = new LiveLine(requests.length, { times });
  const { maxConcurrency } = options;
  const { records, health, aborted } = await runLoad({ ...load, times, maxConcurrency }, target, {
    signal,
    observer: live,
  });
  live.end();
  const result: BenchResult = {
    date: new Date().toISOString(),
    settings,
    summary: summarize(records, { slos: options.slos, seed: options.seed }),
    health,
    notes,
    partial: aborted,
  };
  console.log(textReport(result));
  if (options.outputJson) writeJson(options.outputJson, jsonReport(result));
  if (options.outputRequests) writeFileSync(options.outputRequests, requestLines(records));
  if (options.outputHtml) writeFileSync(options.outputHtml, htmlReport(result));
  return exitCode([result]);
}

async function runSweep(
  options: ServeOptions,
  workload: LoadedWorkload,
  target: Target,
  settings: Settings,
  signal: AbortSignal,
): Promise<number> {
  const points: SweepPoint[] = [];
  const lines: string[] = [];
  const measured = sweep({
    target,
    requests: workload.requests,
    points: options.sweepPoints,
    seconds: options.sweepSeconds,
    burstiness: options.burstiness,
    saturatingConcurrency: options.maxConcurrency ?? SATURATING,
    seed: options.seed,
    signal,
    onPoint: (title, count, times) => new LiveLine(count, { title, times }),
  });
  for await (const point of measured) {
    points.push(sweepPoint(point, options, workload, settings, signal.aborted));
    if (options.outputRequests) lines.push(requestLines(point.records, point.name));
  }
  const saturated = points.find(({ name }) => name === 'saturated')?.result.summary.steady;
  const result: SweepResult = {
    date: new Date().toISOString(),
    settings,
    points,
    saturation: {
      requests: saturated?.requests.value ?? Number.NaN,
      outputTokens: saturated?.outputTokens.value ?? Number.NaN,
    },
    notes: [...workload.notes, ...sweepNotes(points, workload.requests)],
    partial: signal.aborted,
  };
  console.log(sweepReport(result));
  if (options.outputJson) writeJson(options.outputJson, sweepJson(result));
  if (options.outputRequests) writeFileSync(options.outputRequests, lines.join(''));
  if (options.outputHtml) writeFileSync(options.outputHtml, htmlReport(result));
  return exitCode(points.map((point) => point.result));
}

function sweepPoint(
  { name, rate, overSaturated, records, health }: MeasuredPoint,
  options: ServeOptions,
  workload: LoadedWorkload,
  settings: Settings,
  partial: boolean,
): SweepPoint {
  const result: BenchResult = {
    date: new Date().toISOString(),
    settings: {
      ...settings,
      requestRate: rate ?? Number.POSITIVE_INFINITY,
      numPrompts: records.length,
    },
    summary: summarize(records, { slos: options.slos, seed: options.seed }),
    health,
    notes: workload.notes,
    partial,
  };
  return { name, rate, result, overSaturated };
}

/** The first that applies: interrupted, nothing completed, the client was the bottleneck. */
function exitCode(results: readonly BenchResult[]): number {
  if (results.some((result) => result.partial)) return EXIT.interrupted;
  if (results.every((result) => result.summary.completed === 0)) return EXIT.nothingCompleted;
  if (results.some((result) => result.health.bottleneck)) return EXIT.clientBottleneck;
  return EXIT.ok;
}

function writeJson(path: string, report: Record<string, unknown>): void {
  writeFileSync(path, `${JSON.stringify(report, null, 1)}\n`);
}
