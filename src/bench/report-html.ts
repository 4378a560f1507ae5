/** A measurement as one page that needs nothing else: no script, no font, no network. */
import { loadText, sweepReport, textReport } from './report-text.js';
import type { BenchResult, SweepResult } from './result.js';
import type { Latency } from './summary.js';
import { escapeHtml, lineChart, type Series } from './svg-chart.js';
import { cell } from './text-table.js';

export function htmlReport(result: BenchResult | SweepResult): string {
  return 'points' in result ? sweepPage(result) : runPage(result);
}

function runPage(result: BenchResult): string {
  const { settings, health, partial } = result;
  return page({
    title: settings.label,
    subtitle: `${settings.model} at ${settings.url}${settings.endpoint}: ${settings.workload}, ${loadText(settings)}`,
    date: result.date,
    warnings: warnings(health.bottleneck, partial),
    tiles: tiles(result),
    charts: [cdf('ttft', [['', result]]), cdf('itl', [['', result]]), ...timelines(result)],
    table: textReport(result),
  });
}

function sweepPage(sweep: SweepResult): string {
  const { settings, points, saturation } = sweep;
  const open = points.filter((point) => point.rate !== null);
  const named = points.map((point): [string, BenchResult] => [point.name, point.result]);
  const busiest = open.at(-1) ?? points[points.length - 1];
  const bottleneck = points.find((point) => point.result.health.bottleneck)?.result.health;
  return page({
    title: settings.label,
    subtitle: `${settings.model} at ${settings.url}${settings.endpoint}: ${settings.workload}, from idle to saturation`,
    date: sweep.date,
    warnings: warnings(bottleneck?.bottleneck, sweep.partial),
    tiles: [
      ['saturation', cell(saturation.requests), 'requests/s'],
      ['saturation', cell(saturation.outputTokens), 'output tok/s'],
      ...(points.length > 0
        ? [['idle TTFT', cell(points[0].result.summary.latencies.ttft.percentiles[50]), 'ms, p50']]
        : []),
    ],
    charts: [
      curve('Latency over throughput: TTFT', 'TTFT, ms', open, 'ttft'),
      curve('Latency over throughput: TPOT', 'TPOT, ms', open, 'tpot'),
      cdf('ttft', named),
      cdf('itl', named),
      ...(busiest ? timelines(busiest.result, ` at ${busiest.name}`) : []),
    ],
    table: sweepReport(sweep),
  });
}

/** p50 and p99 of a latency over the output tokens a second, point by point. */
function curve(title: string, y: string, points: SweepResult['points'], name: Latency): string {
  const series = ([50, 99] as const).map((p): Series => {
    const shown = points
      .map((point) => ({
        label: `${point.name}: p${p} ${cell(point.result.summary.latencies[name].percentiles[p])} ms`,
        x: point.result.summary.steady.outputTokens.value,
        y: point.result.summary.latencies[name].percentiles[p],
      }))
      .filter((point) => point.x > 0 && point.y > 0);
    return {
      name: `p${p}`,
      points: shown.map((point) => [point.x, point.y] as const),
      labels: shown.map((point) => point.label),
      dashed: p === 99,
    };
  });
  return lineChart({ title, x: 'output tokens/s', y, series, logY: true });
}

function cdf(name: 'ttft' | 'itl', results: readonly (readonly [string, BenchResult])[]): string {
  const title = name === 'ttft' ? 'Time to first token' : 'Inter-token latency';
  const series = results.map(([label, result]): Series => {
    const { quantiles } = result.summary.latencies[name];
    return { name: label, points: quantiles.map((value, i) => [value, i / 2] as const) };
  });
  return lineChart({
    title: `${title}: share of ${name === 'ttft' ? 'requests' : 'gaps'} at or below`,
    x: `${name.toUpperCase()}, ms`,
    y: '%',
    series,
    logX: true,
    maxY: 100,
  });
}

function timelines({ summary }: BenchResult, where = ''): string[] {
  const { step, concurrency, tokens } = summary.timeline;
  const over = (values: readonly number[]): Series[] => [
    { name: '', points: values.map((value, i) => [(i + 0.5) * step, value] as const) },
  ];
  return [
    lineChart({
      title: `Requests in flight${where}`,
      x: 'seconds',
      y: 'requests',
      series: over(concurrency),
    }),
    lineChart({
      title: `Output tokens a second${where}`,
      x: 'seconds',
      y: 'tokens/s',
      series: over(tokens),
    }),
  ];
}

