/** The table at the end of a measurement. */
import type { Interval } from './bootstrap.js';
import type { BenchResult, SweepResult } from './result.js';
import { LATENCIES, type Latency, type Summary } from './summary.js';
import { cell, textTable } from './text-table.js';

export function textReport({ settings, summary, health, notes, partial }: BenchResult): string {
  const blocks = [
    [
      ...(health.bottleneck ? [health.bottleneck] : []),
      ...(partial ? ['INTERRUPTED: the figures are of the requests sent until then.'] : []),
      `${settings.model} at ${settings.url}${settings.endpoint}: ${settings.workload}, ${loadText(settings)}, seed ${settings.seed}`,
    ].join('\n'),
    textTable(['', 'value', '95 % interval'], throughputRows(summary)),
    textTable(
      ['latency, ms', 'mean', 'p50', 'p90', 'p95', 'p99', '95 % interval of p50', 'of p99'],
      (Object.keys(LATENCIES) as Latency[]).map((name) => latencyRow(name, summary)),
    ),
    noteLines(summary, notes)
      .map((line) => `- ${line}`)
      .join('\n'),
  ];
  return blocks.filter((block) => block !== '').join('\n\n');
}

/** The load in words. */
export function loadText(settings: BenchResult['settings']): string {
  const { requestRate, burstiness, maxConcurrency, ramp } = settings;
  const limit = maxConcurrency === null ? '' : `, at most ${maxConcurrency} in flight`;
  if (ramp) return `${ramp.strategy} ramp from ${ramp.startRps} to ${ramp.endRps} req/s${limit}`;
  if (requestRate === null) {
    const { speedup = 1 } = settings;
    return `the trace's own times${speedup === 1 ? '' : `, ${speedup} times as fast`}${limit}`;
  }
  if (requestRate === Number.POSITIVE_INFINITY) {
    return maxConcurrency === null ? 'all at once' : `closed loop of ${maxConcurrency}`;
  }
  const arrivals =
    burstiness === 1
      ? 'Poisson'
      : burstiness === Number.POSITIVE_INFINITY
        ? 'constant'
        : `gamma with burstiness ${burstiness}`;
  return `${cell(requestRate)} req/s, ${arrivals}${limit}`;
}

function throughputRows(summary: Summary): string[][] {
  const { steady, goodput } = summary;
  const where = steady.steady ? 'steady' : 'whole run';
  const rows = [
    ['requests completed', cell(summary.completed), ''],
    ['requests failed', cell(summary.failed), ''],
    ['duration', cell(summary.duration, ' s'), ''],
    ['input tokens', cell(summary.inputTokens), ''],
    ['output tokens', cell(summary.outputTokens), ''],
    [`requests/s, ${where}`, cell(steady.requests.value), range(steady.requests.interval)],
    [
      `output tok/s, ${where}`,
      cell(steady.outputTokens.value),
      range(steady.outputTokens.interval),
    ],
    [`total tok/s, ${where}`, cell(steady.totalTokens.value), range(steady.totalTokens.interval)],
  ];
  if (steady.steady) {
    rows.push(['requests/s, whole run', cell(summary.requestThroughput), '']);
    rows.push(['output tok/s, whole run', cell(summary.outputThroughput), '']);
  }
  if (goodput) {
    rows.push(['goodput, requests/s', cell(goodput.requestsPerSecond), '']);
    rows.push(['SLOs met by', percent(goodput.attainmentAll), '']);
    for (const [name, share] of Object.entries(goodput.attainment)) {
      const bound = goodput.slos[name as keyof typeof goodput.slos];
      rows.push([`  ${name} <= ${bound} ms`, percent(share), '']);
    }
  }
  return rows;
}

function latencyRow(name: Latency, { latencies }: Summary): string[] {
  const { mean, percentiles, intervals } = latencies[name];
  return [
    LATENCIES[name],
    cell(mean),
    ...[50, 90, 95, 99].map((p) => cell(percentiles[p])),
    range(intervals.percentiles[50]),
    range(intervals.percentiles[99]),
  ];
}

