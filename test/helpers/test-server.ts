import type { TestContext } from 'node:test';
import OpenAI from 'openai';
import { type RunningServer, type ServerOptions, startServer } from '../../src/server/server.js';
import { byteTokenizer } from './byte-tokenizer.js';
import { FakeEngine, type FakeEngineOptions } from './fake-engine.js';

export interface TestServer {
  engine: FakeEngine;
  server: RunningServer;
  client: OpenAI;
  url: string;
  post(path: string, body: unknown, headers?: Record<string, string>): Promise<Response>;
}

/** A server on a scripted engine with a tokenizer of bytes, closed when the test ends. */
export async function testServer(
  t: TestContext,
  engineOptions: FakeEngineOptions = {},
  serverOptions: Partial<ServerOptions> = {},
): Promise<TestServer> {
  const engine = new FakeEngine(engineOptions);
  const server = await startServer({
    engine,
    tokenizer: byteTokenizer(),
    modelNames: ['fake', 'alias'],
    ...serverOptions,
  });
  t.after(async () => {
    await server.close({ timeoutMs: 0 });
    await engine.close();
  });
  const { url } = server;
  return {
    engine,
    server,
    url,
    client: new OpenAI({ baseURL: `${url}/v1`, apiKey: 'key', maxRetries: 0 }),
    post: (path, body, headers = {}) =>
      fetch(url + path, {
        method: 'POST',
        headers: { 'content-type': 'application/json', ...headers },
        body: typeof body === 'string' ? body : JSON.stringify(body),
      }),
  };
}

/** The script of an engine that says `text`, one byte a token, and ends. */
export function says(text: string): FakeEngineOptions {
  return { script: () => Buffer.from(text) };
}

export function delay(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** Waits until `condition` holds, at most a minute: a machine may be busy. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  const end = Date.now() + 60_000;
  while (!condition()) {
    if (Date.now() > end) throw new Error(`waited in vain: ${what}`);
    await delay(5);
  }
}
