/** The table of routes, and the answer to what is not in it. */
import type { IncomingMessage } from 'node:http';
import { MethodNotAllowedError, NotFoundError } from '../errors.js';
import { chatCompletions } from './chat-completions.js';
import { completions } from './completions.js';
import type { ServerContext } from './context.js';
import type { Exchange } from './exchange.js';
import { getModel, health, listModels, metricsPage, version } from './status-routes.js';
import { detokenize, tokenize } from './tokenize.js';

export type Handler = (context: ServerContext, exchange: Exchange) => void | Promise<void>;

export interface Route {
  handler: Handler;
  /** Answered without an API key, and while the server is draining. */
  open?: boolean;
}

const ROUTES: Readonly<Record<string, Readonly<Record<string, Route>>>> = {
  '/v1/completions': { POST: { handler: completions } },
  '/v1/chat/completions': { POST: { handler: chatCompletions } },
  '/v1/models': { GET: { handler: listModels } },
  '/v1/models/*': { GET: { handler: getModel } },
  '/tokenize': { POST: { handler: tokenize } },
  '/detokenize': { POST: { handler: detokenize } },
  '/health': { GET: { handler: health, open: true } },
  '/version': { GET: { handler: version } },
  '/metrics': { GET: { handler: metricsPage } },
};

/** Finds the route of a request, or throws the error to answer. */
export function findRoute(request: IncomingMessage, path: string): Route {
  const key = path.startsWith('/v1/models/') ? '/v1/models/*' : path;
  const methods = Object.hasOwn(ROUTES, key) ? ROUTES[key] : undefined;
  if (!methods) throw new NotFoundError(`There is no ${path.slice(0, 200)}`);
  const method = request.method === 'HEAD' ? 'GET' : (request.method ?? '');
  if (!Object.hasOwn(methods, method)) {
    const allow = Object.keys(methods);
    throw new MethodNotAllowedError(`${path} takes ${allow.join(', ')}, not ${method}`, allow);
  }
  return methods[method];
}
