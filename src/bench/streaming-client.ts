/**
 * One streaming request to an OpenAI-compatible server, timed token by token.
 *
 * It stands on node:http: 9 us of CPU a token and 115 us a request, measured with
 * bench/client-capacity.ts. undici takes the same for long streams and a tenth less for short
 * ones; a hand-written HTTP/1.1 reader on bare sockets takes 6 and 43 us, not worth one more parser.
 */
import { Agent, type ClientRequest, request as httpRequest, type IncomingMessage } from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https';
import { now } from '../engine/api.js';
import type { RequestError, RequestRecord } from './request-record.js';
import { SseParser } from './sse-parser.js';
import { scanChunk } from './token-scan.js';

export interface StreamingRequest {
  /** Full address of the route, for example `http://127.0.0.1:8000/v1/completions`. */
  url: string;
  /** The request's JSON; `stream` and `stream_options.include_usage` are set here. */
  body: Record<string, unknown>;
  /** The whole request as JSON, where the caller made it beforehand with `streamingBody`. */
  json?: string;
  apiKey?: string;
  headers?: Record<string, string>;
  /** When the workload wants it sent, in ms of `now()`. */
  intended: number;
  agent: Agent;
  /** Silence for this long, in ms, is a failure of kind `timeout`. */
  timeout?: number;
  /** Ends the request with an error of kind `aborted`. */
  signal?: AbortSignal;
  /** Called when tokens arrive, with their number. */
  onTokens?: (count: number) => void;
}

/** An agent that opens as many connections as there are requests and keeps them. */
export function keepAliveAgent(url = 'http:'): Agent {
  const options = { keepAlive: true, maxSockets: Number.POSITIVE_INFINITY };
  return url.startsWith('https:') ? new HttpsAgent(options) : new Agent(options);
}

/** The JSON of a streaming request. */
export function streamingBody(body: Record<string, unknown>): string {
  return JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } });
}

/** Never rejects: whatever goes wrong is in the record's `error`. */
export function streamRequest(options: StreamingRequest): Promise<RequestRecord> {
  const body = options.json ?? streamingBody(options.body);
  const record: RequestRecord = {
    intended: options.intended,
    sent: now(),
    firstByte: 0,
    tokenTimes: [],
    end: 0,
    promptTokens: 0,
    cachedTokens: 0,
    outputTokens: 0,
    tokenIds: [],
    finishReason: null,
  };
  return new Promise((resolve) => new Exchange(options, body, record, resolve).send());
}

/** Codes of connections that never came to be. */
const NOT_CONNECTED = new Set([
  'ECONNREFUSED',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'ENOTFOUND',
  'EAI_AGAIN',
  'ETIMEDOUT',
]);
/** Codes of a client that ran out of file descriptors or ports. */
const NO_SOCKET = new Set(['EMFILE', 'ENFILE', 'EADDRNOTAVAIL', 'ENOBUFS']);

/** One request and its answer. */
class Exchange {
  readonly #options: StreamingRequest;
  readonly #body: string;
  readonly #record: RequestRecord;
  readonly #resolve: (record: RequestRecord) => void;
  #outgoing?: ClientRequest;
  #failure?: RequestError;
  #answered = false;
  #done = false;
  #events = 0;
  /** When the bytes being parsed arrived. */
  #arrived = 0;

  constructor(
    options: StreamingRequest,
    body: string,
    record: RequestRecord,
    resolve: (record: RequestRecord) => void,
  ) {
    this.#options = options;
    this.#body = body;
    this.#record = record;
    this.#resolve = resolve;
  }