function noteLines(summary: Summary, notes: readonly string[]): string[] {
  const { steady, errors, errorExamples, usageMismatches, usageMissing, finishReasons } = summary;
  const lines = Object.entries(errors).map(([kind, count]) => {
    const example = errorExamples[kind as keyof typeof errorExamples] ?? '';
    return `${count} failed: ${kind}, for example "${example.slice(0, 160)}"`;
  });
  if (summary.completed > 0) {
    const span = `${cell((steady.to - steady.from) / 1000)} s`;
    lines.push(
      steady.steady
        ? `steady window of ${span}: from the first answer's end to the last send`
        : 'no steady window (the run is too short for it): throughput is of the whole run',
    );
    const reasons = Object.entries(finishReasons).map(([reason, count]) => `${reason} ${count}`);
    lines.push(`finish reasons: ${reasons.join(', ')}`);
  }
  if (usageMismatches > 0) {
    lines.push(
      `${usageMismatches} answers whose usage and stream tell different numbers of tokens: usage is taken, ITL lacks the tokens not seen. Servers that return ids show every token: --extra-body '{"return_token_ids":true}'`,
    );
  }
  if (usageMissing > 0)
    lines.push(`${usageMissing} answers without usage: tokens seen are counted`);
  return [...lines, ...notes];
}

/** A table of the points, with the latency/throughput curve drawn beside it. */
export function sweepReport(sweep: SweepResult): string {
  const { points, saturation, settings, notes, partial } = sweep;
  const bottleneck = points.find((point) => point.result.health.bottleneck)?.result.health;
  const most = Math.max(
    ...points.map((point) => point.result.summary.latencies.ttft.percentiles[50] || 0),
  );
  const rows = points.map(({ name, result, overSaturated }) => {
    const { steady, latencies, goodput, failed } = result.summary;
    const ttft = latencies.ttft.percentiles[50];
    return [
      name + (overSaturated ? ' (over-saturated)' : ''),
      cell(steady.requests.value),
      cell(steady.outputTokens.value),
      cell(ttft),
      cell(latencies.ttft.percentiles[99]),
      cell(latencies.tpot.percentiles[50]),
      cell(latencies.itl.percentiles[99]),
      goodput ? percent(goodput.attainmentAll) : '-',
      String(failed),
      bar(ttft, most),
    ];
  });
  const header = ['offered', 'req/s', 'out tok/s', 'TTFT p50', 'p99', 'TPOT p50', 'ITL p99'];
  return [
    ...(bottleneck?.bottleneck ? [bottleneck.bottleneck] : []),
    ...(partial ? ['INTERRUPTED: the sweep is not complete.'] : []),
    `${settings.model} at ${settings.url}${settings.endpoint}: ${settings.workload}, seed ${settings.seed}`,
    `saturation: ${cell(saturation.requests)} req/s, ${cell(saturation.outputTokens)} output tok/s`,
    '',
    textTable([...header, 'SLOs met', 'failed', 'TTFT p50, log scale'], rows),
    ...(notes.length > 0 ? ['', ...notes.map((note) => `- ${note}`)] : []),
  ].join('\n');
}

/** On a logarithmic scale from 1 ms, because latency leaves the paper at saturation. */
function bar(value: number, most: number): string {
  if (!(value > 0)) return '';
  const share = Math.log1p(value) / Math.log1p(Math.max(most, 1));
  return '#'.repeat(Math.max(1, Math.round(share * 24))).padEnd(24);
}

function range([low, high]: Interval): string {
  return Number.isNaN(low) ? '' : `${cell(low)} - ${cell(high)}`;
}

function percent(share: number): string {
  return Number.isNaN(share) ? '-' : `${(share * 100).toFixed(1)} %`;
}
