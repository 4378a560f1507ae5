import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, mock, test } from 'node:test';
import { arrivalTimes } from '../../src/bench/arrivals.js';
import { SeededRandom } from '../../src/bench/seeded-random.js';
import { benchServe, EXIT } from '../../src/bench/serve.js';
import { mean, percentile } from '../../src/bench/statistics.js';
import {
  type FakeOptions,
  type SeenRequest,
  startFakeServer,
} from '../helpers/fake-openai-server.js';

const folder = mkdtempSync(join(tmpdir(), 'millrace-serve-'));
after(() => rmSync(folder, { recursive: true }));

interface Line {
  index: number;
  intended_ms: number;
  sent_ms: number;
  token_times_ms: number[];
  end_ms: number;
  output_tokens: number;
  error: { kind: string } | null;
}

/** Runs bench serve against a fake server; its reports, and what the server saw, by request. */
async function run(name: string, options: FakeOptions, prompts: number, ...flags: string[]) {
  const server = await startFakeServer(options);
  const path = (ending: string) => join(folder, `${name}.${ending}`);
  // Each prompt is its own number, so that what the server saw can be told apart.
  const lines = Array.from({ length: prompts }, (_, i) => JSON.stringify({ prompt: `${i}` }));
  writeFileSync(path('prompts'), lines.join('\n'));
  const log = mock.method(console, 'log', () => {});
  let code: number;
  try {
    code = await benchServe([
      ...['--url', server.url, '--dataset-name', 'custom', '--dataset-path', path('prompts')],
      ...['--output-json', path('json'), '--output-requests', path('jsonl')],
      ...['--output-html', path('html'), ...flags],
    ]);
  } finally {
    log.mock.restore();
    await server.close();
  }
  const seen: SeenRequest[] = [];
  for (const entry of server.seen) seen[Number(entry.body.prompt)] = entry;
  const read = (ending: string) => readFileSync(path(ending), 'utf8');
  return {
    code,
    seen,
    text: log.mock.calls.map((call) => call.arguments.join(' ')).join('\n'),
    json: JSON.parse(read('json')) as Record<string, number> & Record<string, never>,
    requests: read('jsonl')
      .trim()
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line) as Line),
    html: read('html'),
  };
}

test('Every statistic is that of the times noted, and those are when the server really sent', async () => {
  const script: FakeOptions['script'] = (body) => {
    const i = Number(body.prompt);
    return { tokens: 2 + (i % 7), firstDelay: 10 + (i % 5) * 8, gap: 4 + (i % 3) * 6 };
  };
  const flags = ['--request-rate', '60', '--goodput', 'ttft:32', 'tpot:12', '--seed', '5'];
  // Another process may take the core between a send and its arrival, for a while between most of
  // them; a client that notes wrong times does so each time.
  let delays: { tokens: number; requests: number };
  let attempt = 0;
  do {
    const found = await run('exact', { script }, 150, ...flags);
    checkStatistics(found);
    delays = medianDelays(found);
  } while ((delays.tokens > 1 || delays.requests > 1) && ++attempt < 5);
  assert.ok(delays.tokens <= 1, `tokens are noted ${delays.tokens} ms after they were sent`);
  assert.ok(delays.requests <= 1, `requests arrive ${delays.requests} ms after they were sent`);
});

type Found = Awaited<ReturnType<typeof run>>;

/**
 * From the server's send of a token to the client's note of it, and from the client's of a request to
 * the server's. Both run in this process, on one clock; only the time zero must be aligned, by the
 * token that was fastest.
 */
function medianDelays({ seen, requests }: Found) {
  const each = <T>(of: (entry: SeenRequest, line: Line) => T) =>
    seen.map((entry, i) => of(entry, requests[i]));
  const zero = Math.max(
    ...each(({ tokensSent }, line) =>
      Math.max(...tokensSent.map((time, k) => time - line.token_times_ms[k])),
    ),
  );
  const tokens = each(({ tokensSent }, line) =>
    tokensSent.map((time, k) => line.token_times_ms[k] + zero - time),
  ).flat();
  const sends = each(({ arrived }, line) => Math.abs(arrived - line.sent_ms - zero));
  return { tokens: percentile(tokens, 50), requests: percentile(sends, 50) };
}

