import assert from 'node:assert/strict';
import { test } from 'node:test';
import { samplingParams } from '../../src/engine/sampling-params.js';
import { InvalidParameterError } from '../../src/errors.js';

const LIMITS = { vocabSize: 100, maxNumSeqs: 4 };

test('Missing parameters get the defaults of vLLM', () => {
  const params = samplingParams({ topK: undefined, maxTokens: 5 }, LIMITS);
  assert.equal(params.temperature, 1);
  assert.equal(params.topP, 1);
  assert.equal(params.topK, 0);
  assert.equal(params.n, 1);
  assert.equal(params.maxTokens, 5);
  assert.equal(samplingParams({}, LIMITS).maxTokens, undefined);
});

test('A wrong parameter is named as an HTTP client writes it, with what was expected and what came', () => {
  const cases: [object, string][] = [
    [{ maxTokens: 0 }, 'max_tokens'],
    [{ maxTokens: 1.5 }, 'max_tokens'],
    [{ n: 5 }, 'n'],
    [{ temperature: -1 }, 'temperature'],
    [{ temperature: 1e39 }, 'temperature'],
    [{ temperature: Number.NaN }, 'temperature'],
    [{ topP: 0 }, 'top_p'],
    [{ topP: 1e-60 }, 'top_p'],
    [{ topP: 1.1 }, 'top_p'],
    [{ topK: -1 }, 'top_k'],
    [{ minP: 2 }, 'min_p'],
    [{ repetitionPenalty: 0 }, 'repetition_penalty'],
    [{ presencePenalty: 3 }, 'presence_penalty'],
    [{ frequencyPenalty: -3 }, 'frequency_penalty'],
    [{ logitBias: new Map([[100, 1]]) }, 'logit_bias'],
    [{ logitBias: new Map([[1, 101]]) }, 'logit_bias'],
    [{ seed: 0.5 }, 'seed'],
    [{ stop: [''] }, 'stop'],
    [{ stopTokenIds: [-1] }, 'stop_token_ids'],
    [{ minTokens: 6, maxTokens: 5 }, 'min_tokens'],
    [{ ignoreEos: 1 }, 'ignore_eos'],
    [{ logprobs: 21 }, 'logprobs'],
    [{ promptLogprobs: -1 }, 'prompt_logprobs'],
  ];
  for (const [given, param] of cases) {
    assert.throws(
      () => samplingParams(given, LIMITS),
      (error) => error instanceof InvalidParameterError && error.param === param,
      `${JSON.stringify(given)} names ${param}`,
    );
  }
  assert.throws(() => samplingParams({ maxTokens: 0 }, LIMITS), {
    message: /^Expected integer between 1 and \d+ for max_tokens but received 0 of type number$/,
  });
});

test('A parameter of an unknown name is refused with the names there are', () => {
  assert.throws(
    () => samplingParams({ max_tokens: 5 } as object, LIMITS),
    (error) =>
      error instanceof InvalidParameterError && /known are .*maxTokens/.test(error.message),
  );
});
