import assert from 'node:assert/strict';
import { test } from 'node:test';
import { InvalidParameterError, ModelError } from '../../src/errors.js';
import { rowLoss } from '../../src/quant/divergence.js';
import type { Evaluation } from '../../src/quant/evaluate.js';
import { parseQualityLimit, requireQuality } from '../../src/quant/quality-limit.js';

test('The divergence of two distributions is the sum by its definition', () => {
  const p = [0.5, 0.3, 0.2];
  const q = [0.2, 0.2, 0.6];
  const logits = (of: readonly number[], shift: number) =>
    Float32Array.from(of, (x) => Math.log(x) + shift);
  const { kl, base, model, sameTop } = rowLoss(logits(p, 3), logits(q, -40), 1);
  const expected = p.reduce((sum, x, i) => sum + x * Math.log(x / q[i]), 0);
  assert.ok(Math.abs(kl - expected) < 1e-5, `${kl} instead of ${expected}`);
  assert.ok(Math.abs(base + Math.log(0.3)) < 1e-5);
  assert.ok(Math.abs(model + Math.log(0.2)) < 1e-5);
  assert.equal(sameTop, false);
  const same = rowLoss(logits(p, 0), logits(p, 0), 0);
  assert.equal(same.kl, 0);
  assert.equal(same.sameTop, true);
});

test('A limit is a divergence or a rise in perplexity, and anything else is refused', () => {
  assert.deepEqual(parseQualityLimit('kl=0.02'), { measure: 'kl', most: 0.02 });
  assert.deepEqual(parseQualityLimit('kl=2e-3'), { measure: 'kl', most: 0.002 });
  assert.deepEqual(parseQualityLimit('ppl=1.5%'), { measure: 'ppl', most: 0.015 });
  for (const text of ['', '0.02', 'kl=', 'kl=-1', 'ppl=1', 'ppl=%', 'kl=0.1%', 'loss=1']) {
    assert.throws(() => parseQualityLimit(text), InvalidParameterError, text);
  }
});

test('A loss above the limit is refused with the number that was measured', () => {
  const estimate = (value: number) => ({
    value,
    interval: [value * 0.9, value * 1.1] as [number, number],
  });
  const evaluation = {
    klMean: estimate(0.03),
    perplexityIncrease: estimate(0.012),
    tokens: 100,
  } as Evaluation;
  const check = (limit: string, measured: Evaluation = evaluation) =>
    requireQuality(parseQualityLimit(limit), measured);
  check('kl=0.03');
  check('ppl=1.2%');
  assert.throws(
    () => check('kl=0.02'),
    (error) => error instanceof ModelError && /0\.0300/.test(error.message),
  );
  assert.throws(() => check('ppl=1%'), /1\.20 %.*1\.08 % to 1\.32 %/);
  const broken = { ...evaluation, klMean: estimate(Number.NaN) };
  assert.throws(() => check('kl=1', broken), ModelError);
});
