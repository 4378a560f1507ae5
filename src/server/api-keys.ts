/** API keys, compared in constant time. */
import { createHash, timingSafeEqual } from 'node:crypto';
import { AuthenticationError } from '../errors.js';

/**
 * Returns a check of `Authorization` headers against the keys; with no keys everybody may. Keys are
 * compared by their SHA-256, all of them every time, so that the time tells neither a key's length,
 * nor its beginning, nor which one it was.
 */
export function apiKeyCheck(keys: readonly string[]): (authorization: string | undefined) => void {
  const digests = keys.map(digest);
  return (authorization) => {
    if (digests.length === 0) return;
    const [scheme, key] = splitOnce(authorization ?? '');
    const given = digest(key);
    let known = false;
    for (const expected of digests) known = timingSafeEqual(given, expected) || known;
    if (!known || scheme.toLowerCase() !== 'bearer') {
      throw new AuthenticationError(
        authorization === undefined
          ? 'Expected an API key in the header Authorization: Bearer KEY but there is none'
          : 'The API key is not valid',
      );
    }
  };
}

function digest(key: string): Buffer {
  return createHash('sha256').update(key).digest();
}

function splitOnce(text: string): [string, string] {
  const space = text.indexOf(' ');
  return space < 0 ? [text, ''] : [text.slice(0, space), text.slice(space + 1).trim()];
}
