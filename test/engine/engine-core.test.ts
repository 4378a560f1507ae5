import assert from 'node:assert/strict';
import { test } from 'node:test';
import { samplingParams } from '../../src/engine/sampling-params.js';
import { CoreDriver, VOCAB } from '../helpers/core-driver.js';
import { expectedTokens } from '../helpers/fake-runner.js';

const PROMPT = Array.from({ length: 20 }, (_, i) => (i * 7) % 50);
const NAN = 60;
const THROW = 61;

function expected(driver: CoreDriver, prompt: number[], params = {}, index = 0): number[] {
  const limits = { vocabSize: VOCAB, maxNumSeqs: 8 };
  const complete = samplingParams({ temperature: 0, ...params }, limits);
  return expectedTokens(prompt, complete, index, { ...driver.options, vocabSize: VOCAB });
}

test('A request whose logits are not finite fails alone, and nothing of it stays cached', () => {
  const driver = new CoreDriver({ nanToken: NAN });
  const params = { maxTokens: 5, ignoreEos: true };
  const good = driver.add(PROMPT, params);
  const bad = driver.add([...PROMPT.slice(1), ...PROMPT, NAN], params);
  driver.run();
  assert.deepEqual(driver.choice(good).tokens.length, 5);
  assert.equal(driver.choice(good).finish?.reason, 'length');
  const { finish, tokens } = driver.choice(bad);
  assert.deepEqual(tokens, []);
  assert.equal(finish?.reason, 'error');
  assert.equal(finish?.error?.code, 'generation_failed');
  const again = driver.add([...PROMPT.slice(1), ...PROMPT, 1], { maxTokens: 1 });
  driver.run();
  assert.equal(driver.choice(again).finish?.cachedTokens, 0);
  assert.equal(driver.core.stats().freeBlocks, driver.options.numBlocks);
});

test('Every choice of a request that fails in its prompt ends with an error', () => {
  const driver = new CoreDriver({ nanToken: NAN });
  const bad = driver.add([...PROMPT, NAN], { n: 3, temperature: 1 });
  driver.run();
  for (const index of [0, 1, 2]) assert.equal(driver.choice(bad, index).finish?.reason, 'error');
});

test('When a step throws, the sequence to blame fails and the others go on with the same tokens', () => {
  const driver = new CoreDriver({ throwToken: THROW });
  const params = { maxTokens: 8, ignoreEos: true };
  const bias = { ...params, stopTokenIds: [THROW], minTokens: 8 };
  const first = driver.add(PROMPT, bias);
  const bad = driver.add([...PROMPT, THROW, 1], bias);
  const forked = driver.add(PROMPT.slice(3), { ...bias, n: 3, temperature: 1, seed: 3 });
  driver.run();
  assert.deepEqual(driver.choice(first).tokens, expected(driver, PROMPT, bias));
  for (const index of [0, 1, 2]) {
    assert.deepEqual(
      driver.choice(forked, index).tokens,
      expected(driver, PROMPT.slice(3), { ...bias, n: 3, temperature: 1, seed: 3 }, index),
    );
  }
  const { finish } = driver.choice(bad);
  assert.equal(finish?.reason, 'error');
  assert.match(finish?.error?.message ?? '', /token 61 cannot be computed/);
});

test('A runner that always throws ends every request with an error and leaves the engine usable', () => {
  const driver = new CoreDriver();
  driver.runner.step = () => {
    throw new Error('broken');
  };
  const handles = [driver.add(PROMPT), driver.add(PROMPT.slice(2))];
  driver.run();
  for (const handle of handles) assert.equal(driver.choice(handle).finish?.reason, 'error');
  assert.equal(driver.core.stats().freeBlocks, driver.options.numBlocks);
  assert.equal(driver.core.hasWork, false);
});

test('An abort frees the blocks before the next step and is reported once', () => {
  const driver = new CoreDriver();
  const gone = driver.add(PROMPT, { n: 2, temperature: 1, maxTokens: 50, ignoreEos: true });
  for (let i = 0; i < 4; i++) driver.step();
  driver.core.abort(gone);
  driver.core.abort(gone);
  assert.equal(driver.core.stats().freeBlocks, driver.options.numBlocks);
  driver.run();
  for (const index of [0, 1]) assert.equal(driver.choice(gone, index).finish?.reason, 'abort');
});

test('One choice can be aborted alone, before or after the choices are forked', () => {
  for (const stepsBefore of [0, 3]) {
    const driver = new CoreDriver({ maxNumBatchedTokens: 8 });
    const params = { n: 3, temperature: 1, seed: 1, maxTokens: 10, ignoreEos: true };
    const handle = driver.add(PROMPT, params);
    for (let i = 0; i < stepsBefore; i++) driver.step();
    driver.core.abort(handle, 0);
    driver.run();
    assert.equal(driver.choice(handle, 0).finish?.reason, 'abort');
    for (const index of [1, 2]) {
      assert.deepEqual(
        driver.choice(handle, index).tokens,
        expected(driver, PROMPT, params, index),
      );
    }
  }
});

