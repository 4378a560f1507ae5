import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type SamplingParams, samplingParams } from '../../src/engine/sampling-params.js';
import { Sequence } from '../../src/engine/sequence.js';
import { CoreDriver, type DriverOptions, VOCAB } from '../helpers/core-driver.js';
import { expectedTokens } from '../helpers/fake-runner.js';

const PROMPT = Array.from({ length: 20 }, (_, i) => (i * 7) % 50);
const LONG = { maxTokens: 30, ignoreEos: true };
const NAN = 60;

function overlapping(options: DriverOptions = {}): CoreDriver {
  return new CoreDriver({ ...options, overlap: true });
}

function expected(prompt: number[], params: Partial<SamplingParams>, index = 0): number[] {
  const limits = { vocabSize: VOCAB, maxNumSeqs: 8 };
  const complete = samplingParams({ temperature: 0, ...params }, limits);
  return expectedTokens(prompt, complete, index, { vocabSize: VOCAB, maxModelLen: 256 });
}

/** How often draws are forgone by `during`. */
function countForgone(during: () => void): number {
  const original = Sequence.prototype.forgo;
  let count = 0;
  Sequence.prototype.forgo = function () {
    count++;
    original.call(this);
  };
  try {
    during();
  } finally {
    Sequence.prototype.forgo = original;
  }
  return count;
}

test('Every step but the first and last is submitted while another runs, and a call gives one result', () => {
  const driver = overlapping();
  const handle = driver.add(PROMPT, LONG);
  for (let tokens = 1; tokens <= 30; tokens++) {
    const { report } = driver.step();
    assert.equal(report.tokens, tokens === 1 ? 20 : 1);
    assert.equal(driver.choice(handle).tokens.length, tokens);
  }
  assert.equal(driver.core.hasWork, false);
  assert.equal(driver.overlapping?.overlapped, 29);
  assert.equal(driver.overlapping?.references, 29);
  assert.deepEqual(driver.choice(handle).tokens, expected(PROMPT, LONG));
});

test('Requests that come while the first step runs are in the second, if that is begun by itself', () => {
  const driver = overlapping();
  const first = driver.add(PROMPT, LONG);
  assert.equal(driver.core.begin(), true);
  assert.equal(driver.core.begin(), false, 'one is on its way');
  const others = [1, 2, 3].map((n) => driver.add(PROMPT.slice(n), LONG));
  const { report } = driver.step();
  assert.equal(report.tokens, 20);
  assert.ok(report.scheduleMs > 0 && report.stepMs >= report.scheduleMs + report.buildMs);
  assert.equal(driver.step().report.tokens, 1 + 19 + 18 + 17);
  driver.run();
  assert.deepEqual(driver.choice(first).tokens, expected(PROMPT, LONG));
  others.forEach((handle, n) => {
    assert.deepEqual(driver.choice(handle).tokens, expected(PROMPT.slice(n + 1), LONG));
  });
  assert.equal(driver.core.begin(), false, 'nothing is left to do');
});

test('Without overlap, or with nothing to do, no step is begun by itself', () => {
  const driver = new CoreDriver();
  driver.add(PROMPT, LONG);
  assert.equal(driver.core.begin(), false);
  assert.equal(driver.runner.computedTokens, 0);
  assert.equal(overlapping().core.begin(), false);
});

test('What ends by its length costs no row more than without overlap; a stop token costs one', () => {
  const run = (overlap: boolean, params: Partial<SamplingParams>) => {
    const driver = new CoreDriver({ overlap });
    driver.add(PROMPT, params);
    driver.run();
    return driver.runner.computedTokens;
  };
  assert.equal(run(true, LONG), run(false, LONG));
  const tokens = expected(PROMPT, LONG);
  const stop = { ...LONG, stopTokenIds: [tokens[5]] };
  assert.equal(run(true, stop), run(false, stop) + 1);
});

test('With penalties a sequence is in every other step, and the others in every one', () => {
  const driver = overlapping();
  const penalized = driver.add(PROMPT, { ...LONG, frequencyPenalty: 0.5 });
  const free = driver.add(PROMPT.slice(1), LONG);
  for (let i = 0; i < 21; i++) driver.step();
  assert.equal(driver.choice(penalized).tokens.length, 11);
  assert.equal(driver.choice(free).tokens.length, 21);
  driver.run();
  const params = { ...LONG, frequencyPenalty: 0.5 };
  assert.deepEqual(driver.choice(penalized).tokens, expected(PROMPT, params));
});

test('Blocks that generated tokens filled are found by the next turn, and no others', () => {
  const cached = (overlap: boolean, params: Partial<SamplingParams>) => {
    const driver = new CoreDriver({ overlap, blockSize: 4, eosTokenIds: [] });
    const first = driver.add(PROMPT, params);
    driver.run();
    const { tokens } = driver.choice(first);
    const turn = driver.add([...PROMPT, ...tokens, 1, 2, 3, 4], { maxTokens: 1 });
    driver.run();
    return driver.choice(turn).finish?.cachedTokens;
  };
  const tokens = expected(PROMPT, LONG);
  for (let length = 1; length < 30; length++) {
    const params = { ...LONG, maxTokens: length };
    assert.equal(cached(true, params), Math.floor((20 + length - 1) / 4) * 4, `length ${length}`);
    const stop = { ...LONG, stopTokenIds: [tokens[length - 1]] };
    assert.equal(cached(true, stop), cached(false, stop), `stop at ${length}`);
  }
});

