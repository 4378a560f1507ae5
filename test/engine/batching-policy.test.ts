import assert from 'node:assert/strict';
import { test } from 'node:test';
import { resolveOptions } from '../../src/engine/engine-options.js';
import { BATCHINGS, KV_RESERVATIONS } from '../../src/engine/policy.js';
import { samplingParams } from '../../src/engine/sampling-params.js';
import { InvalidParameterError } from '../../src/errors.js';
import { CoreDriver, type DriverOptions, VOCAB } from '../helpers/core-driver.js';
import { expectedTokens } from '../helpers/fake-runner.js';
import { randomSource } from '../helpers/random.js';

function prompt(seed: number, length: number): number[] {
  const next = randomSource(seed);
  return Array.from({ length }, () => Math.floor(next() * VOCAB));
}

test('A static batch waits until all seats are taken, and then takes nobody in until all of it has ended', () => {
  const driver = new CoreDriver({ batching: 'static', maxNumSeqs: 3, maxNumBatchedTokens: 64 });
  const add = (seed: number, maxTokens: number, n = 1) =>
    driver.add(prompt(seed, 10), { maxTokens, ignoreEos: true, n });
  const short = add(1, 3);
  assert.ok(driver.core.isGathering);
  assert.equal(driver.core.hasWork, false, 'an engine that waits for a batch may sleep');
  assert.equal(driver.step().report.tokens, 0);
  const long = add(2, 12, 2);
  assert.equal(driver.core.isGathering, false);
  assert.ok(driver.core.hasWork, 'a seat and two for the choices make three');
  driver.step();
  const late = add(3, 3);
  while (driver.core.hasWork) driver.step();
  assert.equal(driver.choice(short).firstStep, 2);
  assert.equal(driver.choice(long).firstStep, 2);
  assert.equal(driver.steps, 13);
  assert.equal(driver.choice(late).firstStep, 0, 'it waits for company when the batch has ended');
  driver.core.startIncompleteBatch();
  driver.run();
  assert.equal(driver.choice(late).firstStep, 14);
});

test('A static batch is full when the KV cache is', () => {
  for (const [kvReservation, full] of [
    ['by-block', 4],
    ['worst-case', 2],
  ] as const) {
    const driver = new CoreDriver({
      ...{ batching: 'static', kvReservation, maxNumSeqs: 8 },
      ...{ numBlocks: 16, maxModelLen: 128, enablePrefixCaching: false },
    });
    // Each 40 tokens, and as admission counts a block more: 4 of 16 blocks, or 8 if reserved.
    for (let count = 1; count <= full; count++) {
      assert.equal(driver.core.hasWork, false, `${kvReservation}: ${count - 1} are no full batch`);
      driver.add(prompt(count, 40), { maxTokens: 30, ignoreEos: true });
    }
    assert.ok(driver.core.hasWork, `${kvReservation}: ${full} fill the cache`);
    driver.step();
    driver.step();
    driver.step();
    assert.equal(driver.core.stats().running, full);
  }
});

test('Whoever gives up while a batch is gathered is not counted for it', () => {
  const driver = new CoreDriver({ batching: 'static', maxNumSeqs: 3 });
  const first = driver.add(prompt(1, 10), { maxTokens: 2 });
  driver.add(prompt(2, 10), { maxTokens: 2 });
  driver.core.abort(first);
  assert.ok(driver.core.hasWork, 'the abort is to be reported');
  driver.step();
  assert.equal(driver.choice(first).finish?.reason, 'abort');
  assert.equal(driver.core.hasWork, false);
  const third = driver.add(prompt(3, 10));
  assert.ok(driver.core.isGathering);
  driver.core.abort(third);
  driver.core.abortAll();
  driver.step();
  assert.equal(driver.core.isGathering, false);
  driver.core.startIncompleteBatch();
  driver.add(prompt(4, 10));
  assert.ok(driver.core.isGathering, 'a start with nobody there does not count for the next');
});

for (const overlap of [false, true]) {
  test(`A static batch ${overlap ? '(overlapped) ' : ''}that nobody started has all seats taken, and nobody joins one that runs`, () => {
    let [full, early] = [0, 0];
    for (let seed = 1; seed <= 300; seed++) {
      const next = randomSource(seed);
      const below = (end: number) => Math.floor(next() * end);
      const maxNumSeqs = 1 + below(5);
      // All prompts of a batch fit into one step, and blocks never run out.
      const driver = new CoreDriver({
        ...{ overlap, batching: 'static', maxNumSeqs, maxNumBatchedTokens: 256, numBlocks: 256 },
      });
      const handles: number[] = [];
      for (let started = false, missing = 20; missing > 0 || driver.core.hasWork; ) {
        if (missing > 0 && next() < 0.4) {
          missing--;
          handles.push(driver.add(prompt(missing, 1 + below(20)), { maxTokens: 1 + below(8) }));
        }
        if (driver.core.isGathering && next() < 0.1) {
          started = true;
          driver.core.startIncompleteBatch();
        }
        const before = driver.core.stats();
        if (!driver.core.hasWork) continue;
        driver.step();
        const { waiting } = driver.core.stats();
        if (before.running > 0) assert.equal(waiting, before.waiting, `seed ${seed}: nobody joins`);
        else if (started) early++;
        else {
          full++;
          assert.equal(before.waiting - waiting, maxNumSeqs, `seed ${seed}: all seats`);
        }
        started = false;
      }
      driver.run();
      assert.ok(handles.every((handle) => driver.choice(handle).finish));
    }
    assert.ok(full > 100 && early > 100, `${full} full batches, ${early} incomplete ones`);
  });
}