/** The times are rounded to a microsecond. */
function near(actual: number, expected: number, what: string): void {
  assert.ok(Math.abs(actual - expected) <= 0.002, `${what}: ${actual}, expected ${expected}`);
}

function checkStatistics({ json, seen, requests, code }: Found): void {
  assert.ok(code === EXIT.ok || code === EXIT.clientBottleneck);
  assert.equal(json.completed, 150);
  assert.equal(json.failed, 0);

  const arrivals = { rate: 60, burstiness: 1 };
  const due = arrivalTimes(150, arrivals, new SeededRandom(5, 0));
  for (const [i, line] of requests.entries()) near(line.intended_ms, due[i] - due[0], 'intended');
  const ttfts = requests.map((line) => line.token_times_ms[0] - line.intended_ms);
  const e2els = requests.map((line) => line.token_times_ms.at(-1)! - line.intended_ms);
  const tpots = requests.map(
    ({ token_times_ms: times }) => (times.at(-1)! - times[0]) / (times.length - 1),
  );
  const itls = requests.flatMap(({ token_times_ms: times }) =>
    times.slice(1).map((time, i) => time - times[i]),
  );
  const guidellm = requests.map(
    ({ token_times_ms: times, sent_ms }) => (times.at(-1)! - sent_ms) / times.length,
  );
  const expected = { ttft: ttfts, tpot: tpots, itl: itls, e2el: e2els, tpot_guidellm: guidellm };
  for (const [name, values] of Object.entries(expected)) {
    near(json[`mean_${name}_ms`], mean(values), `mean ${name}`);
    near(json[`median_${name}_ms`], percentile(values, 50), `median ${name}`);
    for (const p of [90, 95, 99])
      near(json[`p${p}_${name}_ms`], percentile(values, p), `p${p} ${name}`);
    const deviation = Math.sqrt(mean(values.map((value) => (value - mean(values)) ** 2)));
    near(json[`std_${name}_ms`], deviation, `std ${name}`);
  }

  const tokens = seen.reduce((sum, { tokensSent }) => sum + tokensSent.length, 0);
  const duration = Math.max(...requests.map((line) => line.end_ms)) / 1000;
  assert.equal(json.total_output_tokens, tokens);
  assert.equal(json.total_input_tokens, 150 * 7);
  assert.ok(Math.abs(json.duration - duration) < 0.002);
  assert.ok(Math.abs(json.output_throughput / (tokens / duration) - 1) < 0.01);
  assert.ok(Math.abs(json.request_throughput / (150 / duration) - 1) < 0.01);
  const good = ttfts.filter((value, i) => value <= 32 && tpots[i] <= 12).length;
  // One on the very edge may fall on either side.
  assert.ok(Math.abs(json.request_goodput * duration - good) < 1.5);

  // The steady window: from the first answer's end to the last send.
  const from = Math.min(...requests.map((line) => line.end_ms));
  const to = Math.max(...requests.map((line) => line.sent_ms));
  const within = requests
    .flatMap((line) => line.token_times_ms)
    .filter((t) => t >= from && t <= to);
  const rate = within.length / ((to - from) / 1000);
  assert.ok(Math.abs(json.steady_output_throughput / rate - 1) < 0.01);
  const [low, high] = json.ci95_steady_output_throughput as unknown as number[];
  assert.ok(low < rate && rate < high);
}

test('A stall of 500 ms every 5 s shows in the open loop’s p99 and not in the closed loop’s', async () => {
  const options: FakeOptions = {
    script: () => ({ tokens: 3, firstDelay: 8, gap: 8 }),
    stall: { period: 5000, length: 500 },
  };
  const [open, closed] = await Promise.all([
    run('open', options, 400, '--request-rate', '40'),
    run('closed', options, 330, '--max-concurrency', '1'),
  ]);
  assert.equal(open.json.completed, 400);
  assert.equal(closed.json.completed, 330);
  assert.ok(open.json.p99_ttft_ms > 350, `open p99 ${open.json.p99_ttft_ms}`);
  assert.ok(closed.json.p99_ttft_ms < 100, `closed p99 ${closed.json.p99_ttft_ms}`);
  // The medians agree: only the tail tells.
  assert.ok(open.json.median_ttft_ms < 40 && closed.json.median_ttft_ms < 40);
});

