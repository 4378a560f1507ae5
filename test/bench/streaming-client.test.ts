import assert from 'node:assert/strict';
import { Agent } from 'node:http';
import { createServer, type Server, type Socket } from 'node:net';
import { after, before, describe, test } from 'node:test';
import { type RequestRecord, tpot } from '../../src/bench/request-record.js';
import { keepAliveAgent, streamRequest } from '../../src/bench/streaming-client.js';
import { now } from '../../src/engine/api.js';
import { type FakeServer, type Script, startFakeServer } from '../helpers/fake-openai-server.js';

describe('The streaming client', () => {
  const agent = keepAliveAgent();
  let server: FakeServer;
  before(async () => {
    server = await startFakeServer({ script: (body) => body.script as Script });
  });
  after(async () => {
    agent.destroy();
    await server.close();
  });

  const ask = (script: Script, options: { timeout?: number; signal?: AbortSignal } = {}) =>
    streamRequest({
      url: `${server.url}/v1/completions`,
      body: { script },
      intended: now(),
      agent,
      ...options,
    });

  test('times every token within a millisecond or so of its sending', async () => {
    // Of several answers the least delay of each token: others may take the core from us.
    const least = new Array<number>(5).fill(Number.POSITIVE_INFINITY);
    let record = await ask({ tokens: 5, firstDelay: 30, gap: 15 });
    for (let i = 0; i < 5; i++, record = await ask({ tokens: 5, firstDelay: 30, gap: 15 })) {
      const { tokensSent } = server.seen.at(-1)!;
      assert.equal(record.error, undefined);
      assert.equal(record.tokenTimes.length, 5);
      for (const [k, time] of record.tokenTimes.entries()) {
        assert.ok(time >= tokensSent[k]);
        least[k] = Math.min(least[k], time - tokensSent[k]);
      }
    }
    assert.ok(Math.max(...least) < 5, `tokens arrived ${least} ms after they were sent`);
    assert.ok(record.firstByte > 0 && record.firstByte <= record.tokenTimes[0]);
    assert.equal(record.finishReason, 'length');
    assert.equal(record.promptTokens, 7);
    assert.equal(record.outputTokens, 5);
  });

  test('takes an answer of one token: no TPOT, but a first token', async () => {
    const record = await ask({ tokens: 1, firstDelay: 5, gap: 5 });
    assert.equal(record.error, undefined);
    assert.equal(record.outputTokens, 1);
    assert.equal(record.tokenTimes.length, 1);
    assert.ok(Number.isNaN(tpot(record)));
  });

  test('calls a stream without a token a failure, not a fast answer', async () => {
    const record = await ask({ tokens: 0, firstDelay: 0, gap: 0 });
    assert.equal(record.error?.kind, 'empty_stream');
  });

  test('keeps the tokens of a stream that dies half-way and calls it broken', async () => {
    const record = await ask({ tokens: 3, firstDelay: 5, gap: 5, ending: 'cut' });
    assert.equal(record.error?.kind, 'broken_stream');
    assert.equal(record.tokenTimes.length, 3);
  });

  test('reports an error event within the stream as the server’s', async () => {
    const record = await ask({ tokens: 2, firstDelay: 5, gap: 5, ending: 'error' });
    assert.deepEqual(record.error, { kind: 'server_error', message: 'the engine died' });
  });

  test('prefers the usage to the stream’s count, and keeps both', async () => {
    const record = await ask({ tokens: 4, firstDelay: 5, gap: 5, usage: 9 });
    assert.equal(record.error, undefined);
    assert.equal(record.outputTokens, 9);
    assert.equal(record.usageTokens, 9);
    assert.equal(record.tokenTimes.length, 4);
  });

  test('counts the tokens seen where there is no usage', async () => {
    const record = await ask({ tokens: 4, firstDelay: 5, gap: 5, usage: null });
    assert.equal(record.outputTokens, 4);
    assert.equal(record.usageTokens, undefined);
  });

  test('tells 429, 4xx and 5xx apart and quotes the answer', async () => {
    const kinds: (string | undefined)[] = [];
    for (const status of [429, 404, 500, 503]) {
      const record = await ask({ status, body: 'why', tokens: 0, firstDelay: 0, gap: 0 });
      kinds.push(record.error?.kind);
      assert.equal(record.error?.message, `${status} why`);
      assert.equal(record.tokenTimes.length, 0);
    }
    assert.deepEqual(kinds, ['throttled', 'client_error', 'server_error', 'server_error']);
  });

  test('gives up on a silent server after the timeout', async () => {
    const script: Script = { tokens: 1, firstDelay: 1, gap: 1, ending: 'silent' };
    const record = await ask(script, { timeout: 1500 });
    assert.equal(record.error?.kind, 'timeout');
    assert.equal(record.tokenTimes.length, 1);
    assert.ok(record.end - record.sent >= 1500);
  });

  test('ends at once when it is told to stop', async () => {
    const controller = new AbortController();
    setTimeout(() => controller.abort(), 40);
    const script: Script = { tokens: 1, firstDelay: 1, gap: 1, ending: 'silent' };
    const record = await ask(script, { signal: controller.signal });
    assert.equal(record.error?.kind, 'aborted');
  });

  test('calls a port on which nobody listens refused', async () => {
    const gone = await startFakeServer({ script: () => ({ tokens: 1, firstDelay: 0, gap: 0 }) });
    await gone.close();
    const url = `${gone.url}/v1/completions`;
    const record = await streamRequest({ url, body: {}, intended: now(), agent });
    assert.equal(record.error?.kind, 'refused');
  });

  test('does not blame the server when the machine has no socket left', async () => {
    const full = new Agent();
    full.createConnection = ((_: unknown, done: (error: Error) => void) => {
      process.nextTick(done, Object.assign(new Error('too many open files'), { code: 'EMFILE' }));
    }) as never;
    const url = `${server.url}/v1/completions`;
    const record = await streamRequest({ url, body: {}, intended: now(), agent: full });
    assert.deepEqual(record.error, { kind: 'no_socket', message: 'too many open files' });
  });

  test('tells of tokens when they come', async () => {
    const counts: number[] = [];
    const script = { tokens: 3, firstDelay: 1, gap: 1 };
    const url = `${server.url}/v1/completions`;
    const onTokens = (count: number) => counts.push(count);
    await streamRequest({ url, body: { script }, intended: now(), agent, onTokens });
    assert.deepEqual(counts, [1, 1, 1]);
  });

  test('sends again on a fresh connection when a kept one turns out to be closed', async () => {
    const { url, close } = await forgetfulServer();
    const records: RequestRecord[] = [];
    for (let i = 0; i < 3; i++) {
      records.push(await streamRequest({ url, body: {}, intended: now(), agent }));
    }
    await close();
    for (const record of records) assert.equal(record.error, undefined);
  });

  test('tells what kind of answer held no event', async () => {
    const { url, close } = await rawServer(
      'HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 7\r\n\r\n<html/>',
    );
    const record = await streamRequest({ url, body: {}, intended: now(), agent });
    await close();
    assert.equal(record.error?.kind, 'broken_stream');
    assert.equal(record.error?.message, 'no event came (content-type: text/html)');
  });

  test('calls an answer that is no event stream broken', async () => {
    const { url, close } = await rawServer(
      'HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\ndata: {oops}\n\n',
    );
    const record = await streamRequest({ url, body: {}, intended: now(), agent });
    await close();
    assert.equal(record.error?.kind, 'broken_stream');
    assert.match(record.error?.message ?? '', /not an event stream/);
  });
});

const ONE_TOKEN =
  'data: {"choices":[{"text":"a","finish_reason":null}]}\n\n' +
  'data: {"choices":[{"text":"","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n';

/** Answers the first request of a connection, promises to keep it, and resets it at the second. */
async function forgetfulServer() {
  const answer = `HTTP/1.1 200 OK\r\ncontent-length: ${ONE_TOKEN.length}\r\n\r\n${ONE_TOKEN}`;
  const server = createServer((socket) => {
    let answered = false;
    socket.on('error', () => {});
    socket.on('data', () => {
      if (answered) socket.resetAndDestroy();
      else socket.write(answer);
      answered = true;
    });
  });
  return listening(server);
}

async function rawServer(answer: string) {
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', () => socket.end(answer));
  });
  return listening(server);
}

async function listening(server: Server) {
  const sockets: Socket[] = [];
  server.on('connection', (socket) => sockets.push(socket));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = server.address() as { port: number };
  return {
    url: `http://127.0.0.1:${address.port}/v1/completions`,
    close: () => {
      for (const socket of sockets) socket.destroy();
      return new Promise((resolve) => server.close(resolve));
    },
  };
}
