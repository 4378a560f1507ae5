/**
 * The OpenAI-compatible server on node:http: it accepts, checks keys, routes, logs and shuts down;
 * what is done with a request is the routes' business.
 *
 * @example
 * const server = await startServer({ engine, tokenizer, modelNames: ['stories-7m'] });
 * console.log(server.url);
 * await server.close({ timeoutMs: 30_000 });
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { type Engine, now } from '../engine/api.js';
import { EngineClosedError, MillraceError } from '../errors.js';
import type { Tokenizer } from '../tokenizer/tokenizer.js';
import { apiKeyCheck } from './api-keys.js';
import type { ServerContext } from './context.js';
import { Exchange } from './exchange.js';
import type { Generation } from './generation.js';
import { createLog, type Log } from './log.js';
import { Metrics } from './metrics.js';
import { findRoute } from './router.js';
import type { GenerationDefaults } from './sampling-fields.js';

export interface ServerOptions {
  engine: Engine;
  /** Undefined: token ids in and out only. */
  tokenizer?: Tokenizer;
  /** Names the model answers to; responses carry the first. */
  modelNames: readonly string[];
  /** Default 127.0.0.1. */
  host?: string;
  /** 0 (default) picks a free one. */
  port?: number;
  /** Empty (default): everybody may. */
  apiKeys?: readonly string[];
  generationDefaults?: GenerationDefaults;
  /** Used in place of the checkpoint's chat template. */
  chatTemplate?: string;
  /** Run chat templates that requests bring. Default false. */
  trustRequestChatTemplate?: boolean;
  /** Bytes of a request body. Default 8 MiB. */
  maxBodySize?: number;
  /** Answers to one request: prompts times n. Default 1,024. */
  maxChoices?: number;
  log?: Log;
  version?: string;
}

export interface RunningServer {
  readonly url: string;
  /** Requests that are not answered yet. */
  readonly pending: number;
  /**
   * Stops accepting, waits until all requests are answered, at most `timeoutMs`, then ends the rest
   * with an error. Resolves with the number of requests that were dropped. Leaves the engine running.
   */
  close(options: { timeoutMs: number }): Promise<number>;
}

export const DEFAULT_MAX_BODY_SIZE = 8 * 1024 ** 2;
const DEFAULT_MAX_CHOICES = 1024;
/** Longer than common proxies keep an idle connection (60 s), so that they close first, not we under their request. */
const KEEP_ALIVE_MS = 75_000;
/** How long an unwanted body may go on before its connection is cut. */
const UNREAD_BODY_MS = 2_000;

const IDLE_SWEEP_MS = 50;

export async function startServer(options: ServerOptions): Promise<RunningServer> {
  const { engine, modelNames } = options;
  const context: ServerContext = {
    engine,
    tokenizer: options.tokenizer,
    modelNames,
    generationDefaults: options.generationDefaults ?? {},
    chatTemplate: options.chatTemplate,
    trustRequestChatTemplate: options.trustRequestChatTemplate ?? false,
    limits: {
      vocabSize: engine.info.vocabSize,
      maxModelLen: engine.info.maxModelLen,
      maxChoices: options.maxChoices ?? DEFAULT_MAX_CHOICES,
    },
    maxBodySize: options.maxBodySize ?? DEFAULT_MAX_BODY_SIZE,
    metrics: new Metrics(engine, modelNames[0]),
    log: options.log ?? createLog('warn'),
    created: Math.floor(Date.now() / 1000),
    version: options.version ?? 'unknown',
    active: new Set<Generation>(),
    state: 'serving',
  };
  engine.failed.catch((error: Error) => {
    context.state = 'dead';
    context.log.write('error', 'engine_failed', { error: error.message });
  });

  const checkKey = apiKeyCheck(options.apiKeys ?? []);
  const connections: Connections = new Map();
  const server = createServer({ keepAliveTimeout: KEEP_ALIVE_MS }, (request, response) => {
    const { socket } = request;
    connections.set(socket, (connections.get(socket) ?? 0) + 1);
    response.on('close', () => {
      const left = connections.get(socket);
      if (left !== undefined) connections.set(socket, left - 1);
    });
    void handle(context, checkKey, request, response);
  });
  server.on('connection', (socket: Socket) => {
    connections.set(socket, 0);
    socket.on('close', () => connections.delete(socket));
  });
  await listen(server, options.host ?? '127.0.0.1', options.port ?? 0);
  return {
    url: urlOf(server),
    get pending() {
      return pending(connections);
    },
    close: ({ timeoutMs }) => close(context, server, connections, timeoutMs),
  };
}

