import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type SamplingParams, samplingParams } from '../../src/engine/sampling-params.js';
import { CoreDriver, VOCAB } from '../helpers/core-driver.js';
import { expectedTokens } from '../helpers/fake-runner.js';
import { randomSource } from '../helpers/random.js';

const STEPS = 500_000;
const EOS = 7;

interface Planned {
  prompt: number[];
  params: Partial<SamplingParams>;
  priority: number;
  salt: string;
}

for (const overlap of [false, true]) {
  test(`In ${STEPS} ${overlap ? 'overlapped ' : ''}steps of random engines under random load no block is lost or owned twice, and every request gets exactly its tokens`, () => {
    let steps = 0;
    const seen = { preemptions: 0, hits: 0, aborts: 0, forks: 0, finished: 0, gathering: 0 };
    for (let seed = 1; steps < STEPS; seed++) steps += runOne(seed, overlap, seen);
    for (const [event, count] of Object.entries(seen)) {
      assert.ok(count > 1000, `${event} happened often enough to be tested: ${count}`);
    }
  });
}

/** One engine of random size under random load until it is idle again; returns its steps. */
function runOne(seed: number, overlap: boolean, seen: Record<string, number>): number {
  const next = randomSource(seed);
  const below = (end: number) => Math.floor(next() * end);
  const blockSize = [2, 4, 16][below(3)];
  const numBlocks = 4 + below(24);
  const maxNumSeqs = 1 + below(8);
  const driver = new CoreDriver({
    overlap,
    blockSize,
    numBlocks,
    maxModelLen: Math.min(numBlocks * blockSize, 16 + below(64)),
    maxNumSeqs,
    maxNumBatchedTokens: maxNumSeqs + below(40),
    enablePrefixCaching: next() < 0.8,
    schedulingPolicy: next() < 0.5 ? 'fcfs' : 'priority',
    batching: next() < 0.1 ? 'static' : 'continuous',
    eosTokenIds: [EOS],
    hashSeed: seed,
  });
  const { maxModelLen } = driver.options;
  // Few distinct beginnings, so that prompts share prefixes.
  const stems = Array.from({ length: 3 }, () => Array.from({ length: 40 }, () => below(VOCAB)));
  const planned = new Map<number, Planned>();
  const aborted = new Set<number>();

  const addOne = () => {
    const length = 1 + below(Math.min(maxModelLen - 1, next() < 0.2 ? 60 : 20));
    const prompt = stems[below(3)].slice(0, below(length + 1));
    while (prompt.length < length) prompt.push(below(VOCAB));
    const params = {
      n: next() < 0.3 ? 1 + below(Math.min(4, maxNumSeqs)) : 1,
      temperature: next() < 0.5 ? 0 : 1,
      seed: below(1000),
      maxTokens: next() < 0.8 ? 1 + below(12) : undefined,
      ignoreEos: next() < 0.3,
      minTokens: next() < 0.2 ? 1 : 0,
      stopTokenIds: next() < 0.2 ? [9, 11] : [],
      frequencyPenalty: next() < 0.2 ? 0.5 : 0,
      promptLogprobs: next() < 0.1 ? 2 : undefined,
    };
    const priority = below(3);
    const salt = next() < 0.2 ? 'salt' : '';
    const handle = driver.add(prompt, params, { priority, cacheSalt: salt });
    planned.set(handle, { prompt, params, priority, salt });
  };

  const requests = 20 + below(60);
  const rate = next() * 1.5;
  const { core } = driver;
  for (let idle = 0; planned.size < requests || core.hasWork || core.isGathering; ) {
    while (planned.size < requests && next() < rate / (1 + rate)) addOne();
    if (planned.size > 0 && next() < 0.02) {
      const handle = below(planned.size);
      aborted.add(handle);
      core.abort(handle, next() < 0.3 ? 0 : undefined);
    }
    const { isGathering } = core;
    if (isGathering) seen.gathering++;
    if (isGathering && next() < 0.2) core.startIncompleteBatch();
    const idling = core.isGathering || core.stats().running + core.stats().waiting === 0;
    if (core.hasWork) {
      const { report } = driver.step();
      assert.ok(report.tokens > 0 || idling, `seed ${seed}: every step computes`);
    } else if (++idle > 1000) addOne();
    assert.ok(driver.steps < 20_000, `seed ${seed}: no starvation`);
  }

  const stats = core.stats();
  assert.equal(stats.freeBlocks, numBlocks, `seed ${seed}: all blocks are free at the end`);
  assert.ok(driver.runner.mostTokens <= driver.options.maxNumBatchedTokens);
  seen.preemptions += stats.preemptions;
  seen.hits += stats.prefixHits;
  for (const [handle, { prompt, params }] of planned) {
    const complete = samplingParams(
      { temperature: 0, ...params },
      { vocabSize: VOCAB, maxNumSeqs },
    );
    for (let index = 0; index < complete.n; index++) {
      check(seed, driver, handle, index, prompt, complete, aborted.has(handle), seen);
    }
  }
  return driver.steps;
}

function check(
  seed: number,
  driver: CoreDriver,
  handle: number,
  index: number,
  prompt: number[],
  params: SamplingParams,
  mayBeAborted: boolean,
  seen: Record<string, number>,
): void {
  const { tokens, finish, deltas } = driver.choice(handle, index);
  const where = `seed ${seed}, request ${handle}, choice ${index}`;
  const expected = expectedTokens(prompt, params, index, { ...driver.options, vocabSize: VOCAB });
  assert.ok(finish, `${where} has a finish`);
  if (index > 0) seen.forks++;
  if (finish.reason === 'abort') {
    seen.aborts++;
    assert.ok(mayBeAborted, `${where} was aborted`);
    assert.deepEqual(tokens, expected.slice(0, tokens.length), where);
    return;
  }
  seen.finished++;
  assert.deepEqual(tokens, expected, where);
  const stops = [...params.stopTokenIds, ...(params.ignoreEos ? [] : [EOS])];
  const stopped = stops.includes(tokens.at(-1)!);
  assert.equal(finish.reason, stopped ? 'stop' : 'length', where);
  assert.equal(finish.stopToken, stopped ? tokens.at(-1) : undefined, where);
  if (index === 0) {
    const promptLogprobs = deltas.find((delta) => delta.promptLogprobs)?.promptLogprobs;
    const wanted = params.promptLogprobs === undefined ? undefined : prompt.length;
    assert.equal(promptLogprobs?.length, wanted, where);
    assert.deepEqual(
      promptLogprobs?.slice(1).map((each) => each?.token),
      wanted && prompt.slice(1),
      where,
    );
  }
}
