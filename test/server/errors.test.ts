import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { test } from 'node:test';
import OpenAI from 'openai';
import type { ErrorBody } from '../../src/server/http-errors.js';
import { byteTokenizer } from '../helpers/byte-tokenizer.js';
import { randomSource as random } from '../helpers/random.js';
import { says, testServer, until } from '../helpers/test-server.js';

async function errorOf(response: Response): Promise<ErrorBody['error'] & { status: number }> {
  const { error } = (await response.json()) as ErrorBody;
  return { ...error, status: response.status };
}

test('every wrong parameter is a 400 that names it and says what was expected and what came', async (t) => {
  const { post } = await testServer(t);
  const wrong: [string, unknown, RegExp?][] = [
    ['prompt', undefined],
    ['prompt', ''],
    ['prompt', []],
    ['prompt', [[]]],
    ['prompt', {}],
    ['prompt', [1, 'a']],
    ['prompt', [257]],
    ['prompt', [-1]],
    ['prompt', [1.5]],
    ['prompt', 'half an emoji: \ud83d'],
    ['prompt', Array(1025).fill('a')],
    ['max_tokens', 0],
    ['max_tokens', -1],
    ['max_tokens', 1.5],
    ['max_tokens', 'many'],
    ['max_tokens', 1e300],
    ['temperature', -1],
    ['temperature', 'hot'],
    ['temperature', 1e300],
    ['top_p', 0],
    ['top_p', 1.1],
    ['top_k', -2],
    ['top_k', 0.5],
    ['min_p', 2],
    ['n', 0],
    ['n', 1e9],
    ['n', 'x'],
    ['repetition_penalty', 0],
    ['presence_penalty', 3],
    ['frequency_penalty', -3],
    ['seed', 1.5],
    ['seed', 'x'],
    ['logit_bias', { x: 1 }],
    ['logit_bias', { 257: 1 }],
    ['logit_bias', [1]],
    ['stop', ''],
    ['stop', [1]],
    ['stop', ['\ud83d']],
    ['stop', Array(65).fill('a')],
    ['stop', 'a'.repeat(2000)],
    ['stop_token_ids', [999]],
    ['stop_token_ids', 'x'],
    ['min_tokens', -1],
    ['min_tokens', 99],
    ['logprobs', 21],
    ['logprobs', true],
    ['prompt_logprobs', -1],
    ['echo', 'yes'],
    ['stream', 1],
    ['ignore_eos', 'x'],
    ['suffix', 'x'],
    ['best_of', 2],
    ['priority', 'high'],
    ['cache_salt', ''],
    ['cache_salt', 7],
    ['truncate_prompt_tokens', 0],
    ['stream_options', { include_usage: true }],
    ['model', 7],
    ['response_format', { type: 'json_object' }],
    ['skip_special_tokens', 'no'],
    ['add_special_tokens', 3],
    ['return_token_ids', 'x'],
  ];
  for (const [param, value] of wrong) {
    const error = await errorOf(
      await post('/v1/completions', { prompt: 'ab', max_tokens: 16, [param]: value }),
    );
    const what = `${param}: ${JSON.stringify(value)}: ${error.message}`;
    assert.equal(error.status, 400, what);
    assert.equal(error.param, param, what);
    assert.equal(error.type, 'invalid_request_error', what);
    assert.ok(error.message.length > 15 && error.message.length < 400, what);
  }
  const many = { prompt: ['a', 'b', 'c'], n: 342 };
  assert.equal((await errorOf(await post('/v1/completions', many))).param, 'prompt');
  const bias = await errorOf(
    await post('/v1/completions', { prompt: 'ab', logit_bias: { 5: 101 } }),
  );
  assert.equal(bias.param, 'logit_bias.5');
  const usage = await errorOf(
    await post('/v1/completions', {
      prompt: 'ab',
      stream: true,
      stream_options: { include_usage: 'yes' },
    }),
  );
  assert.equal(usage.param, 'stream_options.include_usage');
  const top = await errorOf(
    await post('/v1/chat/completions', {
      messages: [{ role: 'user', content: 'a' }],
      top_logprobs: 3,
    }),
  );
  assert.equal(top.param, 'top_logprobs');
});

test('a request that cannot fit the context is a 400 with its own code, before a long text is tokenized', async (t) => {
  let encoded = 0;
  const tokenizer = byteTokenizer();
  const counting = {
    ...tokenizer,
    encode(text: string) {
      encoded++;
      return tokenizer.encode(text);
    },
  };
  const { post } = await testServer(t, { info: { maxModelLen: 32 } }, { tokenizer: counting });
  for (const [body, param] of [
    [{ prompt: 'a'.repeat(32) }, 'prompt'],
    [{ prompt: 'a'.repeat(20), max_tokens: 13 }, 'max_tokens'],
  ] as const) {
    const error = await errorOf(await post('/v1/completions', body));
    assert.deepEqual(
      [error.status, error.code, error.param],
      [400, 'context_length_exceeded', param],
    );
  }
  assert.equal(encoded, 2);
  const long = await errorOf(await post('/v1/completions', { prompt: 'a'.repeat(100_000) }));
  assert.equal(long.code, 'context_length_exceeded');
  assert.equal(encoded, 2);
  assert.equal(
    (await post('/v1/completions', { prompt: 'a'.repeat(20) })).status,
    200,
    'the default shrinks to fit',
  );
});

