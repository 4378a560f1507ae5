import assert from 'node:assert/strict';
import { test } from 'node:test';
import type OpenAI from 'openai';
import { byteTokenizer } from '../helpers/byte-tokenizer.js';
import { says, testServer } from '../helpers/test-server.js';

/** Fields of vLLM that the client's types don't know. */
type Choice = OpenAI.CompletionChoice & {
  token_ids?: number[];
  prompt_token_ids?: number[];
  stop_reason?: unknown;
  prompt_logprobs?: unknown;
};
type Completion = Omit<OpenAI.Completion, 'choices'> & { choices: Choice[] };

test('a prompt may be a string, strings, token ids or lists of token ids', async (t) => {
  const { client } = await testServer(t);
  const text = async (prompt: string | string[] | number[] | number[][]): Promise<string[]> =>
    (await client.completions.create({ model: 'fake', prompt, max_tokens: 4 })).choices.map(
      (c) => c.text,
    );
  assert.deepEqual(await text('ab'), ['abab']);
  assert.deepEqual(await text(['ab', 'xyz']), ['abab', 'xyzx']);
  assert.deepEqual(await text([0x61, 0x62, 0x63]), ['abca']);
  assert.deepEqual(await text([[0x61], [0x62, 0x63]]), ['aaaa', 'bcbc']);
});

test('max_tokens is 16 by default and the answer says why it ended and what it used', async (t) => {
  const { client } = await testServer(t);
  const answer = await client.completions.create({ model: 'alias', prompt: 'ab' });
  assert.match(answer.id, /^cmpl-/);
  assert.equal(answer.object, 'text_completion');
  assert.equal(answer.model, 'fake', 'answers carry the first name');
  assert.equal(answer.choices[0].text, 'abababababababab');
  assert.equal(answer.choices[0].finish_reason, 'length');
  assert.deepEqual(answer.usage, {
    prompt_tokens: 2,
    completion_tokens: 16,
    total_tokens: 18,
    prompt_tokens_details: { cached_tokens: 0 },
  });
});

test('the end-of-sequence token ends the answer with reason stop and is no part of its text', async (t) => {
  const { client } = await testServer(t, says('The end.'));
  const answer = (await client.completions.create({
    model: 'fake',
    prompt: 'x',
    max_tokens: 50,
  })) as Completion;
  assert.equal(answer.choices[0].text, 'The end.');
  assert.equal(answer.choices[0].finish_reason, 'stop');
  assert.equal(answer.choices[0].stop_reason, null);
  assert.equal(answer.usage?.completion_tokens, 9);
});

test('n choices of several prompts are numbered prompt by prompt', async (t) => {
  const { client } = await testServer(t, {
    script: ({ prompt }, index) => Buffer.from(`${String.fromCharCode(prompt[0])}${index}`),
  });
  const answer = await client.completions.create({
    model: 'fake',
    prompt: ['p', 'q'],
    n: 2,
    max_tokens: 9,
  });
  assert.deepEqual(
    answer.choices.map(({ index, text }) => [index, text]),
    [
      [0, 'p0'],
      [1, 'p1'],
      [2, 'q0'],
      [3, 'q1'],
    ],
  );
  assert.equal(answer.usage?.prompt_tokens, 2, 'a prompt counts once whatever n is');
});

test('a stop string ends one choice, the engine is told which, and the others go on', async (t) => {
  const { client, engine } = await testServer(t, {
    script: (_, index) => Buffer.from(index === 0 ? 'one STOP never seen' : 'two goes on'),
  });
  const answer = (await client.completions.create({
    model: 'fake',
    prompt: 'x',
    n: 2,
    max_tokens: 50,
    stop: ['STOP', 'unused'],
  })) as Completion;
  assert.deepEqual(
    answer.choices.map((c) => [c.text, c.finish_reason, c.stop_reason]),
    [
      ['one ', 'stop', 'STOP'],
      ['two goes on', 'stop', null],
    ],
  );
  assert.deepEqual(
    engine.aborts.map(([, index]) => index),
    [0],
  );
  assert.equal(answer.usage?.completion_tokens, 'one STOP'.length + 'two goes on'.length + 1);
});