test('A static batch whose prompts take several steps is filled up, a continuous one at any time', () => {
  const starts = (batching: 'static' | 'continuous') => {
    const driver = new CoreDriver({ batching, maxNumSeqs: 3, maxNumBatchedTokens: 16 });
    const handles = [1, 2, 3, 4].map((seed) =>
      driver.add(prompt(seed, 14), { maxTokens: seed === 1 ? 4 : 8, ignoreEos: true }),
    );
    driver.run();
    return handles.map((handle) => driver.choice(handle).firstStep);
  };
  const [, , third, fourth] = starts('static');
  assert.ok(third <= 4, 'the third prompt joined the batch that was being made');
  assert.ok(fourth > 8, 'the fourth had to wait for all three');
  assert.ok(starts('continuous')[3] < 8, 'a free seat is taken at once');
});

test('Without chunked prefill a prompt is computed in one step, and waits for one with room', () => {
  const tokensOfSteps = (enableChunkedPrefill: boolean) => {
    const driver = new CoreDriver({ enableChunkedPrefill, maxNumBatchedTokens: 64 });
    for (const seed of [1, 2, 3]) driver.add(prompt(seed, 40), { maxTokens: 2, ignoreEos: true });
    return Array.from({ length: 3 }, () => driver.step().report.tokens);
  };
  assert.deepEqual(tokensOfSteps(true).slice(0, 2), [64, 57]);
  // One whole prompt beside the first's decode; nothing of the next is begun.
  assert.deepEqual(tokensOfSteps(false), [40, 41, 41]);
});

test('Without chunked prefill a prompt longer than a step is cut when it has the step to itself', () => {
  const driver = new CoreDriver({ enableChunkedPrefill: false, maxNumBatchedTokens: 32 });
  const first = driver.add(prompt(1, 20), { maxTokens: 5, ignoreEos: true });
  const long = driver.add(prompt(2, 100), { maxTokens: 2, ignoreEos: true });
  driver.run();
  assert.ok(driver.choice(first).finish);
  // It starts when the first has ended after 5 steps, and takes 4 steps of 32.
  assert.equal(driver.choice(long).firstStep, 9);
});

test('Worst-case reservation admits as many sequences as maxModelLen fits into the cache, and never preempts', () => {
  const most = (kvReservation: 'worst-case' | 'by-block') => {
    const driver = new CoreDriver({
      kvReservation,
      numBlocks: 32,
      maxModelLen: 128,
      maxNumSeqs: 16,
      maxNumBatchedTokens: 256,
    });
    for (let seed = 1; seed <= 16; seed++) {
      driver.add(prompt(seed, 8), { maxTokens: 20, ignoreEos: true });
    }
    driver.step();
    driver.step();
    const { running } = driver.core.stats();
    driver.run();
    assert.equal(driver.core.stats().preemptions, 0);
    return running;
  };
  // 32 blocks of 16 hold 4 sequences of 128 tokens, or 16 that have no more than 28.
  assert.equal(most('worst-case'), 4);
  assert.equal(most('by-block'), 16);
});

test('Under every policy random load ends, with the tokens each request has alone', () => {
  for (const batching of BATCHINGS) {
    for (const kvReservation of KV_RESERVATIONS) {
      for (const enableChunkedPrefill of [true, false]) {
        for (let seed = 1; seed <= 20; seed++) {
          underLoad(seed, { batching, kvReservation, enableChunkedPrefill });
        }
      }
    }
  }
});

test('Unknown policies are refused by name', () => {
  const refused = (options: object, param: string) =>
    assert.throws(
      () => resolveOptions({ model: 'm', ...options }),
      (error) => error instanceof InvalidParameterError && error.param === param,
    );
  refused({ batching: 'dynamic' }, 'batching');
  refused({ kvReservation: 'some' }, 'kvReservation');
  refused({ enableChunkedPrefill: 'no' }, 'enableChunkedPrefill');
});

function underLoad(seed: number, policy: DriverOptions): void {
  const next = randomSource(seed);
  const below = (end: number) => Math.floor(next() * end);
  const numBlocks = 6 + below(20);
  const limits = {
    numBlocks,
    maxModelLen: Math.min(numBlocks * 16, 32 + below(100)),
    maxNumSeqs: 1 + below(6),
  };
  const driver = new CoreDriver({
    ...policy,
    ...limits,
    maxNumBatchedTokens: limits.maxNumSeqs + below(60),
  });
  const added = Array.from({ length: 12 }, (_, i) => {
    const given = {
      maxTokens: 1 + below(40),
      temperature: 0,
      ignoreEos: true,
      n: 1 + below(limits.maxNumSeqs),
    };
    const tokens = prompt(seed * 100 + i, 1 + below(limits.maxModelLen - 1));
    const handle = driver.add(tokens, given);
    if (next() < 0.5) driver.step();
    return { handle, tokens, given };
  });
  driver.run(5000);
  for (const { handle, tokens, given } of added) {
    const params = samplingParams(given, { vocabSize: VOCAB, maxNumSeqs: limits.maxNumSeqs });
    for (let index = 0; index < given.n; index++) {
      const expected = expectedTokens(tokens, params, index, {
        vocabSize: VOCAB,
        maxModelLen: limits.maxModelLen,
      });
      assert.deepEqual(driver.choice(handle, index).tokens, expected);
    }
  }
}
