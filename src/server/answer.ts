/** Runs a generation and answers with it, as one JSON body or as a stream of events. */
import type { Choice, Piece } from './choice.js';
import { PieceBuffer } from './choice.js';
import type { ServerContext } from './context.js';
import { EventStream } from './event-stream.js';
import type { Exchange } from './exchange.js';
import {
  Generation,
  type GenerationRequest,
  type GenerationSink,
  type Usage,
} from './generation.js';
import { toHttpError } from './http-errors.js';

/** How an endpoint writes its answers. */
export interface AnswerFormat {
  /** The body of a whole answer; `pieces` has one entry a choice. */
  body(pieces: readonly Piece[], generation: Generation): unknown;
  /** The events of one piece, each `data: {...}` and an empty line; none if it says nothing. */
  events(choice: Choice, piece: Piece, generation: Generation): string;
  /** The JSON of the event with the usage, without the closing brace. */
  usageEvent(usage: Usage): string;
}

export interface StreamOptions {
  includeUsage: boolean;
}

/** `stream` undefined: one JSON body. */
export function answer(
  context: ServerContext,
  exchange: Exchange,
  request: GenerationRequest,
  format: AnswerFormat,
  stream: StreamOptions | undefined,
): void {
  const { response, logFields } = exchange;
  const sink = stream
    ? streamSink(exchange, format, stream, () => generation)
    : bodySink(exchange, format, () => generation);
  const generation: Generation = new Generation(
    context.engine,
    context.tokenizer,
    context.metrics,
    request,
    sink,
  );
  context.active.add(generation);
  // Before the log line, which is written at 'close' too.
  response.prependListener('close', () => {
    generation.abort();
    context.active.delete(generation);
    const usage = generation.usage();
    logFields.prompt_tokens = usage.prompt_tokens;
    logFields.completion_tokens = usage.completion_tokens;
    logFields.finish_reasons = generation.choices.map(
      (choice) => (choice.stopped === undefined ? choice.finish?.reason : 'stop') ?? 'abort',
    );
  });
  // The client may have left before the body was parsed.
  if (response.destroyed) generation.abort();
}

function bodySink(
  exchange: Exchange,
  format: AnswerFormat,
  generation: () => Generation,
): GenerationSink {
  const pieces: PieceBuffer[] = [];
  const of = (index: number): PieceBuffer => {
    pieces[index] ??= new PieceBuffer();
    return pieces[index];
  };
  return {
    piece: (choice, piece) => of(choice.index).append(piece),
    done() {
      const all = generation().choices.map((choice) => of(choice.index));
      exchange.sendJson(format.body(all, generation()));
    },
    failed: (error) => exchange.sendError(error),
  };
}

/**
 * While the reader is behind, pieces are joined in memory and leave as one event a choice when it
 * has caught up: what it holds is bounded by its own max_tokens, and nobody else waits.
 */
function streamSink(
  exchange: Exchange,
  format: AnswerFormat,
  options: StreamOptions,
  generation: () => Generation,
): GenerationSink {
  let stream: EventStream | undefined;
  const waiting = new Map<Choice, PieceBuffer>();
  const takeWaiting = (): string => {
    let events = '';
    for (const [choice, piece] of waiting) events += format.events(choice, piece, generation());
    waiting.clear();
    return events;
  };
  // The head is sent with the first token: until then an error still has its own status.
  const open = (): EventStream => {
    stream ??= new EventStream(exchange.response, () => {
      const events = takeWaiting();
      if (events) stream?.write(events);
    });
    return stream;
  };
  return {
    piece(choice, piece) {
      const to = open();
      if (to.congested) {
        let buffer = waiting.get(choice);
        if (!buffer) {
          buffer = new PieceBuffer();
          waiting.set(choice, buffer);
        }
        buffer.append(piece);
        return;
      }
      const events = format.events(choice, piece, generation());
      if (events) to.write(events);
    },
    done() {
      const usage = options.includeUsage ? format.usageEvent(generation().usage()) : '';
      open().end(`${takeWaiting()}${usage}data: [DONE]\n\n`);
    },
    failed(error) {
      if (!stream) {
        exchange.sendError(error);
        return;
      }
      exchange.logFields.error = error.message;
      stream.end(`${takeWaiting()}data: ${JSON.stringify(toHttpError(error).body)}\n\n`);
    },
  };
}

/** What every event of a stream begins with, up to its list of choices. */
export function eventHead(envelope: {
  id: string;
  object: string;
  created: number;
  model: string;
}): string {
  return `data: ${JSON.stringify(envelope).slice(0, -1)},"choices":[`;
}
