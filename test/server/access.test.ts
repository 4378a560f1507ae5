import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect } from 'node:net';
import { test } from 'node:test';
import OpenAI from 'openai';
import { createLog } from '../../src/server/log.js';
import { delay, says, testServer, until } from '../helpers/test-server.js';

test('API keys cover every route but /health, and any of several keys opens', async (t) => {
  const { url } = await testServer(t, says('ok'), { apiKeys: ['first', 'second'] });
  const status = async (path: string, key?: string, method = 'GET'): Promise<number> =>
    (await fetch(url + path, { method, headers: key ? { authorization: key } : {} })).status;
  assert.equal(await status('/health'), 200);
  for (const path of ['/v1/models', '/version', '/metrics']) {
    assert.equal(await status(path), 401);
    for (const wrong of [
      'Bearer ',
      'Bearer third',
      'Bearer firs',
      'Bearer first2',
      'Basic first',
      'first',
    ]) {
      assert.equal(await status(path, wrong), 401, wrong);
    }
    assert.equal(await status(path, 'Bearer first'), 200);
    assert.equal(await status(path, 'bearer second'), 200);
  }
  for (const path of ['/v1/completions', '/v1/chat/completions', '/tokenize', '/detokenize']) {
    assert.equal(await status(path, undefined, 'POST'), 401);
  }
});

test('the models are listed and found by name, slashes included', async (t) => {
  const { client } = await testServer(t, {}, { modelNames: ['org/model', 'alias'] });
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  assert.deepEqual(models, ['org/model', 'alias']);
  assert.equal((await client.models.retrieve('org/model')).id, 'org/model');
  await assert.rejects(client.models.retrieve('other'), OpenAI.NotFoundError);
});

test('/tokenize and /detokenize answer as in vLLM', async (t) => {
  const { post, url } = await testServer(t, {}, { version: '1.2.3' });
  const json = async (path: string, body: unknown): Promise<unknown> =>
    (await post(path, body)).json();
  assert.deepEqual(await json('/tokenize', { prompt: 'hé', return_token_strs: true }), {
    count: 3,
    max_model_len: 4096,
    tokens: [0x68, 0xc3, 0xa9],
    token_strs: ['h', '\ufffd', '\ufffd'],
  });
  const chat = (await json('/tokenize', {
    messages: [{ role: 'user', content: 'a' }],
    add_generation_prompt: false,
  })) as { tokens: number[] };
  assert.equal(Buffer.from(chat.tokens).toString(), 'user: a\n');
  assert.deepEqual(await json('/detokenize', { tokens: [0x68, 0xc3, 0xa9] }), { prompt: 'hé' });
  assert.deepEqual(await (await fetch(`${url}/version`)).json(), { version: '1.2.3' });
});

test('a shutdown lets requests in flight finish, refuses new ones and drops nothing', {
  timeout: 20_000,
}, async (t) => {
  const { client, server, url, engine } = await testServer(t, { stepMs: 5 });
  const running = client.completions.create({ model: 'fake', prompt: 'ab', max_tokens: 40 });
  await until(() => engine.stats().running === 1, 'request');
  const closed = server.close({ timeoutMs: 60_000 });
  await assert.rejects(fetch(`${url}/health`), 'new connections are refused');
  const answer = await running;
  assert.equal(answer.usage?.completion_tokens, 40);
  assert.equal(await closed, 0);
});

test('what is still running when the shutdown times out ends with an error and is counted', async (t) => {
  const { client, server, engine } = await testServer(t, { stepMs: 5, info: { maxModelLen: 1e6 } });
  const body = { model: 'fake', prompt: 'ab', max_tokens: 900_000 };
  const whole = client.completions.create(body);
  const streamed = (async () => {
    for await (const _ of await client.completions.create({ ...body, stream: true }));
  })();
  const results = Promise.allSettled([whole, streamed]);
  await until(() => engine.stats().running === 2, 'requests');
  assert.equal(await server.close({ timeoutMs: 50 }), 2);
  for (const result of await results) {
    assert.ok(result.status === 'rejected');
    assert.match(String(result.reason.message), /shutting down/);
  }
  await engine.idle();
});

test('connections that say nothing, or half a header, do not hold up a shutdown', async (t) => {
  const { server, url } = await testServer(t);
  const sockets = ['', 'GET /hea'].map((text) => {
    const socket = connect(Number(new URL(url).port), '127.0.0.1', () => socket.write(text));
    return socket.on('error', () => {});
  });
  await delay(50);
  const start = Date.now();
  assert.equal(await server.close({ timeoutMs: 600_000 }), 0);
  assert.ok(Date.now() - start < 60_000);
  for (const socket of sockets) socket.destroy();
});

test('a request whose body does not come before the shutdown times out counts as dropped', async (t) => {
  const { server, url } = await testServer(t);
  const socket = connect(Number(new URL(url).port), '127.0.0.1', () => {
    socket.write(
      'POST /v1/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 100\r\n\r\n{"a',
    );
  });
  socket.on('error', () => {});
  // The interim answer says that the server has the header.
  await once(socket, 'data');
  assert.equal(await server.close({ timeoutMs: 50 }), 1);
});

test('the URL may be absolute, as clients of proxies send it', async (t) => {
  const { url } = await testServer(t);
  const socket = connect(Number(new URL(url).port), '127.0.0.1', () => {
    socket.write('GET http://example.org/health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n');
  });
  let answer = '';
  for await (const chunk of socket) answer += chunk;
  assert.match(answer, /^HTTP\/1\.1 200 /);
});

test('a dead engine turns /health to 503 and ends what was running with an error', async (t) => {
  const { client, url, engine } = await testServer(
    t,
    { stepMs: 5 },
    { log: createLog('error', () => {}) },
  );
  const running = client.completions.create({ model: 'fake', prompt: 'ab', max_tokens: 4000 });
  await until(() => engine.stats().running === 1, 'request');
  engine.die(new Error('the thread died'));
  await assert.rejects(running, OpenAI.InternalServerError);
  assert.equal((await fetch(`${url}/health`)).status, 503);
  await assert.rejects(client.completions.create({ model: 'fake', prompt: 'ab' }), (e) => {
    return e instanceof OpenAI.APIError && e.status === 503;
  });
});

test('logs are one JSON line a request at level info and nothing at the default level', async (t) => {
  for (const level of ['info', 'warn'] as const) {
    const lines: string[] = [];
    const log = createLog(level, (line) => lines.push(line));
    const { client, engine } = await testServer(t, { ...says('ok'), stepMs: 3 }, { log });
    await client.completions.create({ model: 'fake', prompt: 'xyz' });
    const stream = await client.completions.create({ model: 'fake', prompt: 'x', stream: true });
    stream.controller.abort();
    await until(() => engine.aborts.length > 0, 'abort');
    await delay(10);
    if (level === 'warn') {
      assert.deepEqual(lines, []);
      continue;
    }
    const [whole, left] = lines.map((line) => JSON.parse(line));
    assert.equal(lines.length, 2);
    assert.deepEqual(
      [
        whole.event,
        whole.method,
        whole.path,
        whole.status,
        whole.prompt_tokens,
        whole.completion_tokens,
        whole.finish_reasons,
      ],
      ['request', 'POST', '/v1/completions', 200, 3, 3, ['stop']],
    );
    assert.equal(left.status, 499);
  }
});
