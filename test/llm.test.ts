import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { LLM, type Progress } from '../src/index.js';
import { STORIES, storiesGolden } from './helpers/goldens.js';
import { root } from './helpers/root.js';

let llm: LLM;

before(async () => {
  llm = await LLM.load(STORIES, { dtype: 'float32', kvCacheMemory: 64 * 2 ** 20 });
});
after(() => llm.close());

const GREEDY = { temperature: 0, maxTokens: 24 };

test('Many prompts are answered in their order, with progress', async () => {
  const { greedy, texts } = storiesGolden();
  const prompts = [texts[0].text, ...greedy.map(({ prompt }) => prompt)];
  const reports: Progress[] = [];
  const answers = await llm.generate(prompts, GREEDY, { onProgress: (one) => reports.push(one) });
  assert.equal(answers.length, prompts.length);
  assert.deepEqual(answers[0].promptTokenIds, texts[0].ids);
  greedy.forEach(({ tokens }, i) => {
    assert.deepEqual(answers[i + 1].choices[0].tokenIds.slice(0, 5), tokens.slice(0, 5));
  });
  assert.equal(reports.length, prompts.length);
  assert.deepEqual([reports.at(-1)?.done, reports.at(-1)?.total], [prompts.length, prompts.length]);
});

test('A stream gives the same text as generate, piece by piece, and ends with a reason', async () => {
  const [{ text }] = await llm.generate('Once upon a time', GREEDY);
  let streamed = '';
  let reason: string | undefined;
  for await (const part of llm.stream('Once upon a time', GREEDY)) {
    assert.equal(reason, undefined);
    streamed += part.text;
    reason = part.finishReason;
  }
  assert.equal(streamed, text);
  assert.equal(reason, 'length');
});

test('Leaving a stream early gives the answer up', async () => {
  for await (const part of llm.stream('Once upon a time', { maxTokens: 2000, ignoreEos: true })) {
    if (part.text !== '') break;
  }
  await llm.engine.idle();
  assert.ok(llm.engine.stats().freeBlocks === llm.info.numBlocks);
});

test('A stop string ends one choice and is left out of the text', async () => {
  const [full] = await llm.generate('Once upon a time', GREEDY);
  const stop = full.text.split(' ')[6];
  const [answer] = await llm.generate('Once upon a time', { ...GREEDY, stop: [stop] });
  assert.equal(answer.text, full.text.slice(0, full.text.indexOf(stop)));
  assert.equal(answer.choices[0].finishReason, 'stop');
  assert.equal(answer.choices[0].stopReason, stop);
});

test('A chat goes through the template and counts its tokens as transformers does', async () => {
  const [chat] = storiesGolden().chats;
  const answer = await llm.chat(chat.messages, { ...GREEDY, logprobs: 2 });
  assert.deepEqual(answer.promptTokenIds, chat.ids);
  assert.equal(answer.choices[0].logprobs?.length, answer.choices[0].tokenIds.length);
});

test('A signal gives all prompts up, and a wrong parameter rejects', async () => {
  const given = AbortSignal.abort();
  const long = { maxTokens: 2000, ignoreEos: true };
  const answers = await llm.generate(['One day', 'Lily'], long, { signal: given });
  for (const { choices } of answers) assert.equal(choices[0].finishReason, 'abort');
  await assert.rejects(llm.generate('One day', { topP: 2 }), { param: 'top_p' });
});

test('What is in flight keeps the process alive; a model that nobody closed does not', (t) => {
  const program = `
    import { LLM } from ${JSON.stringify(`${root}dist/src/index.js`)};
    const llm = await LLM.load(${JSON.stringify(STORIES)}, { kvCacheMemory: 2 ** 24, threads: 1 });
    for (const maxTokens of [3, 40]) {
      const [answer] = await llm.generate('Once', { maxTokens, ignoreEos: true, temperature: 0 });
      console.log(answer.choices[0].tokenIds.length);
    }`;
  const folder = mkdtempSync(join(tmpdir(), 'millrace-llm-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const file = join(folder, 'program.mjs');
  writeFileSync(file, program);
  const { status, stdout, stderr } = spawnSync(process.execPath, [file], {
    encoding: 'utf8',
    timeout: 180_000,
  });
  assert.equal(status, 0, stderr);
  assert.equal(stdout, '3\n40\n');
});
