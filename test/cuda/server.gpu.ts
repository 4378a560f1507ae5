import assert from 'node:assert/strict';
import { after, test } from 'node:test';
import OpenAI from 'openai';
import { startServerProcess } from '../../src/cli/server-process.js';
import { STORIES, storiesGolden } from '../helpers/goldens.js';
import { TEST_DEVICE } from '../helpers/gpu.js';

const server = await startServerProcess([
  ...[STORIES, '--device', TEST_DEVICE, '--dtype', 'float32', '--port', '0'],
  ...['--served-model-name', 'stories', '--kv-cache-memory', '64MiB'],
]);
after(() => server.stop());

const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: 'none', maxRetries: 0 });
const [first, ...others] = storiesGolden().greedy;

async function streamed(prompt: readonly number[], options: object = {}) {
  const stream = await client.completions.create({
    ...{ model: 'stories', prompt: [...prompt], max_tokens: 64, temperature: 0, stream: true },
    ...({ ignore_eos: true, ...options } as object),
  } as OpenAI.CompletionCreateParamsStreaming);
  let text = '';
  let pieces = 0;
  let reason: string | null = null;
  for await (const { choices } of stream) {
    text += choices[0].text;
    pieces++;
    reason = choices[0].finish_reason ?? reason;
  }
  return { text, pieces, reason };
}

test('The server on the GPU streams the text that transformers writes, to all clients at once', async () => {
  const all = await Promise.all([first, ...others].map(({ prompt }) => streamed(prompt)));
  [first, ...others].forEach(({ text }, n) => {
    assert.equal(all[n].text.trim(), text.trim());
    assert.equal(all[n].reason, 'length');
    assert.ok(all[n].pieces > 10);
  });
});

test('A stop string ends a streamed answer before it, and the server goes on', async () => {
  const text = first.text.trim();
  const stop = text.split(' ').slice(4, 6).join(' ');
  const stopped = await streamed(first.prompt, { stop: [stop] });
  assert.equal(stopped.reason, 'stop');
  assert.equal(stopped.text.trim(), text.slice(0, text.indexOf(stop)).trim());
  assert.equal((await streamed(first.prompt)).text.trim(), text);
});

test('A seeded chat gives the same answer twice, and clients that leave disturb nobody', async () => {
  const chat = async () => {
    const { choices } = await client.chat.completions.create({
      ...{ model: 'stories', seed: 7, temperature: 0.9, max_tokens: 60 },
      messages: [{ role: 'user', content: 'Tell a story about a dragon.' }],
    });
    return choices[0].message.content;
  };
  const answer = await chat();
  assert.ok(answer && answer.length > 0);
  const leavers = Array.from({ length: 16 }, async () => {
    const body = { model: 'stories', prompt: 'Once', max_tokens: 200, stream: true } as const;
    const stream = await client.completions.create(body);
    for await (const _ of stream) break;
  });
  const [again] = await Promise.all([chat(), ...leavers]);
  assert.equal(again, answer);
});