/** Every open connection, with the number of its requests that are not answered. */
type Connections = Map<Socket, number>;

function pending(connections: Connections): number {
  return [...connections.values()].reduce((sum, requests) => sum + requests, 0);
}

async function handle(
  context: ServerContext,
  checkKey: (authorization: string | undefined) => void,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  // Clients of proxies send the whole URL (RFC 9112, section 3.2.2).
  const path = (request.url ?? '/').replace(/^https?:\/\/[^/?]*/i, '').split('?', 1)[0];
  const exchange = new Exchange(request, response, path, now());
  response.on('close', () => logRequest(context, exchange));
  // A reset connection is the client's business; 'close' follows.
  response.on('error', () => {});
  try {
    const route = findRoute(request, path);
    if (!route.open) {
      checkKey(request.headers.authorization);
      if (context.state === 'dead') throw new EngineClosedError('The engine has failed');
    }
    if (context.state === 'draining') {
      response.shouldKeepAlive = false;
      if (request.method === 'POST') throw new EngineClosedError('The server is shutting down');
    }
    await route.handler(context, exchange);
  } catch (error) {
    if (!(error instanceof MillraceError)) {
      context.log.write('error', 'internal_error', { path, stack: (error as Error)?.stack });
    }
    exchange.sendError(error);
    dropUnreadBody(request);
  }
}

/**
 * After an early answer the client may still be sending. Cutting it off at once would often destroy
 * the answer on its way, so the rest is read and thrown away, for a while.
 */
function dropUnreadBody(request: IncomingMessage): void {
  if (request.complete || request.destroyed) return;
  request.resume();
  const timer = setTimeout(() => request.destroy(), UNREAD_BODY_MS);
  request.on('close', () => clearTimeout(timer));
  request.on('end', () => clearTimeout(timer));
}

/** One line a request, at level info. A client that left before the answer was complete is a 499 (nginx's number). */
function logRequest(context: ServerContext, exchange: Exchange): void {
  if (!context.log.enabled('info')) return;
  const { request, response, path, arrivalMs, logFields } = exchange;
  context.log.write('info', 'request', {
    method: request.method,
    path,
    status: response.writableFinished ? response.statusCode : 499,
    ms: Math.round(now() - arrivalMs),
    ...logFields,
  });
}

async function listen(server: Server, host: string, port: number): Promise<void> {
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen({ host, port, backlog: 4096 }, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

function urlOf(server: Server): string {
  const { address, family, port } = server.address() as AddressInfo;
  return `http://${family === 'IPv6' ? `[${address}]` : address}:${port}`;
}

async function close(
  context: ServerContext,
  server: Server,
  connections: Connections,
  timeoutMs: number,
): Promise<number> {
  if (context.state === 'serving') context.state = 'draining';
  const closed = new Promise<void>((resolve) => server.close(() => resolve()));
  // Connections become idle one by one, as their last answer ends. Node's closeIdleConnections
  // spares those on which no request ever came: anybody's silence would hold up the shutdown.
  const sweep = setInterval(() => {
    for (const [socket, requests] of connections) if (requests === 0) socket.destroy();
  }, IDLE_SWEEP_MS);
  void closed.then(() => clearInterval(sweep));
  const timer = new Promise<'late'>((resolve) => setTimeout(resolve, timeoutMs, 'late').unref());
  let dropped = 0;
  if ((await Promise.race([closed, timer])) === 'late') {
    dropped = pending(connections);
    const reason = new EngineClosedError('The server is shutting down');
    for (const generation of context.active) generation.fail(reason);
    // The errors are written; what is left after a moment has no reader.
    await Promise.race([closed, new Promise((resolve) => setTimeout(resolve, 250))]);
    server.closeAllConnections();
    await closed;
  }
  context.metrics.close();
  return dropped;
}
