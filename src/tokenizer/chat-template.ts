/** Chat templates: the Jinja program of a checkpoint that turns messages into a prompt. */
import { Template } from '@huggingface/jinja';
import { InvalidParameterError, ModelError } from '../errors.js';
import type { ChatMessage } from './tokenizer.js';

export interface ChatTemplateOptions {
  /** End with what opens the assistant's answer. Default true. */
  addGenerationPrompt?: boolean;
  /** A template to use in place of the checkpoint's. */
  template?: string;
  /** More variables for the template. */
  [extra: string]: unknown;
}

export class ChatTemplate {
  readonly #own?: Template;
  readonly #variables: Record<string, unknown>;
  /** The last foreign template, parsed: callers that send one send the same again. */
  #foreign?: { source: string; template: Template };

  /** @param variables what every template may use: `bos_token`, `eos_token`, ... */
  constructor(source: string | undefined, variables: Record<string, unknown>, origin: string) {
    this.#variables = variables;
    if (source === undefined) return;
    try {
      this.#own = new Template(source);
    } catch (cause) {
      throw new ModelError(`${origin}: chat template: ${(cause as Error).message}`, { cause });
    }
  }

  render(messages: readonly ChatMessage[], options: ChatTemplateOptions = {}): string {
    const { addGenerationPrompt = true, template: source, ...extra } = options;
    const template = source === undefined ? this.#own : this.#parse(source);
    if (!template) {
      throw new InvalidParameterError(
        'The checkpoint has no chat template: send prompts to /v1/completions, or start the server with --chat-template',
        { param: 'messages' },
      );
    }
    try {
      return template.render({
        ...this.#variables,
        ...extra,
        messages: messages.map((message) => ({ ...message })),
        add_generation_prompt: addGenerationPrompt,
      });
    } catch (cause) {
      throw new InvalidParameterError(
        `The chat template refused the messages: ${(cause as Error).message}`,
        { param: 'messages', cause },
      );
    }
  }

  #parse(source: string): Template {
    if (this.#foreign?.source !== source) {
      try {
        this.#foreign = { source, template: new Template(source) };
      } catch (cause) {
        throw new InvalidParameterError(`chat_template: ${(cause as Error).message}`, {
          param: 'chat_template',
          cause,
        });
      }
    }
    return this.#foreign.template;
  }
}