test('the client sees its own classes for 400, 401, 404, 429, 500 and 503', async (t) => {
  const { client, url, engine } = await testServer(
    t,
    { maxQueued: 0, failure: () => ({ at: 0, message: 'NaN logits' }) },
    { apiKeys: ['key'] },
  );
  const create = (model = 'fake', c = client) => c.completions.create({ model, prompt: 'ab' });
  await assert.rejects(
    client.completions.create({ model: 'fake', prompt: [] as number[] }),
    OpenAI.BadRequestError,
  );
  const stranger = new OpenAI({ baseURL: `${url}/v1`, apiKey: 'wrong', maxRetries: 0 });
  await assert.rejects(create('fake', stranger), OpenAI.AuthenticationError);
  await assert.rejects(
    create('other'),
    (e) => e instanceof OpenAI.NotFoundError && e.param === 'model',
  );
  await assert.rejects(create(), (e) => {
    return (
      e instanceof OpenAI.RateLimitError &&
      e.headers.get('retry-after') === '7' &&
      e.code === 'queue_full'
    );
  });
  await engine.close();
  await assert.rejects(
    create(),
    (e) => e instanceof OpenAI.InternalServerError && e.status === 503,
  );
});

test('a failure in the engine is a 500 of that request alone', async (t) => {
  const { client } = await testServer(t, {
    failure: ({ prompt }) =>
      prompt[0] === 0x78 ? { at: 3, message: 'The logits are not finite' } : undefined,
  });
  const [bad, good] = await Promise.allSettled(
    ['x', 'a'].map((prompt) => client.completions.create({ model: 'fake', prompt, max_tokens: 5 })),
  );
  assert.equal(bad.status, 'rejected');
  assert.ok(bad.status === 'rejected' && bad.reason instanceof OpenAI.InternalServerError);
  assert.match(
    String(bad.status === 'rejected' && bad.reason.message),
    /The logits are not finite/,
  );
  assert.equal(good.status, 'fulfilled');
});

test('when the queue is full for one of several prompts, none of them is left in the engine', async (t) => {
  const { post, engine } = await testServer(t, { maxQueued: 2 });
  engine.paused = true;
  const response = await post('/v1/completions', { prompt: ['a', 'b', 'c'] });
  assert.equal(response.status, 429);
  assert.equal(response.headers.get('retry-after'), '7');
  assert.equal(engine.aborts.length, 2);
  assert.equal(engine.stats().waiting, 0);
});

test('unknown paths are 404, wrong methods 405 with Allow, wrong types 415, large bodies 413', async (t) => {
  const { post, url } = await testServer(t, {}, { maxBodySize: 1000 });
  const unknown = await errorOf(await post('/v1/nothing', {}));
  assert.deepEqual([unknown.status, unknown.code], [404, 'not_found']);
  assert.equal((await errorOf(await fetch(`${url}/__proto__`))).status, 404);
  const method = await fetch(`${url}/v1/completions`);
  assert.equal(method.headers.get('allow'), 'POST');
  assert.equal((await errorOf(method)).status, 405);
  const form = await post('/v1/completions', 'a=b', {
    'content-type': 'application/x-www-form-urlencoded',
  });
  assert.equal((await errorOf(form)).status, 415);
  const large = await errorOf(await post('/v1/completions', { prompt: 'a'.repeat(2000) }));
  assert.deepEqual([large.status, large.code], [413, 'payload_too_large']);
  const chunked = await fetch(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: new Blob(['{"prompt":"', 'a'.repeat(5000), '"}']).stream(),
    duplex: 'half',
  } as RequestInit);
  assert.equal((await errorOf(chunked)).status, 413);
});

test('a body that is no JSON object is a 400', async (t) => {
  const { post } = await testServer(t);
  for (const body of ['', '{', 'null', '[]', '"a"', '7', '{"prompt": "a"', '\u0000']) {
    const error = await errorOf(await post('/v1/completions', body));
    assert.equal(error.status, 400, body);
    assert.match(error.message, /JSON/);
  }
});

