import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ClientHealth } from '../../src/bench/client-health.js';
import { compare } from '../../src/bench/compare.js';
import { goodput } from '../../src/bench/goodput.js';
import { htmlReport } from '../../src/bench/report-html.js';
import { jsonReport, requestLines } from '../../src/bench/report-json.js';
import { textReport } from '../../src/bench/report-text.js';
import type { RequestRecord } from '../../src/bench/request-record.js';
import type { BenchResult, SweepResult } from '../../src/bench/result.js';
import { SeededRandom } from '../../src/bench/seeded-random.js';
import { summarize } from '../../src/bench/summary.js';
import { sweepNotes } from '../../src/bench/sweep-notes.js';

/** Requests every 10 ms with `tokens` tokens after `ttft`, `gap` apart; noise from the seed. */
function records(options: { count?: number; ttft?: number; gap?: number; seed?: number } = {}) {
  const { count = 200, ttft = 50, gap = 5, seed = 0 } = options;
  const random = new SeededRandom(seed);
  return Array.from({ length: count }, (_, i): RequestRecord => {
    const intended = 1000 + i * 10;
    const first = intended + ttft * (0.8 + 0.4 * random.next());
    const tokenTimes = Array.from({ length: 10 }, (_, k) => first + k * gap);
    return {
      intended,
      sent: intended,
      firstByte: first,
      tokenTimes,
      end: tokenTimes[9],
      promptTokens: 100,
      cachedTokens: 0,
      outputTokens: 10,
      usageTokens: 10,
      tokenIds: [],
      finishReason: 'length',
    };
  });
}

const OK_HEALTH = {
  utilization: 0.1,
  worstUtilization: 0.2,
  loopDelayP99: 1,
  lateP50: 0.1,
  lateP99: 0.5,
  lateMax: 1,
};

function result(list: RequestRecord[], change: Partial<BenchResult> = {}): BenchResult {
  return {
    date: '2026-01-02T03:04:05.000Z',
    settings: {
      label: 'A <b> & "c"',
      url: 'http://127.0.0.1:1',
      endpoint: '/v1/completions',
      model: 'm',
      dataset: 'random',
      workload: 'random (100 in, 10 out)',
      numPrompts: list.length,
      requestRate: 100,
      burstiness: 1,
      maxConcurrency: null,
      seed: 0,
    },
    summary: summarize(list, { slos: { ttft: 50 } }),
    health: OK_HEALTH,
    notes: [],
    partial: false,
    ...change,
  };
}

test('The JSON has the keys of vllm bench serve', () => {
  const json = jsonReport(result(records()));
  const keys = [
    ...['date', 'backend', 'label', 'model_id', 'num_prompts', 'request_rate', 'burstiness'],
    ...['max_concurrency', 'duration', 'completed', 'failed', 'total_input_tokens'],
    ...['total_output_tokens', 'request_throughput', 'request_goodput', 'output_throughput'],
    ...['total_token_throughput', 'max_output_tokens_per_s', 'max_concurrent_requests'],
    ...['ttft', 'tpot', 'itl', 'e2el'].flatMap((name) =>
      ['mean', 'median', 'std', 'p99'].map((statistic) => `${statistic}_${name}_ms`),
    ),
  ];
  for (const key of keys) assert.ok(key in json, key);
  assert.equal(json.completed, 200);
  assert.ok(Math.abs((json.mean_tpot_ms as number) - 5) < 1e-9);
  assert.doesNotThrow(() => JSON.parse(JSON.stringify(json)));
});

test('A client that sends late or is busy says so first, in every report', () => {
  const health = new ClientHealth();
  for (let i = 0; i < 100; i++) health.noteSend(i < 95 ? 0.1 : 80);
  const late = result(records(), { health: health.report() });
  assert.match(textReport(late).split('\n')[0], /^THE CLIENT WAS THE BOTTLENECK.* late/);
  const page = htmlReport(late);
  assert.ok(page.indexOf('THE CLIENT WAS THE BOTTLENECK') < page.indexOf('<dl>'));
  const { bottleneck } = jsonReport(late).client as { bottleneck: string };
  assert.match(bottleneck, /THE CLIENT/);
});

test('A busy event loop is noticed', () => {
  const health = new ClientHealth();
  const until = performance.now() + 200;
  while (performance.now() < until);
  assert.match(health.report().bottleneck ?? '', /event loop was \d+ % busy/);
});

test('A client that keeps up is not blamed', () => {
  assert.doesNotMatch(textReport(result(records())), /BOTTLENECK/);
});

test('Goodput counts the requests that meet all objectives, out of all that were sent', () => {
  const list = records({ count: 4 });
  list[0].tokenTimes = [list[0].intended + 10, list[0].intended + 20];
  list[0].outputTokens = 2;
  list[1].tokenTimes = [list[1].intended + 900, list[1].intended + 905];
  list[1].outputTokens = 2;
  list[2].tokenTimes = [list[2].intended + 10];
  list[2].outputTokens = 1;
  list[3].error = { kind: 'server_error', message: 'x' };
  const report = goodput(list, { ttft: 100, tpot: 7 });
  assert.equal(report.good, 1);
  assert.deepEqual(report.attainment, { ttft: 0.5, tpot: 0.5 });
  assert.equal(report.attainmentAll, 0.25);
});

