import assert from 'node:assert/strict';
import { test } from 'node:test';
import { says, testServer } from '../helpers/test-server.js';

test('a chat is rendered with the template and answered as the assistant', async (t) => {
  const { client, engine } = await testServer(t, says('Hello!'));
  const answer = await client.chat.completions.create({
    model: 'fake',
    messages: [
      { role: 'system', content: 'Be brief.' },
      {
        role: 'user',
        content: [
          { type: 'text', text: 'Hi' },
          { type: 'text', text: 'there' },
        ],
      },
    ],
  });
  assert.match(answer.id, /^chatcmpl-/);
  assert.equal(answer.object, 'chat.completion');
  assert.deepEqual(answer.choices[0].message, {
    role: 'assistant',
    content: 'Hello!',
    refusal: null,
  });
  assert.equal(answer.choices[0].finish_reason, 'stop');
  const prompt = Buffer.from(engine.requests[0].prompt as number[]).toString();
  assert.equal(prompt, 'system: Be brief.\nuser: Hi\nthere\nassistant:');
  assert.equal(answer.usage?.prompt_tokens_details?.cached_tokens, 32);
});

test('an answer may be as long as the context allows unless max_tokens or max_completion_tokens says less', async (t) => {
  const { client, engine } = await testServer(t, { info: { maxModelLen: 64 } });
  const messages = [{ role: 'user' as const, content: 'Hi' }];
  const promptTokens = 'user: Hi\nassistant:'.length;
  await client.chat.completions.create({ model: 'fake', messages });
  await client.chat.completions.create({ model: 'fake', messages, max_tokens: 5 });
  await client.chat.completions.create({
    model: 'fake',
    messages,
    max_completion_tokens: 6,
    max_tokens: 5,
  });
  assert.deepEqual(
    engine.requests.map((r) => r.params.maxTokens),
    [64 - promptTokens, 5, 6],
  );
});

test('logprobs tell each token, its bytes and the likeliest ones', async (t) => {
  const { client } = await testServer(t, says('h'));
  const answer = await client.chat.completions.create({
    model: 'fake',
    messages: [{ role: 'user', content: 'Hi' }],
    max_tokens: 1,
    logprobs: true,
    top_logprobs: 2,
  });
  assert.deepEqual(answer.choices[0].logprobs, {
    content: [
      {
        token: 'h',
        logprob: -1.04,
        bytes: [104],
        top_logprobs: [
          { token: 'g', logprob: -1.03, bytes: [103] },
          { token: 'h', logprob: -1.04, bytes: [104] },
        ],
      },
    ],
    refusal: null,
  });
});

test('add_generation_prompt, chat_template and chat_template_kwargs reach the template', async (t) => {
  const seen: unknown[] = [];
  const { byteTokenizer } = await import('../helpers/byte-tokenizer.js');
  const tokenizer = { ...byteTokenizer() };
  tokenizer.applyChatTemplate = (_messages, options) => {
    seen.push(options);
    return 'rendered';
  };
  const { post } = await testServer(t, says('x'), { tokenizer, trustRequestChatTemplate: true });
  const messages = [{ role: 'user', content: 'Hi' }];
  const response = await post('/v1/chat/completions', {
    messages,
    add_generation_prompt: false,
    chat_template: 'T',
    chat_template_kwargs: { mood: 'calm' },
  });
  assert.equal(response.status, 200);
  assert.deepEqual(seen, [{ mood: 'calm', addGenerationPrompt: false, template: 'T' }]);
});

test('a chat template in a request is refused unless the server trusts its clients', async (t) => {
  const { post } = await testServer(t);
  const response = await post('/v1/chat/completions', {
    messages: [{ role: 'user', content: 'Hi' }],
    chat_template: '{% for i in range(999999999) %}{% endfor %}',
  });
  assert.equal(response.status, 400);
  const { error } = (await response.json()) as { error: { param: string; message: string } };
  assert.equal(error.param, 'chat_template');
  assert.match(error.message, /--trust-request-chat-template/);
});

test('what is known and not supported is refused by name, what asks for nothing is not', async (t) => {
  const { post } = await testServer(t, says('x'));
  const base = { messages: [{ role: 'user', content: 'Hi' }] };
  const refused: Record<string, unknown> = {
    tools: [{ type: 'function', function: { name: 'f' } }],
    tool_choice: 'required',
    functions: [{ name: 'f' }],
    function_call: { name: 'f' },
    response_format: { type: 'json_object' },
    modalities: ['text', 'audio'],
    audio: { voice: 'alloy' },
    prediction: { type: 'content' },
    guided_regex: 'a+',
    use_beam_search: true,
    best_of: 3,
    reasoning_effort: 'high',
    store: true,
    continue_final_message: true,
    echo: true,
    logits_processors: ['x'],
  };
  for (const [key, value] of Object.entries(refused)) {
    const response = await post('/v1/chat/completions', { ...base, [key]: value });
    const { error } = (await response.json()) as { error: { param: string; message: string } };
    assert.equal(response.status, 400, key);
    assert.equal(error.param, key);
    assert.match(error.message, /not supported/);
  }
  const harmless = {
    tools: [],
    tool_choice: 'none',
    response_format: { type: 'text' },
    modalities: ['text'],
    best_of: 1,
    use_beam_search: false,
    store: false,
    user: 'someone',
    unheard_of: { x: 1 },
    parallel_tool_calls: true,
    length_penalty: 1,
    metadata: { a: 'b' },
    service_tier: 'auto',
  };
  assert.equal((await post('/v1/chat/completions', { ...base, ...harmless })).status, 200);
});

test('messages are checked one by one and the fault is named', async (t) => {
  const { post } = await testServer(t);
  const cases: [unknown, string][] = [
    [undefined, 'messages'],
    [[], 'messages'],
    ['Hi', 'messages'],
    [[7], 'messages[0]'],
    [[{ content: 'Hi' }], 'messages[0].role'],
    [[{ role: 'user', content: 7 }], 'messages[0].content'],
    [
      [{ role: 'user', content: [{ type: 'image_url', image_url: {} }] }],
      'messages[0].content[0].type',
    ],
    [[{ role: 'user', content: [{ type: 'text' }] }], 'messages[0].content[0].text'],
    [
      [
        { role: 'user', content: 'a' },
        { role: 'assistant', tool_calls: [{}] },
      ],
      'messages[1].tool_calls',
    ],
    [[{ role: 'tool', content: 'a' }], 'messages[0].role'],
  ];
  for (const [messages, param] of cases) {
    const response = await post('/v1/chat/completions', { messages });
    const { error } = (await response.json()) as { error: { param: string } };
    assert.equal(response.status, 400);
    assert.equal(error.param, param);
  }
});
