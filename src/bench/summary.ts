/** From the records of a run to its figures. Latencies are defined once, in docs/metrics.md. */
import { type Distribution, distribution } from './bootstrap.js';
import { type GoodputReport, goodput, type Slos } from './goodput.js';
import {
  ERROR_KINDS,
  e2e,
  type RequestError,
  type RequestRecord,
  tpot,
  tpotGuidellm,
  ttft,
} from './request-record.js';
import { type SteadyWindow, steadyWindow } from './steady-window.js';
import { type Timeline, timeline } from './timeline.js';

/** The latencies, by the names vLLM's JSON has for them where it has one; all in ms. */
export const LATENCIES = {
  ttft: 'TTFT',
  tpot: 'TPOT',
  itl: 'ITL',
  e2el: 'E2E',
  ttft_from_sent: 'TTFT from the send',
  tpot_guidellm: "TPOT, guidellm's",
} as const;

export type Latency = keyof typeof LATENCIES;

export interface Summary {
  /** Seconds from the first intended time to the last end. */
  duration: number;
  completed: number;
  failed: number;
  errors: Partial<Record<RequestError['kind'], number>>;
  /** One message of each kind. */
  errorExamples: Partial<Record<RequestError['kind'], string>>;
  finishReasons: Record<string, number>;
  inputTokens: number;
  cachedTokens: number;
  outputTokens: number;
  /** Over the whole duration, a second, as vLLM counts. */
  requestThroughput: number;
  outputThroughput: number;
  totalThroughput: number;
  /** The same over the steady window. */
  steady: SteadyWindow;
  latencies: Record<Latency, Distribution>;
  goodput?: GoodputReport & { requestsPerSecond: number };
  /** Requests whose usage and stream tell different numbers of output tokens, or that lack usage. */
  usageMismatches: number;
  usageMissing: number;
  maxOutputTokensPerSecond: number;
  maxConcurrency: number;
  timeline: Timeline;
}

/** Statistics are of the requests that succeeded; the failed are counted. */
export function summarize(
  records: readonly RequestRecord[],
  options: { slos?: Slos; seed?: number } = {},
): Summary {
  const { slos = {}, seed = 0 } = options;
  const good = records.filter((record) => !record.error);
  const start = least(records, (record) => Math.min(record.intended, record.sent));
  const end = -least(records, (record) => -record.end);
  const duration = records.length === 0 ? 0 : (end - start) / 1000;
  const inputTokens = sum(good, (record) => record.promptTokens);
  const outputTokens = sum(good, (record) => record.outputTokens);
  const each = (of: (record: RequestRecord) => number) =>
    distribution(
      good.map((record) => [of(record)].filter((value) => !Number.isNaN(value))),
      { seed },
    );
  const report = Object.keys(slos).length > 0 ? goodput(records, slos) : undefined;
  const bySecond = secondBySecond(good, start, end);
  return {
    duration,
    completed: good.length,
    failed: records.length - good.length,
    ...countErrors(records),
    finishReasons: countReasons(good),
    inputTokens,
    cachedTokens: sum(good, (record) => record.cachedTokens),
    outputTokens,
    requestThroughput: good.length / duration,
    outputThroughput: outputTokens / duration,
    totalThroughput: (inputTokens + outputTokens) / duration,
    steady: steadyWindow(records, start, end),
    latencies: {
      ttft: each(ttft),
      tpot: each(tpot),
      itl: distribution(good.map(gaps), { seed }),
      e2el: each(e2e),
      ttft_from_sent: each((record) => record.tokenTimes[0] - record.sent),
      tpot_guidellm: each(tpotGuidellm),
    },
    goodput: report && { ...report, requestsPerSecond: report.good / duration },
    usageMismatches: sum(good, ({ usageTokens, tokenTimes }) =>
      usageTokens !== undefined && usageTokens !== tokenTimes.length ? 1 : 0,
    ),
    usageMissing: sum(good, ({ usageTokens }) => (usageTokens === undefined ? 1 : 0)),
    ...bySecond,
    timeline: timeline(records, start, end),
  };
}

/** ms between each token and the one before it. */
function gaps({ tokenTimes }: RequestRecord): number[] {
  const result: number[] = new Array(Math.max(0, tokenTimes.length - 1));
  for (let i = 1; i < tokenTimes.length; i++) result[i - 1] = tokenTimes[i] - tokenTimes[i - 1];
  return result;
}

/** vLLM's peaks: the fullest second's tokens, and the requests that touch one second. */
function secondBySecond(records: readonly RequestRecord[], start: number, end: number) {
  const seconds = Math.max(0, Math.floor((end - start) / 1000)) + 1;
  if (!Number.isFinite(seconds)) return { maxOutputTokensPerSecond: 0, maxConcurrency: 0 };
  const tokens = new Uint32Array(seconds);
  const touching = new Uint32Array(seconds);
  const second = (time: number) => Math.floor((time - start) / 1000);
  for (const record of records) {
    for (const time of record.tokenTimes) tokens[second(time)]++;
    for (let i = second(record.sent); i <= second(record.end); i++) touching[i]++;
  }
  const peak = (counts: Uint32Array) => counts.reduce((most, count) => Math.max(most, count), 0);
  return { maxOutputTokensPerSecond: peak(tokens), maxConcurrency: peak(touching) };
}

function countErrors(records: readonly RequestRecord[]) {
  const errors: Summary['errors'] = {};
  const errorExamples: Summary['errorExamples'] = {};
  for (const kind of ERROR_KINDS) {
    const failed = records.filter((record) => record.error?.kind === kind);
    if (failed.length === 0) continue;
    errors[kind] = failed.length;
    errorExamples[kind] = failed[0].error?.message;
  }
  return { errors, errorExamples };
}

function countReasons(records: readonly RequestRecord[]): Record<string, number> {
  const reasons: Record<string, number> = {};
  for (const { finishReason } of records) {
    const reason = finishReason ?? 'none';
    reasons[reason] = (reasons[reason] ?? 0) + 1;
  }
  return reasons;
}

function sum(records: readonly RequestRecord[], of: (record: RequestRecord) => number): number {
  return records.reduce((total, record) => total + of(record), 0);
}

function least(records: readonly RequestRecord[], of: (record: RequestRecord) => number): number {
  return records.reduce((best, record) => Math.min(best, of(record)), Number.POSITIVE_INFINITY);
}
