import assert from 'node:assert/strict';
import { test } from 'node:test';
import type { Backend } from '../../src/backend/backend.js';
import { createCpuBackend } from '../../src/backend/cpu/cpu-backend.js';
import { referenceBackend } from '../../src/backend/reference/reference.js';
import { EngineCore } from '../../src/engine/engine-core.js';
import { type SamplingParams, samplingParams } from '../../src/engine/sampling-params.js';
import { readDeltas } from '../../src/engine/step-output.js';
import { loadModel } from '../../src/model/load-model.js';
import { STORIES, storiesGolden } from '../helpers/goldens.js';
import { OverlappingRunner } from '../helpers/overlapping-runner.js';

/** Where the two largest logits are closer than this, another order of additions may choose the other. */
const NOISE = 1e-3;

interface Wanted extends Partial<SamplingParams> {
  prompt: readonly number[];
}

/** Tokens and reason of the end of every choice of stories-7m, and the rows whose input was in flight. */
function complete(backend: Backend, overlap: boolean, requests: readonly Wanted[]) {
  const { program, weights, config, eosTokenIds } = loadModel(STORIES, { dtype: 'float32' });
  const options = {
    ...{ blockSize: 16, numBlocks: 24, maxModelLen: 256 },
    ...{ maxNumSeqs: 8, maxNumBatchedTokens: 32 },
    ...{ enablePrefixCaching: true, schedulingPolicy: 'fcfs' as const },
  };
  const limits = { maxTokens: options.maxNumBatchedTokens, maxSeqs: options.maxNumSeqs };
  const inner = backend.createRunner(program, weights, { ...options, ...limits });
  const overlapping = new OverlappingRunner(inner);
  const core = new EngineCore(overlap ? overlapping : inner, { ...options, eosTokenIds });
  const choices: Record<string, { tokens: number[]; reason?: string }> = {};
  for (const [handle, { prompt, ...params }] of requests.entries()) {
    const complete = samplingParams(params, { vocabSize: config.vocabSize, maxNumSeqs: 8 });
    for (let index = 0; index < complete.n; index++) choices[`${handle}.${index}`] = { tokens: [] };
    core.add({
      ...{ handle, prompt: Int32Array.from(prompt), params: complete },
      ...{ priority: 0, cacheSalt: '', arrival: 1 },
    });
  }
  while (core.hasWork) {
    readDeltas(core.step(), (handle, { index, tokens, finish }) => {
      const choice = choices[`${handle}.${index}`];
      choice.tokens.push(...tokens);
      choice.reason = finish?.reason;
    });
  }
  const { freeBlocks, preemptions } = core.stats();
  assert.equal(freeBlocks, options.numBlocks);
  inner.close();
  return { choices, references: overlapping.references, preemptions };
}

test('The reference executor, overlapped, tells the same stories as step by step, drawn or greedy', () => {
  const { greedy } = storiesGolden();
  const drawn = greedy.slice(0, 6).map(({ prompt }, i) => ({
    prompt,
    maxTokens: 10 + i,
    seed: i,
    temperature: i % 3,
    n: i % 3 === 1 ? 2 : 1,
    presencePenalty: i === 4 ? 0.5 : 0,
  }));
  const overlapped = complete(referenceBackend, true, drawn);
  assert.deepEqual(overlapped.choices, complete(referenceBackend, false, drawn).choices);
  assert.ok(overlapped.references > 30, `${overlapped.references} tokens were never waited for`);
});

test('The CPU executor, overlapped and short of blocks, gives the greedy tokens of the goldens', () => {
  const { greedy } = storiesGolden();
  const requests = greedy.map(({ prompt, tokens }) => {
    return { prompt, temperature: 0, ignoreEos: true, maxTokens: tokens.length };
  });
  const { choices, references, preemptions } = complete(
    createCpuBackend({ threads: 1 }),
    true,
    requests,
  );
  let checked = 0;
  for (const [i, { tokens, margin }] of greedy.entries()) {
    const unsure = margin.findIndex((each) => each < NOISE);
    const sure = unsure === -1 ? tokens.length : unsure;
    assert.deepEqual(choices[`${i}.0`].tokens.slice(0, sure), tokens.slice(0, sure));
    checked += sure;
  }
  assert.ok(checked >= 2 * greedy.length && references > checked / 2);
  assert.ok(preemptions > 0);
});
