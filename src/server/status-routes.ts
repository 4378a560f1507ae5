/** The routes that tell about the server. */
import { EngineClosedError } from '../errors.js';
import { type ServerContext, unknownModel } from './context.js';
import type { Exchange } from './exchange.js';

export function listModels(context: ServerContext, exchange: Exchange): void {
  const data = context.modelNames.map((name) => modelCard(context, name));
  exchange.sendJson({ object: 'list', data });
}

export function getModel(context: ServerContext, exchange: Exchange): void {
  let name = exchange.path.slice('/v1/models/'.length);
  try {
    name = decodeURIComponent(name);
  } catch {
    // Not an encoded name: no model is called so.
  }
  if (!context.modelNames.includes(name)) throw unknownModel(context, name);
  exchange.sendJson(modelCard(context, name));
}

function modelCard(context: ServerContext, id: string): unknown {
  return {
    id,
    object: 'model',
    created: context.created,
    owned_by: 'millrace',
    root: context.engine.info.model,
    parent: null,
    max_model_len: context.limits.maxModelLen,
  };
}

/** 200 while requests are served. Asks nothing of the engine's thread, so it answers while steps run. */
export function health(context: ServerContext, exchange: Exchange): void {
  if (context.state !== 'serving') {
    throw new EngineClosedError(
      context.state === 'dead' ? 'The engine has failed' : 'The server is shutting down',
    );
  }
  exchange.send('', 'text/plain');
}

export function version(context: ServerContext, exchange: Exchange): void {
  exchange.sendJson({ version: context.version });
}

export async function metricsPage(context: ServerContext, exchange: Exchange): Promise<void> {
  exchange.send(await context.metrics.text(), context.metrics.contentType);
}
