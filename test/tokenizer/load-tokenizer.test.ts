import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { InvalidParameterError, ModelError } from '../../src/errors.js';
import { IncrementalDecoder } from '../../src/tokenizer/incremental-decoder.js';
import { loadTokenizer } from '../../src/tokenizer/load-tokenizer.js';
import type { ChatMessage, Tokenizer } from '../../src/tokenizer/tokenizer.js';

const stories = await loadTokenizer('models/stories-7m');
const golden = JSON.parse(await readFile('test/goldens/stories-7m.json', 'utf8')) as {
  texts: { text: string; ids: number[] }[];
  chats: { messages: ChatMessage[]; ids: number[] }[];
};

/** Loads a tokenizer from files made for the test. */
async function made(files: Record<string, unknown>): Promise<Tokenizer> {
  const folder = await mkdtemp(join(tmpdir(), 'millrace-tokenizer-'));
  try {
    for (const [name, value] of Object.entries(files)) {
      await writeFile(
        join(folder, name),
        typeof value === 'string' ? value : JSON.stringify(value),
      );
    }
    return await loadTokenizer(folder);
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** A sentencepiece-like tokenizer: a few pieces and all 256 bytes. */
function sentencepiece(decoder?: unknown): Record<string, unknown> {
  const bytes = Array.from(
    { length: 256 },
    (_, i) => `<0x${i.toString(16).toUpperCase().padStart(2, '0')}>`,
  );
  const vocab = [
    '<unk>',
    '<s>',
    '</s>',
    ...bytes,
    '▁',
    'o',
    'n',
    'c',
    'e',
    'on',
    'ce',
    '▁on',
    '▁once',
  ];
  return {
    version: '1.0',
    added_tokens: vocab.slice(0, 3).map((content, id) => ({ id, content, special: true })),
    normalizer: {
      type: 'Sequence',
      normalizers: [
        { type: 'Prepend', prepend: '▁' },
        { type: 'Replace', pattern: { String: ' ' }, content: '▁' },
      ],
    },
    pre_tokenizer: null,
    post_processor: null,
    decoder: decoder ?? {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: '▁' }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        { type: 'Strip', content: ' ', start: 1, stop: 0 },
      ],
    },
    model: {
      type: 'BPE',
      unk_token: '<unk>',
      fuse_unk: true,
      byte_fallback: true,
      vocab: Object.fromEntries(vocab.map((token, id) => [token, id])),
      merges: ['o n', 'c e', '▁ on', '▁on ce'],
    },
  };
}

test('the texts of the goldens encode to the reference ids and decode to themselves', () => {
  assert.ok(golden.texts.length > 0);
  for (const { text, ids } of golden.texts) {
    assert.deepEqual(stories.encode(text), ids);
    assert.equal(stories.decode(ids, { skipSpecialTokens: true }), text);
  }
});

test('the chats of the goldens render and encode to the reference ids', () => {
  assert.ok(golden.chats.length > 0);
  for (const { messages, ids } of golden.chats) {
    const prompt = stories.applyChatTemplate(messages);
    assert.deepEqual(stories.encode(prompt, { addSpecialTokens: false }), ids);
  }
});

test('tokens tell their text, their bytes, whether they are special and the special ids', () => {
  assert.equal(stories.vocabSize, 4096);
  assert.equal(stories.bosTokenId, 1);
  assert.equal(stories.eosTokenId, 2);
  assert.ok(stories.isSpecial(5) && !stories.isSpecial(6) && !stories.isSpecial(99999));
  const smiley = stories.encode('🙂', { addSpecialTokens: false });
  assert.ok(smiley.length > 1);
  assert.equal(stories.tokenText(smiley[0]), '\ufffd');
  assert.equal(stories.wholeText(smiley[0]), undefined);
  assert.deepEqual(
    smiley.flatMap((id) => [...stories.tokenBytes(id)]),
    [...Buffer.from('🙂')],
  );
  assert.equal(stories.tokenText(2), '<|end|>');
  assert.equal(stories.decode([99999]), '');
  assert.ok(stories.maxTokenBytes > 5 && stories.maxTokenBytes < 100);
});