test('bodies of random JSON never end in a 500 and never hang', async (t) => {
  const { post, engine } = await testServer(t, says('ok'), { trustRequestChatTemplate: true });
  const next = random(7);
  const pick = <T>(list: readonly T[]): T => list[Math.floor(next() * list.length)];
  const scalars = [
    null,
    true,
    false,
    0,
    -1,
    1,
    2,
    0.5,
    1e308,
    -1e308,
    2 ** 53,
    '',
    'a',
    'text',
    '\ud800',
    '{{ x }}',
    'a'.repeat(300),
  ];
  const junk = (depth: number): unknown => {
    const kind = next();
    if (depth === 0 || kind < 0.6) return pick(scalars);
    const size = Math.floor(next() * 4);
    if (kind < 0.8) return Array.from({ length: size }, () => junk(depth - 1));
    return Object.fromEntries(
      Array.from({ length: size }, () => [
        pick(['role', 'content', 'type', 'text', '__proto__', '5', 'x']),
        junk(depth - 1),
      ]),
    );
  };
  const keys = [
    'model',
    'prompt',
    'messages',
    'max_tokens',
    'max_completion_tokens',
    'temperature',
    'top_p',
    'top_k',
    'min_p',
    'n',
    'best_of',
    'stop',
    'stop_token_ids',
    'logprobs',
    'top_logprobs',
    'echo',
    'stream',
    'stream_options',
    'seed',
    'logit_bias',
    'response_format',
    'tools',
    'tool_choice',
    'priority',
    'cache_salt',
    'chat_template',
    'chat_template_kwargs',
    'truncate_prompt_tokens',
    'prompt_logprobs',
    'suffix',
    'min_tokens',
    'tokens',
    'repetition_penalty',
    'return_token_ids',
    'add_generation_prompt',
    'modalities',
    'functions',
  ];
  const paths = ['/v1/completions', '/v1/chat/completions', '/tokenize', '/detokenize'];
  const counts: Record<number, number> = {};
  for (let round = 0; round < 1500; round++) {
    const body: Record<string, unknown> = { max_tokens: 2 };
    // A valid base every other time, so that more than the first check is reached.
    if (round % 2)
      Object.assign(body, { prompt: 'a', messages: [{ role: 'user', content: 'a' }], tokens: [1] });
    for (let i = Math.floor(next() * 3); i >= 0; i--) body[pick(keys)] = junk(3);
    const response = await post(pick(paths), body);
    const text = await response.text();
    counts[response.status] = (counts[response.status] ?? 0) + 1;
    assert.ok(
      [200, 400, 404].includes(response.status),
      `${response.status}: ${JSON.stringify(body)}: ${text}`,
    );
    if (response.status !== 200) assert.ok((JSON.parse(text) as ErrorBody).error.message);
  }
  assert.ok(counts[200] > 100 && counts[400] > 100, JSON.stringify(counts));
  await engine.idle();
});

test('malformed HTTP and bodies that never end disturb nobody', async (t) => {
  const { client, url } = await testServer(t, says('ok'));
  const port = Number(new URL(url).port);
  const sockets = [
    'GARBAGE\r\n\r\n',
    'POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{"a',
    '',
  ].map((text) => {
    const socket = connect(port, '127.0.0.1', () => socket.write(text));
    socket.on('error', () => {});
    socket.resume();
    return socket;
  });
  await until(() => sockets[0].destroyed || sockets[0].readableEnded, 'end of the garbage');
  const answer = await client.completions.create({ model: 'fake', prompt: 'x' });
  assert.equal(answer.choices[0].text, 'ok');
  for (const socket of sockets) socket.destroy();
});

test('values nested too deep to be shown are refused like any other', async (t) => {
  const { post } = await testServer(t);
  const deep = `${'['.repeat(200_000)}${']'.repeat(200_000)}`;
  const response = await post('/v1/completions', `{"prompt": "a", "temperature": ${deep}}`);
  const error = await errorOf(response);
  assert.equal(error.status, 400);
  assert.match(error.message, /Expected number for temperature but received something nested/);
});

test('a body that is not UTF-8 is refused, a byte order mark before it is not', async (t) => {
  const { url } = await testServer(t, says('ok'));
  const send = async (...parts: (string | number[])[]) => {
    const body = Buffer.concat(parts.map((part) => Buffer.from(part as string)));
    return fetch(`${url}/v1/completions`, { method: 'POST', body });
  };
  const error = await errorOf(await send('{"prompt": "a', [0xff], '"}'));
  assert.equal(error.status, 400);
  assert.match(error.message, /not valid UTF-8/);
  assert.equal((await send([0xef, 0xbb, 0xbf], '{"prompt": "a"}')).status, 200);
});

test('an unknown model is a 404 that tells which there are', async (t) => {
  const { post } = await testServer(t);
  const error = await errorOf(await post('/v1/completions', { model: 'gpt-5', prompt: 'a' }));
  assert.equal(error.status, 404);
  assert.match(error.message, /`gpt-5` does not exist; this server has `fake`, `alias`/);
});
