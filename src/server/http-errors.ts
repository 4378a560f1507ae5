/** Errors in OpenAI's shape. One place decides what of an error a client may see. */
import { MillraceError, QueueFullError } from '../errors.js';

export interface ErrorBody {
  error: { message: string; type: string; param: string | null; code: string | null };
}

export interface HttpError {
  status: number;
  headers: Record<string, string>;
  body: ErrorBody;
}

export function toHttpError(error: unknown): HttpError {
  if (!(error instanceof MillraceError)) {
    // A defect of ours: its message is for the log.
    return httpError(500, 'Internal server error', null, 'internal_error');
  }
  const answer = httpError(error.status, error.message, error.param ?? null, error.code);
  if (error instanceof QueueFullError)
    answer.headers['retry-after'] = String(Math.ceil(error.retryAfter));
  if ('allow' in error) answer.headers.allow = (error.allow as string[]).join(', ');
  if (error.status === 401) answer.headers['www-authenticate'] = 'Bearer';
  return answer;
}

function httpError(status: number, message: string, param: string | null, code: string): HttpError {
  const type =
    status === 429 ? 'rate_limit_error' : status >= 500 ? 'server_error' : 'invalid_request_error';
  return { status, headers: {}, body: { error: { message, type, param, code } } };
}
