/**
 * Compares two measurements: the ratio of each figure with a 95 % interval, and whether the
 * difference is more than chance within the runs.
 *
 * Each figure has a bootstrap interval in its file. On the logarithmic scale its half-width is
 * 1.96 standard errors; the ratio's error is the root of the sum of squares (the delta method).
 * What differs from run to run (another neighbour, another clock speed) is in no interval.
 */
import { readFileSync } from 'node:fs';
import { InvalidParameterError } from '../errors.js';
import type { Interval } from './bootstrap.js';
import { cell, textTable } from './text-table.js';

export interface Comparison {
  key: string;
  name: string;
  a: number;
  b: number;
  /** b / a; NaN where one of them is 0. */
  ratio: number;
  interval?: Interval;
  /** `better`: B is better than A by more than chance. */
  verdict: 'better' | 'worse' | 'not significant' | 'no interval';
}

interface Figure {
  key: string;
  name: string;
  more: 'better' | 'worse';
}

const FIGURES: readonly Figure[] = [
  { key: 'steady_request_throughput', name: 'requests/s', more: 'better' },
  { key: 'steady_output_throughput', name: 'output tok/s', more: 'better' },
  { key: 'steady_total_token_throughput', name: 'total tok/s', more: 'better' },
  { key: 'request_goodput', name: 'goodput', more: 'better' },
  ...['ttft', 'tpot', 'itl', 'e2el'].flatMap((latency) =>
    ['mean', 'median', 'p90', 'p95', 'p99'].map(
      (statistic): Figure => ({
        key: `${statistic}_${latency}_ms`,
        name: `${latency === 'e2el' ? 'E2E' : latency.toUpperCase()} ${statistic}, ms`,
        more: 'worse',
      }),
    ),
  ),
];

type Report = Record<string, unknown>;

/** One entry for each figure that both have. */
export function compare(a: Report, b: Report): Comparison[] {
  return FIGURES.flatMap(({ key, name, more }): Comparison[] => {
    const [x, y] = [a[key], b[key]];
    if (typeof x !== 'number' || typeof y !== 'number') return [];
    if (x <= 0 || y <= 0) {
      const verdict = x === y ? 'not significant' : 'no interval';
      return [{ key, name, a: x, b: y, ratio: Number.NaN, verdict }];
    }
    const ratio = y / x;
    const interval = ratioInterval(ratio, a[`ci95_${key}`], b[`ci95_${key}`]);
    const less = more === 'better' ? 'worse' : 'better';
    const verdict = !interval
      ? 'no interval'
      : interval[0] > 1
        ? more
        : interval[1] < 1
          ? less
          : 'not significant';
    return [{ key, name, a: x, b: y, ratio, interval, verdict }];
  });
}

function ratioInterval(ratio: number, a: unknown, b: unknown): Interval | undefined {
  if (!isInterval(a) || !isInterval(b)) return undefined;
  const halfWidth = ([low, high]: Interval) => (Math.log(high) - Math.log(low)) / 2;
  const half = Math.hypot(halfWidth(a), halfWidth(b));
  return [ratio * Math.exp(-half), ratio * Math.exp(half)];
}

function isInterval(value: unknown): value is Interval {
  return Array.isArray(value) && value.length === 2 && value.every((end) => end > 0);
}

/** The table of `millrace bench compare A.json B.json`. Throws InvalidParameterError. */
export function compareFiles(pathA: string, pathB: string): string {
  const [a, b] = [readReport(pathA), readReport(pathB)];
  const comparisons = compare(a, b);
  const rows = comparisons.map(({ name, a: x, b: y, ratio, interval, verdict }) => [
    name,
    cell(x),
    cell(y),
    Number.isNaN(ratio) ? '-' : ratio.toFixed(3),
    interval ? `${interval[0].toFixed(3)} - ${interval[1].toFixed(3)}` : '-',
    verdict === 'better' || verdict === 'worse' ? `B is ${verdict}` : verdict,
  ]);
  const differing = [
    'model_id',
    'endpoint',
    'workload',
    'seed',
    'num_prompts',
    'request_rate',
    'burstiness',
    'max_concurrency',
  ].filter((key) => JSON.stringify(a[key]) !== JSON.stringify(b[key]));
  return [
    ...[a, b].flatMap((report, index) => warningsOf(report, index === 0 ? 'A' : 'B')),
    ...differing.map(
      (key) => `note: ${key} differs: ${JSON.stringify(a[key])} and ${JSON.stringify(b[key])}`,
    ),
    `A: ${pathA}, ${a.completed} completed, ${a.failed} failed`,
    `B: ${pathB}, ${b.completed} completed, ${b.failed} failed`,
    '',
    textTable(['', 'A', 'B', 'B / A', '95 % interval', ''], rows),
    '',
    'Intervals hold the chance within each run, not what differs from run to run: repeat both.',
  ].join('\n');
}

function warningsOf(report: Report, name: string): string[] {
  const bottleneck = (report.client as { bottleneck?: string | null } | undefined)?.bottleneck;
  return [
    ...(bottleneck ? [`${name}: ${bottleneck}`] : []),
    ...(report.partial === true ? [`${name} was interrupted`] : []),
  ];
}

function readReport(path: string): Report {
  let report: Report;
  try {
    report = JSON.parse(readFileSync(path, 'utf8')) as Report;
  } catch (cause) {
    const reason = (cause as Error).message;
    throw new InvalidParameterError(`Expected a JSON report in ${path}: ${reason}`, { cause });
  }
  if (typeof report?.completed === 'number') return report;
  throw new InvalidParameterError(
    `Expected a report of bench serve in ${path}: it has no "completed"${report?.sweep ? ' (a sweep cannot be compared)' : ''}`,
  );
}