  send(again = false): void {
    const { url, apiKey, agent, headers, timeout = 600_000, signal } = this.#options;
    const request = url.startsWith('https:') ? httpsRequest : httpRequest;
    const outgoing = request(url, {
      method: 'POST',
      agent,
      timeout,
      headers: {
        'content-type': 'application/json',
        'content-length': Buffer.byteLength(this.#body),
        ...(apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` }),
        ...headers,
      },
    });
    this.#outgoing = outgoing;
    outgoing.on('response', (response) => this.#read(response));
    outgoing.on('timeout', () => {
      this.#finish({ kind: 'timeout', message: `no byte for ${timeout} ms` });
      outgoing.destroy();
    });
    outgoing.on('error', (error: NodeJS.ErrnoException) => {
      // A kept connection may be closed by the server just as it is used again; that is no
      // failure of the request, which no server has seen.
      if (outgoing.reusedSocket && error.code === 'ECONNRESET' && !this.#answered && !again) {
        if (this.#record.end === 0) this.send(true);
        return;
      }
      this.#finish({ kind: kindOfCode(error.code ?? ''), message: error.message });
    });
    if (signal?.aborted) this.#abort();
    else if (!again) signal?.addEventListener('abort', this.#abort);
    outgoing.end(this.#body);
  }

  readonly #abort = () => {
    this.#finish({ kind: 'aborted', message: 'given up by the load generator' });
    this.#outgoing?.destroy();
  };

  #finish(error?: RequestError): void {
    const record = this.#record;
    if (record.end !== 0) return;
    record.end = now();
    if (error) record.error = error;
    else if (record.tokenTimes.length === 0) {
      const reason = record.finishReason ?? 'none';
      const message = `the stream ended without a token (finish reason: ${reason})`;
      record.error = { kind: 'empty_stream', message };
    }
    record.outputTokens = record.usageTokens || record.tokenTimes.length;
    this.#options.signal?.removeEventListener('abort', this.#abort);
    this.#resolve(record);
  }

  #read(response: IncomingMessage): void {
    this.#answered = true;
    const status = response.statusCode ?? 0;
    if (status !== 200) {
      this.#readRefusal(response, status);
      return;
    }
    const parser = new SseParser((data) => this.#take(data));
    response.on('data', (bytes: Buffer) => {
      // All that one read brings has arrived now.
      this.#arrived = now();
      if (this.#record.firstByte === 0) this.#record.firstByte = this.#arrived;
      try {
        parser.push(bytes.toString('latin1'));
      } catch (error) {
        const message = `not an event stream: ${(error as Error).message}`;
        this.#failure ??= { kind: 'broken_stream', message };
        response.destroy();
      }
    });
    response.on('close', () => {
      // Some servers send no [DONE]; a reason to finish and a whole body are as good.
      const whole = this.#done || (response.complete && this.#record.finishReason !== null);
      if (this.#failure || whole) this.#finish(this.#failure);
      else this.#finish({ kind: 'broken_stream', message: this.#whatIsMissing(response) });
    });
    // 'close' follows and tells what was missing.
    response.on('error', (error) => {
      this.#failure ??= { kind: 'broken_stream', message: error.message };
    });
  }

  #whatIsMissing(response: IncomingMessage): string {
    if (this.#events > 0) return 'the stream ended before [DONE]';
    return `no event came (content-type: ${response.headers['content-type'] ?? 'none'})`;
  }

  #take(data: string): void {
    this.#events++;
    if (data === '[DONE]') {
      this.#done = true;
      return;
    }
    const record = this.#record;
    const event = scanChunk(data);
    if (event.error !== undefined) {
      this.#failure ??= { kind: 'server_error', message: event.error };
      return;
    }
    if (event.tokens > 0) this.#options.onTokens?.(event.tokens);
    for (let i = 0; i < event.tokens; i++) record.tokenTimes.push(this.#arrived);
    if (event.tokenIds) record.tokenIds.push(...event.tokenIds);
    if (event.finishReason !== undefined) record.finishReason = event.finishReason;
    if (event.usage) {
      record.promptTokens = event.usage.promptTokens;
      record.usageTokens = event.usage.outputTokens;
      record.cachedTokens = event.usage.cachedTokens;
    }
  }

  #readRefusal(response: IncomingMessage, status: number): void {
    let text = '';
    response.setEncoding('utf8');
    response.on('data', (piece: string) => {
      if (text.length < 2000) text += piece;
    });
    response.on('error', () => {});
    response.on('close', () =>
      this.#finish({ kind: kindOfStatus(status), message: `${status} ${text}`.trim() }),
    );
  }
}

function kindOfCode(code: string): RequestError['kind'] {
  if (NO_SOCKET.has(code)) return 'no_socket';
  return NOT_CONNECTED.has(code) ? 'refused' : 'broken_stream';
}

function kindOfStatus(status: number): RequestError['kind'] {
  if (status === 429) return 'throttled';
  return status >= 500 ? 'server_error' : 'client_error';
}
