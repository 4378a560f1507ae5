/** The server under test: its address, and how its requests are written. */
import { type Agent, get as httpGet } from 'node:http';
import { get as httpsGet } from 'node:https';
import { setTimeout as pause } from 'node:timers/promises';
import { InvalidParameterError } from '../errors.js';
import type { RequestRecord } from './request-record.js';
import { keepAliveAgent, streamingBody, streamRequest } from './streaming-client.js';
import type { Prompt, WorkloadRequest } from './workloads/workload.js';

export interface TargetOptions {
  /** The server's address without a path, or with the path before `/v1`. */
  url: string;
  /** `/v1/completions` or `/v1/chat/completions`, or another path that ends like one of them. */
  endpoint: string;
  model: string;
  apiKey?: string;
  headers?: Record<string, string>;
  /** Set in every request: sampling parameters and the like. */
  extraBody: Record<string, unknown>;
  /** ms of silence after which a request has failed. */
  timeout: number;
  /** Turns token ids into text, for servers and routes that take only text. */
  decode?: (ids: number[]) => string;
}

export interface SendHooks {
  signal?: AbortSignal;
  onTokens?: (count: number) => void;
}

export class Target {
  readonly options: TargetOptions;
  readonly #agent: Agent;
  readonly #chat: boolean;

  constructor(options: TargetOptions) {
    this.options = options;
    this.#agent = keepAliveAgent(options.url);
    this.#chat = options.endpoint.endsWith('chat/completions');
  }

  /** Writes the request's body, and returns what sends it. */
  prepare(request: WorkloadRequest, hooks: SendHooks = {}) {
    const { url, endpoint, apiKey, headers, timeout } = this.options;
    const body = this.body(request);
    const json = streamingBody(body);
    return async (intended: number): Promise<RequestRecord> => {
      const record = await streamRequest({
        url: url + endpoint,
        body,
        json,
        apiKey,
        headers,
        intended,
        agent: this.#agent,
        timeout,
        ...hooks,
      });
      if (record.promptTokens === 0) record.promptTokens = request.inputTokens ?? 0;
      return record;
    };
  }

  /** The request's JSON, but for what makes it stream. */
  body(request: WorkloadRequest): Record<string, unknown> {
    const { model, extraBody } = this.options;
    const prompt = request.prompt();
    return {
      model,
      ...(this.#chat ? { messages: this.#messages(prompt) } : { prompt: this.#text(prompt) }),
      max_tokens: request.outputTokens,
      ...extraBody,
    };
  }

  #messages(prompt: Prompt): unknown[] {
    if (typeof prompt === 'string') return [{ role: 'user', content: prompt }];
    if (!isIds(prompt)) return prompt;
    const { decode } = this.options;
    if (decode) return [{ role: 'user', content: decode(prompt) }];
    throw new InvalidParameterError(
      'Expected --tokenizer for token ids on the chat route: messages are text',
      { param: '--tokenizer' },
    );
  }

  #text(prompt: Prompt): string | number[] {
    if (typeof prompt === 'string') return prompt;
    if (isIds(prompt)) return this.options.decode ? this.options.decode(prompt) : prompt;
    throw InvalidParameterError.expected(
      'a chat route for prompts that are messages',
      '--endpoint',
      this.options.endpoint,
    );
  }

  close(): void {
    this.#agent.destroy();
  }
}

function isIds(prompt: Prompt): prompt is number[] {
  return Array.isArray(prompt) && typeof prompt[0] === 'number';
}

/**
 * The first model that the server lists, asked for until it answers or `patience` ms have passed.
 * Throws InvalidParameterError for `--url` if nobody answers and for `--model` if nothing is listed.
 */
export async function firstModel(
  url: string,
  apiKey: string | undefined,
  patience: number,
): Promise<string> {
  const deadline = Date.now() + patience;
  for (;;) {
    let answer: { status: number; text: string };
    try {
      answer = await fetchText(`${url}/v1/models`, apiKey);
    } catch (cause) {
      if (Date.now() < deadline) {
        await pause(250);
        continue;
      }
      const reason = (cause as Error).message;
      throw new InvalidParameterError(`Expected a server at --url ${url}: ${reason}`, {
        param: '--url',
        cause,
      });
    }
    const model = modelOf(answer.text);
    if (answer.status === 200 && model !== undefined) return model;
    throw new InvalidParameterError(
      `Expected --model: ${url}/v1/models names none (status ${answer.status})`,
      { param: '--model' },
    );
  }
}

function modelOf(text: string): string | undefined {
  try {
    return (JSON.parse(text) as { data?: { id?: string }[] }).data?.[0]?.id;
  } catch {
    return undefined;
  }
}

function fetchText(url: string, apiKey?: string): Promise<{ status: number; text: string }> {
  const get = url.startsWith('https:') ? httpsGet : httpGet;
  const headers = apiKey === undefined ? {} : { authorization: `Bearer ${apiKey}` };
  return new Promise((resolve, reject) => {
    const outgoing = get(url, { headers, timeout: 5000 }, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (piece: string) => {
        text += piece;
      });
      response.on('end', () => resolve({ status: response.statusCode ?? 0, text }));
      response.on('error', reject);
    });
    outgoing.on('timeout', () => outgoing.destroy(new Error('no answer for 5 s')));
    outgoing.on('error', reject);
  });
}