test('Stop tokens and end-of-sequence end a choice, are included and named; min_tokens bans them', () => {
  const probe = new CoreDriver();
  const free = expected(probe, PROMPT, { maxTokens: 30 });
  const eos = free[4];
  const driver = new CoreDriver({ eosTokenIds: [eos] });
  const at = free.indexOf(eos);
  const natural = driver.add(PROMPT, { maxTokens: 30 });
  const ignored = driver.add(PROMPT, { maxTokens: 30, ignoreEos: true });
  const stop = driver.add(PROMPT, { maxTokens: 30, ignoreEos: true, stopTokenIds: [free[2]] });
  const late = driver.add(PROMPT, { maxTokens: 30, minTokens: 12 });
  driver.run();
  assert.deepEqual(driver.choice(natural).tokens, free.slice(0, at + 1));
  assert.deepEqual(
    [driver.choice(natural).finish?.reason, driver.choice(natural).finish?.stopToken],
    ['stop', eos],
  );
  assert.deepEqual(driver.choice(ignored).tokens, free);
  assert.equal(driver.choice(ignored).finish?.reason, 'length');
  assert.deepEqual(driver.choice(stop).tokens, free.slice(0, free.indexOf(free[2]) + 1));
  const { tokens } = driver.choice(late);
  assert.ok(tokens.length >= 12);
  assert.ok(!tokens.slice(0, 12).includes(eos));
});

test('The end of the context ends a choice with length', () => {
  const driver = new CoreDriver({ maxModelLen: 32 });
  const handle = driver.add(PROMPT, { ignoreEos: true });
  driver.run();
  assert.equal(driver.choice(handle).tokens.length, 12);
  assert.equal(driver.choice(handle).finish?.reason, 'length');
});

test('A seed gives the same tokens alone and in a crowd, and its choices differ', () => {
  const params = { n: 2, temperature: 1, seed: 42, maxTokens: 10, ignoreEos: true };
  const alone = new CoreDriver();
  const one = alone.add(PROMPT, params);
  alone.run();
  const crowd = new CoreDriver({ numBlocks: 12, maxModelLen: 64 });
  for (let i = 0; i < 6; i++) crowd.add(PROMPT.slice(i), { temperature: 1, maxTokens: 10 + i });
  const same = crowd.add(PROMPT, params);
  crowd.run();
  for (const index of [0, 1]) {
    assert.deepEqual(crowd.choice(same, index).tokens, alone.choice(one, index).tokens);
  }
  assert.notDeepEqual(alone.choice(one, 0).tokens, alone.choice(one, 1).tokens);
});

test('Prompt logprobs cover every token but the first, in chunks and after a cached prefix', () => {
  const driver = new CoreDriver({ maxNumBatchedTokens: 8 });
  const warm = driver.add(PROMPT, { maxTokens: 1 });
  driver.run();
  assert.equal(driver.choice(warm).finish?.cachedTokens, 0);
  const scored = driver.add(PROMPT, { promptLogprobs: 2, logprobs: 1, maxTokens: 2 });
  const plain = driver.add(PROMPT, { maxTokens: 2 });
  driver.run();
  assert.equal(driver.choice(scored).finish?.cachedTokens, 0, 'it does not read the cache');
  assert.equal(driver.choice(plain).finish?.cachedTokens, 16);
  const [first, second] = driver.choice(scored).deltas;
  assert.equal(first.promptLogprobs?.length, PROMPT.length);
  assert.equal(first.promptLogprobs?.[0], null);
  assert.deepEqual(
    first.promptLogprobs?.slice(1).map((each) => each?.token),
    PROMPT.slice(1),
  );
  assert.equal(first.promptLogprobs?.[5]?.top.length, 2);
  assert.equal(first.logprobs?.[0].token, first.tokens[0]);
  assert.equal(second.promptLogprobs, undefined);
});

test('Statistics count tokens, hits and steps', () => {
  const driver = new CoreDriver();
  for (let i = 0; i < 2; i++) {
    driver.add(PROMPT, { maxTokens: 4, ignoreEos: true });
    driver.run();
  }
  const stats = driver.core.stats();
  assert.deepEqual(
    [stats.promptTokens, stats.generationTokens, stats.prefixQueries, stats.prefixHits],
    [40, 8, 40, 16],
  );
  assert.equal(stats.steps, 8);
  assert.deepEqual([stats.running, stats.waiting, stats.kvUsage], [0, 0, 0]);
});
