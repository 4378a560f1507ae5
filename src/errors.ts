/** Every error Millrace shows to a person. Each has a stable `code`; one table maps codes to HTTP. */

export abstract class MillraceError extends Error {
  abstract readonly code: string;
  /** The HTTP status the server answers with. */
  abstract readonly status: number;
  /** The parameter at fault, named as the user wrote it. */
  readonly param?: string;

  constructor(message: string, options: { param?: string; cause?: unknown } = {}) {
    super(message, { cause: options.cause });
    this.name = new.target.name;
    this.param = options.param;
  }
}

/** A parameter, flag or field is wrong. The message says what was expected and what came. */
export class InvalidParameterError extends MillraceError {
  readonly code = 'invalid_parameter';
  readonly status = 400;

  /** `Expected integer between 1 and 8192 for max_tokens but received -1 of type number`. */
  static expected(what: string, param: string, received: unknown): InvalidParameterError {
    return new InvalidParameterError(
      `Expected ${what} for ${param} but received ${describe(received)}`,
      { param },
    );
  }
}

/** The request can never be served with this configuration: longer than the context or the cache. */
export class ContextLengthError extends MillraceError {
  readonly code = 'context_length_exceeded';
  readonly status = 400;
}

/** A checkpoint, config or tokenizer cannot be used; the message names file and field. */
export class ModelError extends MillraceError {
  readonly code = 'invalid_model';
  readonly status = 500;
}

/** The native addon is missing or cannot run here; the message says what to type. */
export class NativeError extends MillraceError {
  readonly code = 'native_unavailable';
  readonly status = 500;
}

/** The memory plan does not fit; the message says what to change. */
export class MemoryPlanError extends MillraceError {
  readonly code = 'memory_plan';
  readonly status = 500;
}

/** The waiting queue is full. */
export class QueueFullError extends MillraceError {
  readonly code = 'queue_full';
  readonly status = 429;
  /** Seconds after which a retry is worth it. */
  readonly retryAfter: number;

  constructor(message: string, retryAfter: number) {
    super(message);
    this.retryAfter = retryAfter;
  }
}

/** The engine is shutting down or has stopped. */
export class EngineClosedError extends MillraceError {
  readonly code = 'engine_closed';
  readonly status = 503;
}

/** The request failed while running: the model produced no finite logits for it. */
export class GenerationError extends MillraceError {
  readonly code = 'generation_failed';
  readonly status = 500;
}

/** A server that a command started, or asked, did not do its part. */
export class ServerFailedError extends MillraceError {
  readonly code = 'server_failed';
  readonly status = 502;
}

export class AuthenticationError extends MillraceError {
  readonly code = 'invalid_api_key';
  readonly status = 401;
}

export class NotFoundError extends MillraceError {
  readonly code = 'not_found';
  readonly status = 404;
}

/** The route exists, but not with this method. */
export class MethodNotAllowedError extends MillraceError {
  readonly code = 'method_not_allowed';
  readonly status = 405;
  /** The methods that the route has. */
  readonly allow: readonly string[];

  constructor(message: string, allow: readonly string[]) {
    super(message);
    this.allow = allow;
  }
}

/** The request's body is not declared as JSON. */
export class UnsupportedMediaTypeError extends MillraceError {
  readonly code = 'unsupported_media_type';
  readonly status = 415;
}

/** The request's body is larger than the server takes. */
export class PayloadTooLargeError extends MillraceError {
  readonly code = 'payload_too_large';
  readonly status = 413;
}

function describe(value: unknown): string {
  if (value === null) return 'null';
  if (value === undefined) return 'undefined';
  const type = Array.isArray(value) ? 'array' : typeof value;
  const text = typeof value === 'number' ? String(value) : asJson(value);
  return `${text.length > 80 ? `${text.slice(0, 77)}...` : text} of type ${type}`;
}

/** Values may come from a client: JSON nested too deep for JSON.stringify must not become another error. */
function asJson(value: unknown): string {
  try {
    return JSON.stringify(value) ?? String(value);
  } catch {
    return 'something nested too deep to show';
  }
}