function tiles({ summary }: BenchResult): string[][] {
  const { steady, latencies, goodput, completed, failed } = summary;
  return [
    ['throughput', cell(steady.outputTokens.value), 'output tok/s'],
    ['requests', cell(steady.requests.value), 'per second'],
    [
      'TTFT',
      cell(latencies.ttft.percentiles[50]),
      `ms; p99 ${cell(latencies.ttft.percentiles[99])}`,
    ],
    [
      'TPOT',
      cell(latencies.tpot.percentiles[50]),
      `ms; p99 ${cell(latencies.tpot.percentiles[99])}`,
    ],
    ...(goodput
      ? [
          [
            'goodput',
            cell(goodput.requestsPerSecond),
            `req/s; ${cell(goodput.attainmentAll * 100)} % met`,
          ],
        ]
      : []),
    ['completed', cell(completed), failed === 0 ? 'none failed' : `${failed} FAILED`],
  ];
}

function warnings(bottleneck: string | undefined, partial: boolean): string[] {
  const lines = bottleneck ? [bottleneck] : [];
  if (partial) lines.push('INTERRUPTED: the figures are of the requests sent until then.');
  return lines;
}

interface Page {
  title: string;
  subtitle: string;
  date: string;
  warnings: readonly string[];
  tiles: readonly string[][];
  charts: readonly string[];
  table: string;
}

function page({
  title,
  subtitle,
  date,
  warnings: lines,
  tiles: facts,
  charts,
  table,
}: Page): string {
  const warning = lines.map((line) => `<p class="warning">${escapeHtml(line)}</p>`).join('');
  const fact = facts.map(
    ([name, value, unit]) =>
      `<div><dt>${escapeHtml(name)}</dt><dd><b>${escapeHtml(value)}</b> ${escapeHtml(unit)}</dd></div>`,
  );
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${escapeHtml(title)}</title>
<style>${STYLE}</style>
</head>
<body>
<header><h1>${escapeHtml(title)}</h1><p>${escapeHtml(subtitle)}</p><p><time datetime="${date}">${date.slice(0, 16).replace('T', ' ')} UTC</time></p></header>
${warning}
<dl>${fact.join('')}</dl>
<main>${charts.join('\n')}</main>
<pre tabindex="0">${escapeHtml(table)}</pre>
<footer>Measured by millrace bench. Latencies count from the intended time of each request; failed requests are counted, not timed.</footer>
</body>
</html>
`;
}

/** Eight colours that differ in lightness too, for either background. */
const LIGHT = [
  '#0b62a4',
  '#c2410c',
  '#15803d',
  '#7e22ce',
  '#b58900',
  '#0e7490',
  '#be185d',
  '#4b5563',
];
const DARK = [
  '#6cb6ff',
  '#ffa267',
  '#6ee7a0',
  '#d0a6ff',
  '#ffd166',
  '#67e0ee',
  '#ff94c2',
  '#b6bfca',
];

const STYLE = `
:root{--paper:#fff;--ink:#1b1f24;--soft:#5b6570;--rule:#e3e6ea;--card:#f6f7f9;--bad:#b42318;${colours(LIGHT)}}
@media(prefers-color-scheme:dark){:root{--paper:#14171a;--ink:#e8eaed;--soft:#a2abb5;--rule:#2c3238;--card:#1c2024;--bad:#ff8a7a;${colours(DARK)}}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1rem;background:var(--paper);color:var(--ink);font:16px/1.45 system-ui,sans-serif}
h1{font-size:1.4rem;margin:0}
header p{margin:.2rem 0;color:var(--soft);overflow-wrap:anywhere}
.warning{border-left:4px solid var(--bad);padding:.5rem .8rem;background:var(--card);color:var(--bad);font-weight:600}
dl{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.6rem;margin:1rem 0}
dl div{background:var(--card);border-radius:.5rem;padding:.6rem .8rem}
dt{color:var(--soft);font-size:.85rem}dd{margin:0;font-size:.85rem}dd b{font-size:1.35rem}
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1rem}
figure{margin:0;background:var(--card);border-radius:.5rem;padding:.7rem}
figcaption{font-weight:600;font-size:.95rem;margin-bottom:.3rem}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--soft);font:11px system-ui,sans-serif}
.grid{stroke:var(--rule);stroke-width:1;fill:none}
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}
${LIGHT.map((_, i) => `path.s${i}{stroke:var(--c${i})}circle.s${i}{fill:var(--c${i})}.b${i}{background:var(--c${i})}`).join('')}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem .9rem;margin:.4rem 0 0;padding:0;font-size:.85rem}
.legend i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.35em}
.none{color:var(--soft)}
pre{background:var(--card);border-radius:.5rem;padding:.8rem;overflow-x:auto;font:13px/1.4 ui-monospace,monospace}
footer{color:var(--soft);font-size:.85rem}
`;

function colours(list: readonly string[]): string {
  return list.map((colour, index) => `--c${index}:${colour}`).join(';');
}
