/** One request and its response, as the routes see them. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import { toHttpError } from './http-errors.js';

export class Exchange {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  /** The path without the query. */
  readonly path: string;
  /** When the request's headers had come, in ms of `now()`. */
  readonly arrivalMs: number;
  /** What the request's log line will say besides method, path, status and time. */
  readonly logFields: Record<string, unknown> = {};

  constructor(request: IncomingMessage, response: ServerResponse, path: string, arrivalMs: number) {
    this.request = request;
    this.response = response;
    this.path = path;
    this.arrivalMs = arrivalMs;
  }

  sendJson(body: unknown, status = 200, headers: Record<string, string> = {}): void {
    this.send(JSON.stringify(body), 'application/json', status, headers);
  }

  send(
    text: string,
    contentType: string,
    status = 200,
    headers: Record<string, string> = {},
  ): void {
    if (this.response.headersSent || this.response.destroyed) return;
    this.response.writeHead(status, {
      ...headers,
      'content-type': contentType,
      'content-length': Buffer.byteLength(text),
    });
    this.response.end(text);
  }

  sendError(error: unknown): void {
    const { status, headers, body } = toHttpError(error);
    this.logFields.error = error instanceof Error ? error.message : String(error);
    this.sendJson(body, status, headers);
  }
}