test('stop_token_ids end the answer, include_stop_str_in_output keeps what ended it', async (t) => {
  const { post } = await testServer(t, says('abcXdef'));
  const run = async (extra: object): Promise<unknown[]> => {
    const answer = (await (
      await post('/v1/completions', { prompt: 'p', max_tokens: 20, ...extra })
    ).json()) as Completion;
    return [answer.choices[0].text, answer.choices[0].stop_reason];
  };
  const X = 'X'.charCodeAt(0);
  assert.deepEqual(await run({ stop_token_ids: [X] }), ['abc', X]);
  assert.deepEqual(await run({ stop_token_ids: [X], include_stop_str_in_output: true }), [
    'abcX',
    X,
  ]);
  assert.deepEqual(await run({ stop: 'Xd', include_stop_str_in_output: true }), ['abcXd', 'Xd']);
  assert.deepEqual(await run({ stop: 'b', min_tokens: 2 }), ['abcXdef', null]);
  assert.deepEqual(await run({ skip_special_tokens: false, ignore_eos: true, max_tokens: 8 }), [
    'abcXdef<end>',
    null,
  ]);
});

test('logprobs come in the shape of the API, the sampled token always among the top ones', async (t) => {
  const { client } = await testServer(t, says('hi'));
  const answer = await client.completions.create({
    model: 'fake',
    prompt: 'x',
    max_tokens: 2,
    logprobs: 2,
  });
  assert.deepEqual(answer.choices[0].logprobs, {
    text_offset: [0, 1],
    token_logprobs: [-1.04, -1.05],
    tokens: ['h', 'i'],
    top_logprobs: [
      { h: -1.04, g: -1.03 },
      { i: -1.05, h: -1.04 },
    ],
  });
});

test('text offsets count what is shown: tokens that encoding adds to an echoed prompt take no place', async (t) => {
  const bytes = byteTokenizer();
  const tokenizer = { ...bytes, encode: (text: string) => [256, ...bytes.encode(text)] };
  const { client } = await testServer(t, says('cd'), { tokenizer });
  const body = { model: 'fake', prompt: 'ab', echo: true, logprobs: 0, max_tokens: 2 };
  const whole = await client.completions.create(body);
  assert.equal(whole.choices[0].text, 'abcd');
  assert.deepEqual(whole.choices[0].logprobs?.text_offset, [0, 0, 1, 2, 3]);
  const offsets: number[] = [];
  for await (const { choices } of await client.completions.create({ ...body, stream: true })) {
    offsets.push(...(choices[0].logprobs?.text_offset ?? []));
  }
  assert.deepEqual(offsets, [0, 0, 1, 2, 3]);
});

test('echo begins the text with the prompt; with logprobs and max_tokens 0 it scores the prompt', async (t) => {
  const { client, engine } = await testServer(t);
  const echo = await client.completions.create({
    model: 'fake',
    prompt: 'ab',
    echo: true,
    max_tokens: 3,
  });
  assert.equal(echo.choices[0].text, 'ababa');
  const score = await client.completions.create({
    model: 'fake',
    prompt: 'ab',
    echo: true,
    logprobs: 0,
    max_tokens: 0,
  });
  assert.equal(score.choices[0].text, 'ab');
  assert.deepEqual(score.choices[0].logprobs?.token_logprobs, [null, -0.98]);
  assert.deepEqual(score.choices[0].logprobs?.tokens, ['a', 'b']);
  assert.equal(score.usage?.completion_tokens, 0);
  assert.equal(engine.requests.at(-1)?.params.promptLogprobs, 0);
});

