import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { referenceBackend } from '../../../src/backend/reference/reference.js';
import { loadModel } from '../../../src/model/load-model.js';
import {
  compareGreedy,
  GOLDENS,
  negativeLogLikelihood,
  STORIES,
  storiesGolden,
} from '../../helpers/goldens.js';

// Two of six continuations, and two stories instead of the whole perplexity: the rest would take
// this executor minutes. The cpu executor's tests have all of it.

test('The reference executor continues stories-7m as transformers does', () => {
  const model = loadModel(STORIES, { dtype: 'float32' });
  const greedy = storiesGolden().greedy.slice(0, 2);
  const compared = compareGreedy(referenceBackend, model, greedy, 1e-3);
  assert.equal(
    compared,
    greedy.reduce((sum, { tokens }) => sum + tokens.length, 0),
  );
});

test('The reference executor finds held-out stories as likely as transformers does', () => {
  const model = loadModel(STORIES, { dtype: 'float32' });
  const stories: { ids: number[]; nll: number }[] = JSON.parse(
    readFileSync(join(GOLDENS, 'stories-7m-nll.json'), 'utf8'),
  );
  const { sum, tokens } = negativeLogLikelihood(
    referenceBackend,
    model,
    stories.map(({ ids }) => ids),
  );
  assert.equal(
    tokens,
    stories.reduce((count, { ids }) => count + ids.length - 1, 0),
  );
  const expected = stories.reduce((total, { nll }) => total + nll, 0);
  // Rounding in another order: far below the 0.2% that the whole perplexity may differ.
  assert.ok(Math.abs(sum / expected - 1) < 1e-5, `${sum} instead of ${expected}`);
});