test('The page is one well-formed file for phones and both colour schemes', () => {
  const single = htmlReport(result(records()));
  const points = [20, 60].map((ttft, i) => ({
    rate: i * 10 + 10,
    name: `${i * 10 + 10} req/s`,
    result: result(records({ ttft })),
    overSaturated: i === 1,
  }));
  const sweep: SweepResult = {
    date: '2026-01-02T03:04:05.000Z',
    settings: result(records()).settings,
    points,
    saturation: { requests: 20, outputTokens: 200 },
    notes: [],
    partial: false,
  };
  for (const page of [single, htmlReport(sweep)]) {
    assertBalanced(page);
    assert.doesNotMatch(page, /<script|<link|@import|url\(|src=/, 'it loads nothing');
    assert.match(page, /name="viewport" content="width=device-width/);
    assert.match(page, /prefers-color-scheme:dark/);
    assert.match(page, /A &lt;b&gt; &amp; &quot;c&quot;/);
    assert.doesNotMatch(page, /NaN|undefined|Infinity/);
  }
  assert.equal(single.match(/<figure>/g)?.length, 4);
  assert.equal(htmlReport(sweep).match(/<figure>/g)?.length, 6);
  assert.match(htmlReport(sweep), /<circle/);
});

/** Every tag that is opened is closed, in order. */
function assertBalanced(page: string): void {
  const open: string[] = [];
  const body = page.replace(/<style>.*?<\/style>/gs, '');
  for (const [tag, slash, name, rest] of body.matchAll(/<(\/?)([a-z0-9]+)([^>]*)>/gi)) {
    if (name === 'meta' || rest.endsWith('/')) continue;
    if (slash) assert.equal(open.pop(), name, `${tag} closes what is open`);
    else open.push(name);
  }
  assert.deepEqual(open, []);
}

test('A sweep notes repeated prompts, a trace whose times it does not use, and a saturation measured too low', () => {
  const point = (name: string, rate: number | null, count: number) => ({
    ...{ name, rate, overSaturated: false },
    result: result(records({ count })),
  });
  const prompt = { prompt: () => 'x', outputTokens: 1 };
  const slow = point('saturated', null, 200);
  slow.result.summary.steady.requests.value = 50;
  const fast = point('90 req/s', 90, 200);
  fast.result.summary.steady.requests.value = 80;
  assert.deepEqual(sweepNotes([slow], new Array(200).fill(prompt)), []);
  assert.match(sweepNotes([slow], [prompt])[0], /^1 prompts for 200 requests/);
  assert.match(sweepNotes([], [{ ...prompt, at: 3 }])[0], /its times are not used/);
  const [note] = sweepNotes([slow, fast], new Array(400).fill(prompt));
  assert.match(note, /^at 90 req\/s the server did more .* at least 80 req\/s/);
});

test('A run in which everything failed still gives every report', () => {
  const list = records({ count: 3 });
  for (const record of list) {
    record.error = { kind: 'refused', message: 'no' };
    record.tokenTimes = [];
  }
  const failed = result(list);
  assert.equal(failed.summary.completed, 0);
  assert.match(textReport(failed), /3 failed: refused/);
  assertBalanced(htmlReport(failed));
  assert.equal(jsonReport(failed).request_throughput, 0);
  assert.equal(requestLines(list).trim().split('\n').length, 3);
  assert.match(textReport(result([])), /requests completed/);
});

test('Compare keeps a figure that is 0 in one of the two, without a ratio', () => {
  const a = JSON.parse(JSON.stringify(jsonReport(result(records()))));
  const found = compare(a, { ...a, request_goodput: 0 }).find((one) => one.name === 'goodput')!;
  assert.ok(found.a > 0);
  assert.equal(found.b, 0);
  assert.ok(Number.isNaN(found.ratio));
  assert.equal(found.verdict, 'no interval');
});

test('An answer of several tokens in one piece has no TPOT', () => {
  const list = records({ count: 2 });
  list[0].tokenTimes = [list[0].intended + 500];
  assert.equal(summarize(list).latencies.tpot.count, 1);
  assert.equal(summarize(list).outputTokens, 20);
});

test('A client without free sockets is the bottleneck', () => {
  const health = new ClientHealth();
  health.noteNoSocket();
  assert.match(health.report().bottleneck ?? '', /1 requests found no free socket/);
});

test('The reports name the workload with its lengths', () => {
  const one = result(records());
  assert.match(textReport(one).split('\n')[0], /: random \(100 in, 10 out\), 100 req\/s, Poisson/);
  assert.equal(jsonReport(one).workload, 'random (100 in, 10 out)');
  assert.match(htmlReport(one), /random \(100 in, 10 out\)/);
});

test('Compare finds a real difference and calls the same thing twice not significant', () => {
  const json = (options: Parameters<typeof records>[0]) =>
    JSON.parse(JSON.stringify(jsonReport(result(records(options)))));
  const a = json({ seed: 1 });
  const same = new Map(compare(a, json({ seed: 2 })).map((one) => [one.key, one]));
  assert.equal(same.get('mean_ttft_ms')?.verdict, 'not significant');
  const slower = new Map(compare(a, json({ seed: 2, ttft: 60 })).map((one) => [one.key, one]));
  const mean = slower.get('mean_ttft_ms')!;
  assert.equal(mean.verdict, 'worse');
  assert.ok(mean.ratio > 1.15 && mean.ratio < 1.25);
  assert.ok(mean.interval![0] < 1.2 && mean.interval![1] > 1.2);
  const faster = compare(json({ seed: 2, ttft: 60 }), a).find(({ key }) => key === mean.key);
  assert.equal(faster?.verdict, 'better');
  assert.ok(Math.abs(faster!.ratio * mean.ratio - 1) < 1e-9);
});
