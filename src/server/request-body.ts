/** Reading a request's JSON body, no larger than allowed. */
import type { IncomingMessage } from 'node:http';
import {
  InvalidParameterError,
  PayloadTooLargeError,
  UnsupportedMediaTypeError,
} from '../errors.js';
import { isObject, type Json } from './fields.js';
import { ownTurn } from './turns.js';

export async function readJsonBody(request: IncomingMessage, maxBytes: number): Promise<Json> {
  const type = request.headers['content-type'];
  if (type !== undefined && !/^application\/(\w+\+)?json\s*(;|$)/i.test(type)) {
    throw new UnsupportedMediaTypeError(
      `Expected content-type application/json but received ${type.slice(0, 80)}`,
    );
  }
  const text = decode(await readBytes(request, maxBytes));
  await ownTurn();
  let body: unknown;
  try {
    body = JSON.parse(text);
  } catch (cause) {
    throw new InvalidParameterError(`The body is not valid JSON: ${(cause as Error).message}`, {
      cause,
    });
  }
  if (!isObject(body)) throw new InvalidParameterError('The body must be a JSON object');
  return body;
}

/** RFC 8259, section 8.1: JSON is UTF-8. Anything else would reach the model as U+FFFD. */
function decode(bytes: Buffer): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (cause) {
    throw new InvalidParameterError('The body is not valid UTF-8', { cause });
  }
}

function readBytes(request: IncomingMessage, maxBytes: number): Promise<Buffer> {
  const tooLarge = () =>
    new PayloadTooLargeError(`The body is larger than ${maxBytes} bytes (--max-body-size)`);
  return new Promise((resolve, reject) => {
    if (Number(request.headers['content-length'] ?? 0) > maxBytes) {
      reject(tooLarge());
      return;
    }
    const chunks: Buffer[] = [];
    let size = 0;
    const onData = (chunk: Buffer): void => {
      size += chunk.length;
      chunks.push(chunk);
      if (size > maxBytes) {
        request.off('data', onData);
        chunks.length = 0;
        reject(tooLarge());
      }
    };
    request.on('data', onData);
    request.on('end', () => resolve(Buffer.concat(chunks)));
    // The client left before it had sent everything: nobody reads the answer.
    const left = () => reject(new InvalidParameterError('The body ended too early'));
    request.on('close', left);
    request.on('error', left);
  });
}
