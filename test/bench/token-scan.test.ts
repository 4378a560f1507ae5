import assert from 'node:assert/strict';
import { test } from 'node:test';
import { SseParser } from '../../src/bench/sse-parser.js';
import { scanChunk } from '../../src/bench/token-scan.js';

const completion = (choice: object, rest: object = {}) =>
  JSON.stringify({ id: 'x', choices: [{ index: 0, ...choice }], ...rest });

test('A chunk with text is one token, on either route', () => {
  const text = completion({ text: ' a', logprobs: null, finish_reason: null });
  const chat = completion({ delta: { content: 'a' }, finish_reason: null }, { usage: null });
  assert.equal(scanChunk(text).tokens, 1);
  assert.equal(scanChunk(chat).tokens, 1);
});

test('Reasoning is output too', () => {
  const chunk = completion({ delta: { reasoning_content: 'so' }, finish_reason: null });
  assert.equal(scanChunk(chunk).tokens, 1);
});

test('The role’s chunk, an empty text and a bare finish are no tokens', () => {
  const role = completion({ delta: { role: 'assistant', content: '' }, finish_reason: null });
  const empty = completion({ text: '', finish_reason: null });
  const finish = completion({ text: '', finish_reason: 'stop' });
  assert.equal(scanChunk(role).tokens, 0);
  assert.equal(scanChunk(empty).tokens, 0);
  assert.deepEqual(scanChunk(finish), { tokens: 0, finishReason: 'stop' });
});

test('Text that quotes the words looked for is not mistaken for them', () => {
  const quoting = completion({
    text: '"finish_reason":null,"usage":{"text":"',
    finish_reason: 'stop',
  });
  assert.deepEqual(scanChunk(quoting), { tokens: 1, finishReason: 'stop' });
  const inside = completion({ text: '"error": "usage":{ "token_ids":[', finish_reason: null });
  assert.equal(scanChunk(inside).tokens, 1);
  assert.equal(scanChunk(inside).error, undefined);
});

test('Ids give the number of tokens, and usage and errors are read', () => {
  const ids = completion({ text: 'abc', token_ids: [5, 6, 7], finish_reason: null });
  assert.deepEqual(scanChunk(ids), { tokens: 3, tokenIds: [5, 6, 7] });
  const usage = JSON.stringify({
    choices: [],
    usage: {
      prompt_tokens: 3,
      completion_tokens: 4,
      prompt_tokens_details: { cached_tokens: 2 },
    },
  });
  assert.deepEqual(scanChunk(usage).usage, { promptTokens: 3, outputTokens: 4, cachedTokens: 2 });
  assert.equal(scanChunk('{"error":{"message":"no"}}').error, 'no');
  assert.equal(scanChunk('{"error":"no"}').error, 'no');
});

test('A message in UTF-8 survives the way through latin1', () => {
  const bytes = Buffer.from('{"error":{"message":"für €"}}', 'utf8').toString('latin1');
  assert.equal(scanChunk(bytes).error, 'für €');
});

test('What is no JSON throws', () => {
  assert.throws(() => scanChunk('{"choices":'), SyntaxError);
});

test('An event stream gives the same events however it is cut', () => {
  const stream =
    ': ping\n\ndata: one\n\nevent: x\r\ndata: two\r\ndata:three\r\n\r\nid: 4\n\ndata: four\n\n';
  for (let first = 0; first <= stream.length; first++) {
    for (let second = first; second <= stream.length; second++) {
      const events: string[] = [];
      const parser = new SseParser((data) => events.push(data));
      for (const piece of [
        stream.slice(0, first),
        stream.slice(first, second),
        stream.slice(second),
      ]) {
        parser.push(piece);
      }
      assert.deepEqual(events, ['one', 'two\nthree', 'four']);
    }
  }
});
