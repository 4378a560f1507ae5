/**
 * A scripted OpenAI-compatible server for the load generator's tests: it answers each request as
 * told, and notes when it really sent what, so that a noisy machine does not blur the expectation.
 */
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as pause } from 'node:timers/promises';
import { now } from '../../src/engine/api.js';

/** How one request is answered. Delays in ms. */
export interface Script {
  /** Other than 200: refused, with `body` as the answer. */
  status?: number;
  body?: string;
  /** Output tokens; one chunk each. */
  tokens: number;
  /** From the request's arrival to the first token. */
  firstDelay: number;
  /** Between tokens. */
  gap: number;
  /**
   * done: usage, then [DONE]. cut: the connection is destroyed after the tokens. silent: nothing
   * more comes after the tokens. error: an error event comes in place of the end.
   */
  ending?: 'done' | 'cut' | 'silent' | 'error';
  /** completion_tokens of the usage; null sends none. Default: `tokens`. */
  usage?: number | null;
  promptTokens?: number;
  cachedTokens?: number;
}

export interface SeenRequest {
  body: Record<string, unknown>;
  headers: IncomingMessage['headers'];
  arrived: number;
  /** When each token was written. */
  tokensSent: number[];
}

export interface FakeServer {
  url: string;
  seen: SeenRequest[];
  close(): Promise<void>;
}

export interface FakeOptions {
  script: (body: Record<string, unknown>, index: number) => Script;
  /** Requests served at a time; the others wait for their turn, first come first served. */
  slots?: number;
  /** Nothing is sent for the first `length` ms of every `period` ms. */
  stall?: { period: number; length: number };
}

export async function startFakeServer(options: FakeOptions): Promise<FakeServer> {
  const { script, slots = Number.POSITIVE_INFINITY, stall } = options;
  const seen: SeenRequest[] = [];
  const started = now();
  let busy = 0;
  const queue: (() => void)[] = [];

  const stalled = async () => {
    if (!stall) return;
    const left = stall.length - ((now() - started) % stall.period);
    if (left > 0) await pause(left);
  };

  const answer = async (request: IncomingMessage, response: ServerResponse) => {
    if (request.method === 'GET') {
      response.end(JSON.stringify({ data: [{ id: 'fake-model' }] }));
      return;
    }
    const arrived = now();
    let text = '';
    request.setEncoding('utf8');
    for await (const piece of request) text += piece;
    const body = JSON.parse(text) as Record<string, unknown>;
    const entry: SeenRequest = { body, headers: request.headers, arrived, tokensSent: [] };
    seen.push(entry);
    const { status = 200, ...play } = script(body, seen.length - 1);
    if (status !== 200) {
      response.writeHead(status, { 'content-type': 'application/json' }).end(play.body ?? '{}');
      return;
    }
    if (busy >= slots) await new Promise<void>((resolve) => queue.push(resolve));
    busy++;
    try {
      await stream(play, entry, response, body.messages !== undefined);
    } finally {
      busy--;
      queue.shift()?.();
    }
  };

  const stream = async (
    play: Script,
    entry: SeenRequest,
    response: ServerResponse,
    chat: boolean,
  ) => {
    response.writeHead(200, { 'content-type': 'text/event-stream' });
    const gone = () => response.destroyed || response.socket?.destroyed === true;
    for (let i = 0; i < play.tokens && !gone(); i++) {
      await pause(i === 0 ? play.firstDelay : play.gap);
      await stalled();
      entry.tokensSent.push(now());
      response.write(tokenChunk(i, chat));
    }
    if (play.ending === 'silent') {
      await new Promise((resolve) => response.on('close', resolve));
    } else if (play.ending === 'cut') {
      // Gives the tokens time to arrive; a reset would take them along.
      await pause(20);
      response.destroy();
    } else if (play.ending === 'error') {
      response.end('data: {"error":{"message":"the engine died","type":"server_error"}}\n\n');
    } else {
      response.end(lastChunks(play, chat));
    }
  };

  const server = createServer((request, response) => {
    answer(request, response).catch(() => response.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  return {
    url: `http://127.0.0.1:${port}`,
    seen,
    close: async () => {
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}

function tokenChunk(index: number, chat: boolean): string {
  const text = ` w${index}`;
  const choice = chat
    ? { index: 0, delta: { content: text }, logprobs: null, finish_reason: null }
    : { index: 0, text, logprobs: null, finish_reason: null };
  return event({
    id: 'cmpl-1',
    object: 'chunk',
    created: 1,
    model: 'fake-model',
    choices: [choice],
  });
}

function lastChunks(play: Script, chat: boolean): string {
  const end = chat
    ? { index: 0, delta: {}, finish_reason: 'length' }
    : { index: 0, text: '', finish_reason: 'length' };
  const usage = {
    prompt_tokens: play.promptTokens ?? 7,
    completion_tokens: play.usage ?? play.tokens,
    prompt_tokens_details: { cached_tokens: play.cachedTokens ?? 0 },
  };
  return (
    event({ id: 'cmpl-1', choices: [end] }) +
    (play.usage === null ? '' : event({ id: 'cmpl-1', choices: [], usage })) +
    'data: [DONE]\n\n'
  );
}

function event(data: unknown): string {
  return `data: ${JSON.stringify(data)}\n\n`;
}
