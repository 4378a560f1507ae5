/** POST /tokenize and /detokenize, as in vLLM. */
import { readChatPrompt } from './chat-prompt.js';
import { checkModel, type ServerContext } from './context.js';
import type { Exchange } from './exchange.js';
import { Fields } from './fields.js';
import { withoutTokenizer } from './prompt.js';
import { readJsonBody } from './request-body.js';

/** `prompt` or `messages` to token ids. */
export async function tokenize(context: ServerContext, exchange: Exchange): Promise<void> {
  const body = await readJsonBody(exchange.request, context.maxBodySize);
  const fields = new Fields(body);
  checkModel(context, fields);
  const { tokenizer, limits } = context;
  if (!tokenizer) throw withoutTokenizer(fields.has('messages') ? 'messages' : 'prompt');
  let tokens: number[];
  if (fields.has('messages')) {
    tokens = readChatPrompt(fields, context).ids;
  } else {
    const prompt = fields.string('prompt') ?? fields.fail('prompt', 'string');
    const addSpecialTokens = fields.boolean('add_special_tokens') ?? true;
    tokens = tokenizer.encode(prompt, { addSpecialTokens });
  }
  const strings = fields.boolean('return_token_strs') ?? false;
  exchange.sendJson({
    count: tokens.length,
    max_model_len: limits.maxModelLen,
    tokens,
    token_strs: strings ? tokens.map((id) => tokenizer.tokenText(id)) : null,
  });
}

export async function detokenize(context: ServerContext, exchange: Exchange): Promise<void> {
  const body = await readJsonBody(exchange.request, context.maxBodySize);
  const fields = new Fields(body);
  checkModel(context, fields);
  const { vocabSize } = context.limits;
  const tokens = fields.tokenIds('tokens', vocabSize) ?? fields.fail('tokens', 'list of token ids');
  if (!context.tokenizer) throw withoutTokenizer('tokens');
  exchange.sendJson({ prompt: context.tokenizer.decode(tokens) });
}