test('a sentencepiece tokenizer decodes bytes, drops the space it added, and keeps it in a continuation', async () => {
  const tokenizer = await made({ 'tokenizer.json': sentencepiece() });
  const ids = tokenizer.encode('once é once');
  assert.equal(tokenizer.decode(ids), 'once é once');
  const decoder = new IncrementalDecoder(tokenizer);
  const text =
    ids
      .slice(1)
      .map((id) => decoder.push(id))
      .join('') + decoder.flush();
  assert.equal(text, ' é once', 'a continuation keeps its leading space');
});

test('a metaspace decoder drops the leading space unless it never prepends one', async () => {
  const load = (prepend_scheme: string): Promise<Tokenizer> =>
    made({
      'tokenizer.json': sentencepiece({ type: 'Metaspace', replacement: '▁', prepend_scheme }),
    });
  const once = 3 + 256 + 8;
  assert.equal((await load('always')).decode([once, once]), 'once once');
  assert.equal((await load('never')).decode([once, once]), ' once once');
});

test('a decoder that is not supported and broken files are named in the error', async () => {
  const model = (pattern: RegExp) => (error: unknown) =>
    error instanceof ModelError && pattern.test(error.message);
  await assert.rejects(
    made({ 'tokenizer.json': sentencepiece({ type: 'CTC' }) }),
    model(/CTC.*supported are/),
  );
  await assert.rejects(made({ 'tokenizer.json': '{' }), model(/tokenizer\.json is not valid JSON/));
  await assert.rejects(made({ 'tokenizer.json': '{}' }), model(/tokenizer\.json/));
  await assert.rejects(made({}), model(/tokenizer\.json does not exist.*--skip-tokenizer-init/));
  await assert.rejects(
    made({
      'tokenizer.json': sentencepiece(),
      'tokenizer_config.json': { chat_template: '{% if %}' },
    }),
    model(/chat template/),
  );
});

test('the chat template comes from chat_template.jinja, else a string or the list entry named default', async () => {
  const render = async (files: Record<string, unknown>): Promise<string> =>
    (await made({ 'tokenizer.json': sentencepiece(), ...files })).applyChatTemplate([
      { role: 'user', content: 'hi' },
    ]);
  const list = [
    { name: 'tool_use', template: 'tools' },
    { name: 'default', template: '{{ bos_token }}list {{ messages[0].content }}' },
  ];
  const config = { bos_token: { content: '<s>' }, chat_template: list };
  assert.equal(await render({ 'tokenizer_config.json': config }), '<s>list hi');
  assert.equal(
    await render({ 'tokenizer_config.json': { chat_template: '{{ messages | length }}' } }),
    '1',
  );
  assert.equal(
    await render({ 'tokenizer_config.json': config, 'chat_template.jinja': 'file' }),
    'file',
  );
  await assert.rejects(
    render({}),
    InvalidParameterError,
    'a chat is what asks for it: the request is wrong',
  );
});

test('messages that the template refuses and templates that do not parse are errors of the request', async () => {
  const tokenizer = await made({
    'tokenizer.json': sentencepiece(),
    'tokenizer_config.json': { chat_template: '{{ raise_exception("roles must alternate") }}' },
  });
  assert.throws(
    () => tokenizer.applyChatTemplate([{ role: 'user', content: 'hi' }]),
    (error) =>
      error instanceof InvalidParameterError &&
      error.param === 'messages' &&
      /roles must alternate/.test(error.message),
  );
  assert.throws(
    () => tokenizer.applyChatTemplate([], { template: '{% for %}' }),
    (error) => error instanceof InvalidParameterError && error.param === 'chat_template',
  );
});

test('variables of the caller reach the template', () => {
  const template = '{{ mood }}{% if add_generation_prompt %}!{% endif %}';
  const options = { template, mood: 'calm' };
  assert.equal(stories.applyChatTemplate([], options), 'calm!');
  assert.equal(stories.applyChatTemplate([], { ...options, addGenerationPrompt: false }), 'calm');
});
