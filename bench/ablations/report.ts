/** What the ablations measured, as a table with spreads and as a compact one in Markdown. */
import { median } from '../../src/bench/statistics.js';
import { cell, textTable } from '../../src/bench/text-table.js';
import type { Result } from './measure.js';

/** Results of each policy, one a run. */
export type Results = ReadonlyMap<string, readonly Result[]>;
type Measure = keyof Result;

const TITLES: Readonly<Record<Measure, string>> = {
  tokensPerSecond: 'output tok/s',
  ...{ ttft50: 'TTFT p50 ms', ttft99: 'TTFT p99', itl50: 'ITL p50 ms', itl99: 'ITL p99' },
  ...{ e2e50: 'E2E p50 ms', e2e99: 'E2E p99' },
  ...{ running: 'running', cached: 'cached', preemptions: 'preempted' },
};
const AT_ONCE = ['tokensPerSecond', 'e2e50', 'e2e99'] as const;
const AT_RATE = [
  'tokensPerSecond',
  'ttft50',
  'ttft99',
  'itl50',
  'itl99',
  'e2e50',
  'e2e99',
] as const;
const STATES = ['running', 'cached', 'preemptions'] as const;

export interface AblationReport {
  /** Requests a second of the second half, and the output tokens a second they ask for. */
  rate: number;
  offered: number;
  atOnce: Results;
  atRate: Results;
}

/** Medians with (least - most) over the runs. */
export function spreadTables({ rate, offered, atOnce, atRate }: AblationReport): string {
  const heading = `at ${cell(rate)} requests a second, which ask for ${cell(offered)} output tok/s`;
  return `all at once\n${table(atOnce, AT_ONCE)}\n\n${heading}\n${table(atRate, AT_RATE)}`;
}

function table(results: Results, measures: readonly Measure[]): string {
  const rows = [...results].map(([name, runs]) => [
    name,
    ...measures.map((key) => spread(runs, key)),
    ...STATES.map((key) => middle(runs, key)),
  ]);
  return textTable(['policy', ...[...measures, ...STATES].map((key) => TITLES[key])], rows);
}

/** Medians only, for a document: both halves in one table. */
export function markdownTable({ rate, atOnce, atRate }: AblationReport): string {
  const columns = [
    ['tok/s, all at once', atOnce, 'tokensPerSecond'],
    [`TTFT p50 at ${cell(rate)} req/s, ms`, atRate, 'ttft50'],
    ['TTFT p99', atRate, 'ttft99'],
    ['ITL p50', atRate, 'itl50'],
    ['ITL p99', atRate, 'itl99'],
    ['E2E p50', atRate, 'e2e50'],
  ] as const;
  const line = (cells: readonly string[]) => `| ${cells.join(' | ')} |`;
  return [
    line(['', ...columns.map(([title]) => title)]),
    line(['---', ...columns.map(() => '---:')]),
    ...[...atOnce.keys()].map((name) =>
      line([name, ...columns.map(([, results, key]) => middle(results.get(name)!, key))]),
    ),
  ].join('\n');
}

function spread(runs: readonly Result[], key: Measure): string {
  if (runs.length < 2) return middle(runs, key);
  const values = runs.map((run) => run[key]);
  return `${middle(runs, key)} (${cell(Math.min(...values))} - ${cell(Math.max(...values))})`;
}

function middle(runs: readonly Result[], key: Measure): string {
  const value = runs.length === 0 ? Number.NaN : median(runs.map((run) => run[key]));
  return key === 'cached' ? cell(100 * value, '%') : cell(value);
}