test('return_token_ids, prompt_logprobs and return_tokens_as_token_ids answer as in vLLM', async (t) => {
  const { post } = await testServer(t, says('hi'));
  const answer = (await (
    await post('/v1/completions', {
      prompt: 'ab',
      max_tokens: 9,
      return_token_ids: true,
      prompt_logprobs: 1,
      logprobs: 0,
      return_tokens_as_token_ids: true,
    })
  ).json()) as Completion;
  const [choice] = answer.choices;
  assert.deepEqual(choice.token_ids, [0x68, 0x69, 256], 'the stop token is among the ids');
  assert.deepEqual(choice.prompt_token_ids, [0x61, 0x62]);
  assert.deepEqual(choice.logprobs?.tokens, ['token_id:104', 'token_id:105', 'token_id:256']);
  assert.deepEqual(choice.prompt_logprobs, [
    null,
    {
      97: { logprob: -0.97, rank: 1, decoded_token: 'a' },
      98: { logprob: -0.98, rank: 2, decoded_token: 'b' },
    },
  ]);
});

test('every sampling field reaches the engine under its name, and the checkpoint gives the defaults', async (t) => {
  const { post, engine } = await testServer(
    t,
    {},
    { generationDefaults: { temperature: 0.8, topP: 0.95, topK: 7 } },
  );
  const send = async (extra: object) => {
    const response = await post('/v1/completions', { prompt: 'abcdef', max_tokens: 3, ...extra });
    assert.equal(response.status, 200, await response.text());
    return engine.requests.at(-1);
  };
  const plain = (await send({}))?.params;
  assert.deepEqual([plain?.temperature, plain?.topP, plain?.topK], [0.8, 0.95, 7]);
  const request = await send({
    temperature: 0,
    top_p: 0.5,
    top_k: -1,
    min_p: 0.1,
    repetition_penalty: 1.1,
    presence_penalty: 0.2,
    frequency_penalty: -0.3,
    logit_bias: { 5: -100 },
    seed: 42,
    min_tokens: 1,
    ignore_eos: true,
    stop_token_ids: [9],
    priority: 3,
    cache_salt: 'pepper',
    truncate_prompt_tokens: 2,
    user: 'ignored',
    n: null,
  });
  assert.ok(request);
  const { params } = request;
  assert.deepEqual(
    { ...params, logitBias: [...params.logitBias] },
    {
      n: 1,
      temperature: 0,
      topP: 0.5,
      topK: 0,
      minP: 0.1,
      repetitionPenalty: 1.1,
      presencePenalty: 0.2,
      frequencyPenalty: -0.3,
      logitBias: [[5, -100]],
      seed: 42,
      stop: [],
      stopTokenIds: [9],
      includeStopStrInOutput: false,
      minTokens: 1,
      maxTokens: 3,
      ignoreEos: true,
      skipSpecialTokens: true,
      logprobs: undefined,
      promptLogprobs: undefined,
    },
  );
  assert.equal(request.priority, 3);
  assert.equal(request.cacheSalt, 'pepper');
  assert.deepEqual(Array.from(request.prompt), [0x65, 0x66]);
});

test('without a tokenizer token ids go in and out, and text gets a clear 400', async (t) => {
  const { post } = await testServer(t, says('hi'), { tokenizer: undefined });
  const answer = (await (
    await post('/v1/completions', { prompt: [1, 2], max_tokens: 9, logprobs: 0 })
  ).json()) as Completion;
  assert.equal(answer.choices[0].text, '');
  assert.deepEqual(answer.choices[0].token_ids, [0x68, 0x69, 256]);
  assert.deepEqual(answer.choices[0].logprobs?.tokens, [
    'token_id:104',
    'token_id:105',
    'token_id:256',
  ]);
  for (const [path, body, param] of [
    ['/v1/completions', { prompt: 'text' }, 'prompt'],
    ['/v1/completions', { prompt: [1], stop: 'x' }, 'stop'],
    ['/v1/chat/completions', { messages: [{ role: 'user', content: 'hi' }] }, 'messages'],
    ['/tokenize', { prompt: 'text' }, 'prompt'],
    ['/detokenize', { tokens: [1] }, 'tokens'],
  ] as const) {
    const response = await post(path, body);
    const { error } = (await response.json()) as { error: { message: string; param: string } };
    assert.equal(response.status, 400);
    assert.equal(error.param, param);
    assert.match(error.message, /tokenizer/);
  }
});