test('Blocks of an abort are free at once, and who gets them is not disturbed by the row in flight', () => {
  const driver = overlapping({ numBlocks: 3, maxModelLen: 48, enablePrefixCaching: false });
  const gone = driver.add(PROMPT, LONG);
  for (let i = 0; i < 5; i++) driver.step();
  driver.core.abort(gone);
  assert.equal(driver.core.stats().freeBlocks, 3);
  assert.ok(driver.core.hasWork, 'a step is in flight');
  const next = driver.add(PROMPT.slice(2), { ...LONG, maxTokens: 20 });
  driver.run();
  assert.equal(driver.choice(gone).finish?.reason, 'abort');
  assert.equal(driver.choice(gone).tokens.length, 5);
  assert.deepEqual(driver.choice(next).tokens, expected(PROMPT.slice(2), { maxTokens: 20 }));
});

/**
 * Engines in which three sequences grow while the prompt of a fourth is computed two tokens a step,
 * until blocks run out: in some of them just when its last tokens are in flight.
 */
function* crowded(options: DriverOptions, params: Partial<SamplingParams>) {
  for (let length = 20; length < 60; length++) {
    for (let numBlocks = 12; numBlocks < 17; numBlocks++) {
      const driver = overlapping({
        ...{ numBlocks, maxModelLen: 80, maxNumBatchedTokens: 5, maxNumSeqs: 5 },
        ...options,
      });
      const crowd = [0, 1, 2].map((i) =>
        driver.add(PROMPT.slice(i), { maxTokens: 55, ignoreEos: true, ...params }),
      );
      driver.step();
      const prompt = Array.from({ length }, (_, i) => (i * 11 + 3) % 50);
      yield { driver, crowd, prompt, where: `length ${length}, ${numBlocks} blocks` };
    }
  }
}

test('Choices whose leader is preempted with their first draws in flight are drawn again, the same', () => {
  const params = { n: 2, temperature: 1, seed: 5, maxTokens: 4, ignoreEos: true };
  let forgone = 0;
  for (const { driver, crowd, prompt, where } of crowded({ enablePrefixCaching: false }, {})) {
    const forked = driver.add(prompt, params);
    forgone += countForgone(() => driver.run());
    for (const [i, handle] of crowd.entries()) {
      const wanted = expected(PROMPT.slice(i), { maxTokens: 55 });
      assert.deepEqual(driver.choice(handle).tokens, wanted, where);
    }
    for (const index of [0, 1]) {
      const wanted = expected(prompt, params, index);
      assert.deepEqual(driver.choice(forked, index).tokens, wanted, where);
    }
  }
  assert.ok(forgone > 0, `it happened: ${forgone}`);
});

test('Who fails after a preemption leaves nothing in the prefix cache either', () => {
  let withoutBlocks = 0;
  // The others must not draw the token that fails.
  const others = { logitBias: new Map([[NAN, -100]]) };
  for (const { driver, crowd, prompt, where } of crowded({ nanToken: NAN }, others)) {
    const bad = driver.add([...prompt, NAN], { maxTokens: 4 });
    while (!driver.choice(bad).finish) {
      const { waiting } = driver.core.stats();
      driver.step();
      if (driver.choice(bad).finish && waiting === 0) {
        withoutBlocks += driver.core.stats().preemptions > 0 ? 1 : 0;
      }
    }
    assert.equal(driver.choice(bad).finish?.reason, 'error');
    for (const handle of crowd) driver.core.abort(handle);
    const again = driver.add([...prompt, 1], { maxTokens: 1 });
    driver.run();
    assert.equal(driver.choice(again).finish?.cachedTokens, 0, where);
  }
  assert.ok(withoutBlocks > 10, `it happened: ${withoutBlocks}`);
});

test('A refused batch costs nobody a token: what is in flight is collected, then each runs alone', () => {
  const driver = overlapping({ throwToken: 61 });
  const first = driver.add(PROMPT, LONG);
  const second = driver.add(PROMPT.slice(5), { ...LONG, n: 2, temperature: 1, seed: 2 });
  for (let i = 0; i < 4; i++) driver.step();
  const bad = driver.add([...PROMPT, 61, 1], LONG);
  for (let i = 0; i < 2; i++) driver.step();
  assert.equal(driver.choice(bad).finish?.reason, 'error');
  assert.match(driver.choice(bad).finish?.error?.message ?? '', /token 61 cannot be computed/);
  driver.runner.check = () => {};
  driver.run();
  assert.equal(driver.choice(first).finish?.reason, 'length');
  assert.equal(driver.choice(second, 1).finish?.reason, 'length');
  assert.deepEqual(driver.choice(first).tokens, expected(PROMPT, LONG));
});

test('A device that is lost throws out of the step', () => {
  const driver = overlapping();
  driver.add(PROMPT, LONG);
  driver.step();
  driver.runner.step = () => {
    throw new Error('the device is gone');
  };
  assert.throws(() => driver.step(), /the device is gone/);
});
