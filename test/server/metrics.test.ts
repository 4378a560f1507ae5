import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { test } from 'node:test';
import { Metrics } from '../../src/server/metrics.js';
import { FakeEngine } from '../helpers/fake-engine.js';
import { says, testServer, until } from '../helpers/test-server.js';

/** Samples of a /metrics page by name and labels other than those every sample has. */
async function scrape(url: string): Promise<Map<string, number>> {
  const samples = new Map<string, number>();
  for (const line of (await (await fetch(`${url}/metrics`)).text()).split('\n')) {
    const match = /^(vllm:\w+)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const labels = (match[2] ?? '')
      .split(',')
      .filter((label) => !/^(model_name|engine)=/.test(label));
    const own = labels.filter((label) => label !== '').join(',');
    samples.set(match[1] + (own ? `{${own}}` : ''), Number(match[3]));
  }
  return samples;
}

test('/metrics counts requests, tokens and times under the names of vLLM', async (t) => {
  const { client, url, engine } = await testServer(t, { ...says('Hello'), stepMs: 2 });
  await client.completions.create({ model: 'fake', prompt: 'abc' });
  await client.completions.create({ model: 'fake', prompt: 'abc', max_tokens: 2 });
  const stream = (await client.completions.create({
    model: 'fake',
    prompt: 'abc',
    ignore_eos: true,
    max_tokens: 4000,
    stream: true,
  } as never)) as unknown as AsyncIterable<unknown>;
  for await (const _ of stream) break;
  await until(() => engine.aborts.length === 1 && engine.stats().running === 0, 'abort');
  let samples = await scrape(url);
  while (samples.get('vllm:request_success_total{finished_reason="abort"}') === 0) {
    samples = await scrape(url);
  }
  const value = (name: string): number => samples.get(name) ?? assert.fail(`no ${name}`);
  assert.equal(value('vllm:request_success_total{finished_reason="stop"}'), 1);
  assert.equal(value('vllm:request_success_total{finished_reason="length"}'), 1);
  assert.equal(value('vllm:request_success_total{finished_reason="abort"}'), 1);
  assert.equal(value('vllm:request_success_total{finished_reason="error"}'), 0);
  assert.equal(value('vllm:prompt_tokens_total'), 9);
  assert.equal(value('vllm:num_requests_running'), 0);
  assert.equal(value('vllm:e2e_request_latency_seconds_count'), 3);
  assert.equal(value('vllm:time_to_first_token_seconds_count'), 3);
  assert.ok(value('vllm:inter_token_latency_seconds_count') >= 5 + 1);
  assert.ok(value('vllm:generation_tokens_total') >= 6 + 2);
  const sum = (name: string): number => value(`vllm:${name}_seconds_sum`);
  const parts =
    sum('request_queue_time') + sum('request_prefill_time') + sum('request_decode_time');
  assert.ok(Math.abs(parts - sum('e2e_request_latency')) < 1e-6, 'queue + prefill + decode is E2E');
});

test('the time to the first token is counted while the rest of the answer is still to come', async (t) => {
  const { client, url, engine } = await testServer(t, { stepMs: 2 });
  const stream = await client.completions.create({
    model: 'fake',
    prompt: 'abc',
    n: 2,
    max_tokens: 4000,
    stream: true,
  });
  for await (const _ of stream) {
    if (engine.stats().generationTokens < 6) continue;
    const samples = await scrape(url);
    assert.equal(samples.get('vllm:time_to_first_token_seconds_count'), 2);
    assert.ok((samples.get('vllm:time_to_first_token_seconds_sum') as number) > 0);
    assert.equal(samples.get('vllm:e2e_request_latency_seconds_count'), 0);
    break;
  }
});

test('the page is made in the turn of the event loop that asks for it, however much else is to do', async () => {
  const metrics = new Metrics(new FakeEngine(), 'fake');
  let turns = 0;
  const count = (): void => {
    turns++;
    immediate = setImmediate(count);
  };
  let immediate = setImmediate(count);
  const page = await metrics.text();
  clearImmediate(immediate);
  metrics.close();
  assert.equal(turns, 0);
  assert.match(page, /^vllm:num_requests_running/m);
});

test('every metric of the page is in docs/metrics.md and the other way round', async (t) => {
  const { url } = await testServer(t);
  const page = await (await fetch(`${url}/metrics`)).text();
  const served = [...page.matchAll(/^# TYPE (vllm:\w+) /gm)].map(([, name]) => name).sort();
  const doc = await readFile('docs/metrics.md', 'utf8');
  const documented = [...doc.matchAll(/^\| `(vllm:\w+)`/gm)].map(([, name]) => name).sort();
  assert.deepEqual(documented, served);
  assert.ok(served.length >= 18);
  assert.match(page, /^process_cpu_user_seconds_total /m);
  assert.match(page, /^nodejs_eventloop_lag_p99_seconds /m);
  assert.doesNotMatch(page, /nodejs_active_/, 'what costs time for every connection is left out');
  assert.match(page, /^vllm:num_requests_running\{model_name="fake",engine="0"\} 0$/m);
});
