import assert from 'node:assert/strict';
import { once } from 'node:events';
import { Agent, type IncomingMessage, request } from 'node:http';
import { connect } from 'node:net';
import { test } from 'node:test';
import { APIError } from 'openai';
import { delay, says, testServer, until } from '../helpers/test-server.js';

test('a streamed completion gives the same text as a whole one, token by token', async (t) => {
  const text = 'Zażółć 🙂 the end';
  const { client } = await testServer(t, says(text));
  const stream = await client.completions.create({
    model: 'fake',
    prompt: 'x',
    max_tokens: 99,
    stream: true,
  });
  const pieces: string[] = [];
  let reason: string | null = null;
  for await (const chunk of stream) {
    assert.equal(chunk.object, 'text_completion');
    pieces.push(chunk.choices[0].text);
    reason = chunk.choices[0].finish_reason ?? reason;
  }
  assert.equal(pieces.join(''), text);
  assert.equal(reason, 'stop');
  assert.ok(pieces.length > 10);
  assert.ok(pieces.every((piece) => !piece.includes('\ufffd')));
});

test('a streamed chat begins with the role, ends with the reason and, if asked, the usage', async (t) => {
  const { client } = await testServer(t, says('Hello'));
  const stream = await client.chat.completions.create({
    model: 'fake',
    messages: [{ role: 'user', content: 'Hi' }],
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  assert.deepEqual(chunks[0].choices[0].delta, { role: 'assistant', content: '' });
  assert.equal(chunks.map((c) => c.choices[0]?.delta.content ?? '').join(''), 'Hello');
  assert.equal(chunks.at(-2)?.choices[0].finish_reason, 'stop');
  assert.deepEqual(chunks.at(-1)?.choices, []);
  assert.equal(chunks.at(-1)?.usage?.completion_tokens, 6);
  assert.ok(chunks.slice(0, -1).every((chunk) => chunk.usage === null));
});

test('n streamed choices come interleaved, each under its index, with logprobs and token ids', async (t) => {
  const { client } = await testServer(t, { script: (_, index) => Buffer.from(`choice ${index}`) });
  const stream = await client.chat.completions.create({
    model: 'fake',
    messages: [{ role: 'user', content: 'Hi' }],
    n: 3,
    stream: true,
    logprobs: true,
    ...({ return_token_ids: true } as object),
  });
  const texts = ['', '', ''];
  const ids: number[][] = [[], [], []];
  const logprobs = [0, 0, 0];
  let promptIds: number[] = [];
  for await (const chunk of stream) {
    const extra = chunk as typeof chunk & { prompt_token_ids?: number[] };
    promptIds = [...promptIds, ...(extra.prompt_token_ids ?? [])];
    for (const choice of chunk.choices) {
      texts[choice.index] += choice.delta.content ?? '';
      ids[choice.index].push(
        ...((choice as typeof choice & { token_ids?: number[] }).token_ids ?? []),
      );
      logprobs[choice.index] += choice.logprobs?.content?.length ?? 0;
    }
  }
  assert.deepEqual(texts, ['choice 0', 'choice 1', 'choice 2']);
  assert.deepEqual(
    ids,
    texts.map((text) => [...Buffer.from(text), 256]),
  );
  assert.deepEqual(logprobs, [9, 9, 9]);
  assert.equal(Buffer.from(promptIds).toString(), 'user: Hi\nassistant:');
});

test('a stop string never shows in a stream, not even in part', async (t) => {
  const { client, engine } = await testServer(t, says('abc ST ST STOP never'));
  const stream = await client.completions.create({
    model: 'fake',
    prompt: 'x',
    max_tokens: 99,
    stop: 'STOP',
    stream: true,
  });
  let text = '';
  for await (const chunk of stream) {
    text += chunk.choices[0].text;
    assert.ok('abc ST ST '.startsWith(text), text);
  }
  assert.equal(text, 'abc ST ST ');
  assert.equal(engine.aborts.length, 1);
});

test('echo and continuous usage work in a stream', async (t) => {
  const { post } = await testServer(t);
  const response = await post('/v1/completions', {
    prompt: 'ab',
    max_tokens: 3,
    echo: true,
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  });
  const events = (await response.text()).split('\n\n').filter((line) => line.startsWith('data: {'));
  const chunks = events.map((line) => JSON.parse(line.slice(6)));
  assert.equal(chunks.map((c) => c.choices[0]?.text ?? '').join(''), 'ababa');
  assert.deepEqual(
    chunks.map((c) => c.usage.completion_tokens),
    [1, 2, 3, 3],
  );
});

test('an error before the first token has its own status, one after it is an event and ends the stream', async (t) => {
  let at = 0;
  const { client, post } = await testServer(t, { failure: () => ({ at, message: 'NaN logits' }) });
  const body = { model: 'fake', prompt: 'ab', max_tokens: 50, stream: true as const };
  await assert.rejects(
    client.completions.create(body),
    (error) => error instanceof APIError && error.status === 500,
  );
  at = 5;
  const stream = await client.completions.create(body);
  let text = '';
  await assert.rejects(
    async () => {
      for await (const chunk of stream) text += chunk.choices[0].text;
    },
    (error) => error instanceof APIError && /NaN logits/.test(error.message),
  );
  assert.equal(text, 'ababa');
  const raw = await (await post('/v1/completions', body)).text();
  assert.match(
    raw.trimEnd().split('\n\n').at(-1) ?? '',
    /^data: \{"error":\{"message":"NaN logits"/,
  );
  assert.doesNotMatch(raw, /\[DONE\]/);
});

test('a client that goes away aborts its request at once, streaming or not', async (t) => {
  const { client, engine } = await testServer(t, { stepMs: 5 });
  const body = { model: 'fake', prompt: 'ab', max_tokens: 4000 };
  const stream = await client.completions.create({ ...body, stream: true });
  for await (const _ of stream) break;
  await until(() => engine.aborts.length === 1, 'abort of the stream');

  const controller = new AbortController();
  const whole = client.completions.create(body, { signal: controller.signal });
  await until(() => engine.requests.length === 2, 'second request');
  controller.abort();
  await assert.rejects(whole);
  await until(() => engine.aborts.length === 2, 'abort of the whole answer');
  await engine.idle();
  assert.equal(engine.stats().freeBlocks, engine.info.numBlocks);
});

test('a slow reader gets everything in few large events and slows nobody', async (t) => {
  const tokens = 40_000;
  const { client, url, engine } = await testServer(t, { info: { maxModelLen: 100_000 } });
  // About 200 bytes a token: far more than the sockets' buffers hold.
  const body = JSON.stringify({ prompt: 'abcdefgh', max_tokens: tokens, stream: true });
  const slow = connect(Number(new URL(url).port), '127.0.0.1');
  slow.write(
    `POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`,
  );
  await once(slow, 'readable');
  slow.pause();
  await engine.idle();
  const quick = await client.completions.create({ model: 'fake', prompt: 'xy', max_tokens: 3 });
  assert.equal(quick.choices[0].text, 'xyx');
  assert.equal(engine.aborts.length, 0);

  let raw = '';
  slow.setEncoding('utf8');
  slow.on('data', (chunk: string) => {
    raw += chunk;
  });
  slow.resume();
  await once(slow, 'end');
  const events = raw.split('\n').filter((line) => line.startsWith('data: {'));
  const text = events.map((line) => JSON.parse(line.slice(6)).choices[0].text).join('');
  assert.equal(text, 'abcdefgh'.repeat(tokens / 8));
  assert.ok(events.length < tokens * 0.9, `${events.length} events`);
  assert.match(raw, /data: \[DONE\]/);
});

test('streams follow one another on a kept connection, pipelined or not, and HTTP/1.0 gets no chunks', async (t) => {
  const { url } = await testServer(t, says('Zażółć'));
  const body = JSON.stringify({ prompt: 'x', max_tokens: 20, stream: true });
  const ask = (version: string, connection: string): string =>
    `POST /v1/completions HTTP/${version}\r\nhost: x\r\nconnection: ${connection}\r\ncontent-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`;
  const talk = async (...requests: string[]): Promise<string> => {
    const socket = connect(Number(new URL(url).port), '127.0.0.1');
    let raw = '';
    socket.setEncoding('utf8').on('data', (chunk: string) => {
      raw += chunk;
    });
    socket.write(requests.join(''));
    await once(socket, 'end');
    return raw;
  };
  const texts = (raw: string): string =>
    [...raw.matchAll(/^data: (\{.*\})$/gm)]
      .map(([, json]) => JSON.parse(json).choices[0].text)
      .join('');
  const pipelined = await talk(
    ask('1.1', 'keep-alive'),
    ask('1.1', 'keep-alive'),
    ask('1.1', 'close'),
  );
  assert.equal(texts(pipelined), 'Zażółć'.repeat(3));
  assert.equal(pipelined.match(/\r\n0\r\n\r\n/g)?.length, 3, 'three bodies, each ended');
  const old = await talk(ask('1.0', 'close'));
  assert.equal(texts(old), 'Zażółć');
  assert.match(old, /\r\n\r\ndata: \{/, 'the body begins without a chunk size');
});

test('a request whose client left while the prompt waited never holds a place', async (t) => {
  const { client, engine } = await testServer(t, { maxNumSeqs: 1, stepMs: 2 });
  engine.paused = true;
  const controller = new AbortController();
  const left = client.completions.create(
    { model: 'fake', prompt: 'ab', max_tokens: 2000 },
    { signal: controller.signal },
  );
  await until(() => engine.requests.length === 1, 'request');
  const stays = client.completions.create({ model: 'fake', prompt: 'cd', max_tokens: 2 });
  await until(() => engine.requests.length === 2, 'second request');
  controller.abort();
  await assert.rejects(left);
  await until(() => engine.aborts.length === 1, 'abort');
  engine.resume();
  assert.equal((await stays).choices[0].text, 'cd');
  await delay(1);
});

test('a connection that carries many streams one after another collects no listeners', async (t) => {
  const { url } = await testServer(t, says('Hello'));
  const warnings: Error[] = [];
  const onWarning = (warning: Error): number => warnings.push(warning);
  process.on('warning', onWarning);
  t.after(() => process.off('warning', onWarning));
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  t.after(() => agent.destroy());
  const ports = new Set<number | undefined>();
  for (let i = 0; i < 30; i++) {
    // Every third one fails, so that streams and errors take turns.
    const body = JSON.stringify({ prompt: 'x', stream: true, n: i % 3 === 2 ? 0 : 1 });
    const sent = request(`${url}/v1/completions`, { method: 'POST', agent });
    sent.end(body);
    const [response] = (await once(sent, 'response')) as [IncomingMessage];
    ports.add(response.socket.localPort);
    assert.equal(response.statusCode, i % 3 === 2 ? 400 : 200);
    response.resume();
    await once(response, 'end');
  }
  await delay(10);
  assert.equal(ports.size, 1, 'one connection');
  assert.deepEqual(warnings, []);
});
