/** From the messages of a chat to token ids. */
import { InvalidParameterError } from '../errors.js';
import type { ChatMessage } from '../tokenizer/tokenizer.js';
import type { ServerContext } from './context.js';
import { Fields, isObject } from './fields.js';
import { encode, type Prompt, readTruncate, withoutTokenizer } from './prompt.js';

/** Reads `messages` and the fields of the chat template, renders and tokenizes. */
export function readChatPrompt(fields: Fields, context: ServerContext): Prompt {
  const { tokenizer, limits } = context;
  const messages = readMessages(fields);
  const template = fields.string('chat_template');
  const kwargs = fields.object('chat_template_kwargs') ?? {};
  if (template !== undefined && !context.trustRequestChatTemplate) {
    throw new InvalidParameterError(
      'chat_template is not allowed in requests: a template is a program; start the server with --trust-request-chat-template to run those of your clients',
      { param: 'chat_template' },
    );
  }
  for (const key of ['template', 'chat_template', 'messages', 'addGenerationPrompt']) {
    if (Object.hasOwn(kwargs, key)) {
      new Fields(kwargs, 'chat_template_kwargs.').fail(key, 'no such key');
    }
  }
  if (!tokenizer) throw withoutTokenizer('messages');
  const text = tokenizer.applyChatTemplate(messages, {
    ...kwargs,
    addGenerationPrompt: fields.boolean('add_generation_prompt') ?? true,
    template: template ?? context.chatTemplate,
  });
  const ids = encode(text, {
    tokenizer,
    limits,
    // The template writes the special tokens itself.
    addSpecialTokens: fields.boolean('add_special_tokens') ?? false,
    truncate: readTruncate(fields),
    param: 'messages',
  });
  if (ids.length === 0) fields.fail('messages', 'messages that render to at least one token');
  return { ids, text };
}

function readMessages(fields: Fields): ChatMessage[] {
  const messages = fields.get('messages');
  if (!Array.isArray(messages) || messages.length === 0) {
    fields.fail('messages', 'non-empty list of messages');
  }
  return messages.map((message: unknown, i) => {
    if (!isObject(message)) {
      throw InvalidParameterError.expected('object', `messages[${i}]`, message);
    }
    const inner = new Fields(message, `messages[${i}].`);
    const role = inner.string('role') ?? inner.fail('role', 'string');
    if (role === 'tool' || role === 'function') {
      inner.refuse('role', `there is no tool parser, so no role ${role}`, () => false);
    }
    inner.refuse('tool_calls', 'there is no tool parser');
    inner.refuse('function_call', 'there is no tool parser');
    return { ...message, role, content: readContent(inner) };
  });
}

/** A string, or parts of type text, which are joined by line ends as in vLLM. */
function readContent(message: Fields): string {
  const content = message.get('content');
  if (content === undefined) return '';
  if (typeof content === 'string') return content;
  if (!Array.isArray(content)) message.fail('content', 'string or list of text parts');
  return content
    .map((part: unknown, i) => {
      const inner = new Fields(isObject(part) ? part : {}, `${message.name('content')}[${i}].`);
      if (inner.get('type') !== 'text') inner.fail('type', "'text'");
      return inner.string('text') ?? inner.fail('text', 'string');
    })
    .join('\n');
}
