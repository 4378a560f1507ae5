import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CoreDriver, VOCAB } from '../helpers/core-driver.js';
import { expectedTokens } from '../helpers/fake-runner.js';
import { randomSource } from '../helpers/random.js';

function prompts(seed: number, number: number, length: number): number[][] {
  const next = randomSource(seed);
  return Array.from({ length: number }, () =>
    Array.from({ length }, () => Math.floor(next() * VOCAB)),
  );
}

const LONG = { maxTokens: 60, ignoreEos: true };

test('A running decode gets a token in every step while long prompts are computed', () => {
  const driver = new CoreDriver({ numBlocks: 200, maxModelLen: 1024, maxNumBatchedTokens: 32 });
  const [first, ...others] = prompts(1, 4, 600);
  const decoding = driver.add(first.slice(0, 5), LONG);
  driver.step();
  for (const prompt of others) driver.add(prompt, LONG);
  for (let i = 0; i < 50; i++) driver.step();
  assert.equal(driver.choice(decoding).tokens.length, 51);
  assert.ok(driver.runner.mostTokens <= 32);
});

test('A short prompt does not wait for the long one before it', () => {
  const driver = new CoreDriver({ numBlocks: 200, maxModelLen: 1024, maxNumBatchedTokens: 64 });
  const [long, short] = prompts(2, 2, 640);
  const slow = driver.add(long, LONG);
  const quick = driver.add(short.slice(0, 20), LONG);
  driver.run();
  assert.equal(driver.choice(quick).firstStep, 1);
  // 640 tokens in chunks of 64, of which the short prompt and its decodes took 31.
  assert.ok(driver.choice(slow).firstStep <= 12);
});

test('What no other prompt can use goes to the long one: the budget is full', () => {
  const driver = new CoreDriver({ numBlocks: 200, maxModelLen: 1024, maxNumBatchedTokens: 64 });
  const [long, second] = prompts(3, 2, 512);
  driver.add(long, LONG);
  driver.add(second, LONG);
  for (let i = 0; i < 16; i++) assert.equal(driver.step().report.tokens, 64);
});

test('Requests that arrive together start in the order of arrival, or of priority', () => {
  const starts = (schedulingPolicy: 'fcfs' | 'priority') => {
    const driver = new CoreDriver({ schedulingPolicy, maxNumSeqs: 1 });
    const priorities = [5, 0, 3, -1];
    const handles = prompts(4, 4, 10).map((prompt, i) =>
      driver.add(prompt, { maxTokens: 2 }, { priority: priorities[i] }),
    );
    driver.run();
    return handles.sort((a, b) => driver.choice(a).firstStep - driver.choice(b).firstStep);
  };
  assert.deepEqual(starts('fcfs'), [0, 1, 2, 3]);
  assert.deepEqual(starts('priority'), [3, 1, 2, 0]);
});

test('Out of blocks the latest arrival of the lowest priority is preempted, and its tokens stay the same', () => {
  const finishOrder = (schedulingPolicy: 'fcfs' | 'priority') => {
    // Three sequences grow to 7 blocks each, but there are 16: admission sees 2 blocks each.
    const driver = new CoreDriver({ schedulingPolicy, numBlocks: 16, maxModelLen: 256 });
    const all = prompts(5, 3, 20);
    const params = { maxTokens: 90, ignoreEos: true };
    const handles = all.map((prompt, i) => driver.add(prompt, params, { priority: 2 - i }));
    driver.run();
    assert.ok(driver.core.stats().preemptions > 0);
    for (const [i, handle] of handles.entries()) {
      const { tokens, finish } = driver.choice(handle);
      assert.equal(finish?.reason, 'length');
      const sampling = { n: 1, temperature: 0, topP: 1, topK: 0, minP: 0 };
      const neutral = { repetitionPenalty: 1, presencePenalty: 0, frequencyPenalty: 0 };
      assert.deepEqual(
        tokens,
        expectedTokens(
          all[i],
          {
            ...{ ...sampling, ...neutral, ...params, minTokens: 0, skipSpecialTokens: true },
            ...{ stop: [], stopTokenIds: [], logitBias: new Map(), includeStopStrInOutput: false },
          },
          0,
          { ...driver.options, vocabSize: VOCAB },
        ),
      );
    }
    return driver;
  };
  const last = (driver: CoreDriver) =>
    [0, 1, 2].reduce((a, b) =>
      driver.choice(a).finish!.timing.finished > driver.choice(b).finish!.timing.finished ? a : b,
    );
  assert.equal(last(finishOrder('fcfs')), 2);
  assert.equal(last(finishOrder('priority')), 0);
});

test('Preemption does not thrash: what is computed twice stays a small part', () => {
  const driver = new CoreDriver({
    ...{ numBlocks: 40, maxNumSeqs: 32, maxNumBatchedTokens: 256, enablePrefixCaching: false },
  });
  const all = prompts(6, 100, 30);
  for (const prompt of all) driver.add(prompt, { maxTokens: 100, ignoreEos: true });
  driver.run();
  const once = 100 * (30 + 99);
  assert.ok(
    driver.runner.computedTokens < 1.5 * once,
    `${driver.runner.computedTokens} tokens computed, ${once} needed`,
  );
});

test('A large request in a steady stream of small ones is served', () => {
  const driver = new CoreDriver({ numBlocks: 16, maxModelLen: 256, maxNumSeqs: 8 });
  const [large, ...small] = prompts(7, 300, 240);
  for (const prompt of small.slice(0, 8)) driver.add(prompt.slice(0, 20), { maxTokens: 10 });
  driver.step();
  const handle = driver.add(large, { maxTokens: 5 });
  for (const prompt of small) {
    driver.add(prompt.slice(0, 20), { maxTokens: 10 });
    driver.step();
    if (driver.choice(handle).finish) break;
  }
  assert.equal(driver.choice(handle).finish?.reason, 'length');
  assert.ok(driver.steps < 60, `after ${driver.steps} steps`);
});

test('At most maxNumSeqs sequences run, choices to be forked off included', () => {
  const driver = new CoreDriver({ maxNumSeqs: 5, maxNumBatchedTokens: 20 });
  for (const prompt of prompts(8, 12, 15))
    driver.add(prompt, { n: 3, maxTokens: 7, temperature: 1 });
  while (driver.core.hasWork) {
    driver.step();
    assert.ok(driver.core.stats().running <= 5);
  }
  assert.ok(driver.runner.mostSeqs <= 5);
});
