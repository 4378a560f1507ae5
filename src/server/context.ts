/** What all routes share. */
import type { Engine } from '../engine/api.js';
import { NotFoundError } from '../errors.js';
import type { Tokenizer } from '../tokenizer/tokenizer.js';
import type { Fields } from './fields.js';
import type { Generation } from './generation.js';
import type { Log } from './log.js';
import type { Metrics } from './metrics.js';
import type { PromptLimits } from './prompt.js';
import type { GenerationDefaults } from './sampling-fields.js';

export interface ServerContext {
  readonly engine: Engine;
  /** Undefined with --skip-tokenizer-init: token ids in and out. */
  readonly tokenizer?: Tokenizer;
  /** The names the model answers to; responses carry the first. */
  readonly modelNames: readonly string[];
  readonly generationDefaults: GenerationDefaults;
  /** Used in place of the checkpoint's chat template. */
  readonly chatTemplate?: string;
  /** Requests may bring chat templates: programs that run on the HTTP thread. */
  readonly trustRequestChatTemplate: boolean;
  readonly limits: PromptLimits;
  /** Bytes of a request body. */
  readonly maxBodySize: number;
  readonly metrics: Metrics;
  readonly log: Log;
  /** Unix seconds of the start, the `created` of the models. */
  readonly created: number;
  readonly version: string;
  /** Generations that have not ended. */
  readonly active: Set<Generation>;
  state: 'serving' | 'draining' | 'dead';
}

/** Checks that the request asks for the model that is served; returns the name that answers carry. */
export function checkModel(context: ServerContext, fields: Fields): string {
  const model = fields.string('model');
  if (model !== undefined && !context.modelNames.includes(model)) {
    throw unknownModel(context, model);
  }
  return context.modelNames[0];
}

export function unknownModel({ modelNames }: ServerContext, model: string): NotFoundError {
  const known = modelNames.map((name) => `\`${name}\``).join(', ');
  return new NotFoundError(
    `The model \`${model.slice(0, 200)}\` does not exist; this server has ${known}`,
    { param: 'model' },
  );
}