test('Failures are counted by kind and left out of the latencies', async () => {
  const script: FakeOptions['script'] = (body) => {
    const base = { tokens: 3, firstDelay: 30, gap: 3 };
    switch (Number(body.prompt) % 8) {
      case 0:
        return { ...base, status: 429, body: 'slow down' };
      case 1:
        return { ...base, status: 500 };
      case 2:
        return { ...base, ending: 'cut' };
      case 3:
        return { ...base, tokens: 0 };
      case 4:
        return { ...base, ending: 'silent' };
      case 5:
        return { ...base, tokens: 1 };
      case 6:
        return { ...base, usage: 5 };
      default:
        return base;
    }
  };
  const flags = ['--max-concurrency', '8', '--timeout', '0.3', '--goodput', 'ttft:10000'];
  const { json, text, code } = await run('failures', { script }, 32, ...flags);
  assert.equal(code, EXIT.ok);
  assert.equal(json.completed, 12);
  assert.equal(json.failed, 20);
  assert.deepEqual(json.errors_by_kind, {
    throttled: 4,
    server_error: 4,
    broken_stream: 4,
    empty_stream: 4,
    timeout: 4,
  });
  assert.ok(json.median_ttft_ms > 25, 'the refused, which were fast, are not in it');
  assert.equal(json.total_output_tokens, 4 * 1 + 4 * 5 + 4 * 3);
  assert.equal(json.usage_mismatches, 4);
  assert.deepEqual(json.slo_attainment, { ttft: 12 / 32, all: 12 / 32 });
  assert.match(text, /4 failed: throttled, for example "429 slow down"/);
  assert.match(text, /4 answers whose usage and stream tell different numbers/);
});

test('A server that nobody runs fails every request, and the exit code says so', async () => {
  const server = await startFakeServer({ script: () => ({ tokens: 1, firstDelay: 0, gap: 0 }) });
  await server.close();
  const log = mock.method(console, 'log', () => {});
  const code = await benchServe(['--url', server.url, '--model', 'm', '--num-prompts', '3']);
  const text = log.mock.calls.map((call) => call.arguments.join(' ')).join('\n');
  log.mock.restore();
  assert.equal(code, EXIT.nothingCompleted);
  assert.match(text, /3 failed: refused/);
  await assert.rejects(benchServe(['--url', server.url]), /--url/);
});

test('What is asked of the server is what the flags say', async () => {
  const script = () => ({ tokens: 2, firstDelay: 1, gap: 1 });
  const server = await startFakeServer({ script });
  const log = mock.method(console, 'log', () => {});
  const code = await benchServe([
    ...['--url', `${server.url}/v1/`, '--num-prompts', '3', '--random-input-len', '4'],
    ...['--random-output-len', '6', '--max-concurrency', '1', '--api-key', 'secret'],
    ...['--header', 'x-team=a', '--extra-body', '{"top_p":0.5}', '--num-warmups', '2'],
  ]);
  log.mock.restore();
  await server.close();
  assert.equal(code, EXIT.ok);
  assert.equal(server.seen.length, 5);
  for (const { body, headers } of server.seen) {
    const { prompt, ...rest } = body;
    assert.equal((prompt as number[]).length, 4);
    assert.deepEqual(rest, {
      model: 'fake-model',
      max_tokens: 6,
      temperature: 0,
      ignore_eos: true,
      top_p: 0.5,
      stream: true,
      stream_options: { include_usage: true },
    });
    assert.equal(headers.authorization, 'Bearer secret');
    assert.equal(headers['x-team'], 'a');
  }
});

test('With a limit in flight the clock of what waits runs from the intended time', async () => {
  const script = () => ({ tokens: 1, firstDelay: 50, gap: 0 });
  const flags = ['--request-rate', '100', '--burstiness', 'inf', '--max-concurrency', '2'];
  const { json, requests } = await run('limited', { script }, 20, ...flags);
  // 20 requests in 200 ms, two at a time in 50 ms each: the last waits about 300 ms.
  const last = requests[19];
  assert.ok(last.sent_ms - last.intended_ms > 200);
  assert.ok(json.p99_ttft_ms > 250);
  assert.ok(json.median_ttft_from_sent_ms < 90);
  const { bottleneck } = json.client as unknown as { bottleneck: string | null };
  assert.equal(bottleneck, null, 'waiting for the limit is not the client’s fault');
});
