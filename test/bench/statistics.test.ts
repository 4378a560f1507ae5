import assert from 'node:assert/strict';
import { test } from 'node:test';
import { distribution, middle95 } from '../../src/bench/bootstrap.js';
import { rises } from '../../src/bench/over-saturation.js';
import { SeededRandom } from '../../src/bench/seeded-random.js';
import { mean, percentile } from '../../src/bench/statistics.js';

test('Percentiles interpolate between ranks as numpy does', () => {
  const samples = [15, 20, 35, 40, 50];
  // numpy.percentile([15, 20, 35, 40, 50], [0, 25, 40, 50, 90, 99, 100])
  const expected = { 0: 15, 25: 20, 40: 29, 50: 35, 90: 46, 99: 49.6, 100: 50 };
  for (const [p, value] of Object.entries(expected)) {
    assert.ok(Math.abs(percentile(samples, Number(p)) - value) < 1e-9, `p${p}`);
  }
  assert.ok(Number.isNaN(percentile([], 50)));
});

test('A distribution has the statistics of its samples, however they are grouped', () => {
  const random = new SeededRandom(1);
  const groups = Array.from({ length: 57 }, () =>
    Array.from({ length: random.integer(0, 9) }, () => random.normal()),
  );
  const flat = groups.flat();
  const result = distribution(groups);
  assert.equal(result.count, flat.length);
  assert.ok(Math.abs(result.mean - mean(flat)) < 1e-12);
  const variance = mean(flat.map((value) => (value - mean(flat)) ** 2));
  assert.ok(Math.abs(result.std - Math.sqrt(variance)) < 1e-12);
  for (const p of [50, 90, 95, 99]) {
    assert.ok(Math.abs(result.percentiles[p] - percentile(flat, p)) < 1e-12);
  }
  assert.equal(result.quantiles.length, 201);
  for (let i = 0; i <= 200; i++) {
    assert.ok(Math.abs(result.quantiles[i] - percentile(flat, i / 2)) < 1e-12);
  }
});

test('No samples give NaN and no quantiles', () => {
  const result = distribution([]);
  assert.ok(Number.isNaN(result.mean) && Number.isNaN(result.percentiles[99]));
  assert.ok(result.intervals.mean.every(Number.isNaN));
  assert.deepEqual(result.quantiles, []);
});

test('Intervals are the same for the same seed', () => {
  const groups = [[1], [5], [2], [8], [3]];
  assert.deepEqual(distribution(groups, { seed: 4 }), distribution(groups, { seed: 4 }));
});

test('95 % intervals of the mean and the median hold the truth about 95 times in 100', () => {
  const random = new SeededRandom(2);
  let meanHeld = 0;
  let medianHeld = 0;
  const trials = 300;
  for (let trial = 0; trial < trials; trial++) {
    const groups = Array.from({ length: 60 }, () => [random.exponential()]);
    const { intervals } = distribution(groups, { resamples: 200, seed: trial });
    if (intervals.mean[0] <= 1 && intervals.mean[1] >= 1) meanHeld++;
    const [low, high] = intervals.percentiles[50];
    if (low <= Math.LN2 && high >= Math.LN2) medianHeld++;
  }
  for (const held of [meanHeld, medianHeld]) {
    assert.ok(held / trials > 0.89 && held / trials < 0.99, `${held} of ${trials}`);
  }
});

test('Gaps that are alike within a request widen the interval', () => {
  const random = new SeededRandom(3);
  const alike = Array.from({ length: 50 }, () => new Array(40).fill(random.normal()));
  const mixed = Array.from({ length: 50 }, () => Array.from({ length: 40 }, () => random.normal()));
  const width = (groups: number[][]) => {
    const [low, high] = distribution(groups).intervals.mean;
    return high - low;
  };
  // 50 independent values against 2,000: the error is sqrt(40) = 6.3 times as large.
  const ratio = width(alike) / width(mixed);
  assert.ok(ratio > 4 && ratio < 9, `${ratio}`);
});

test('The middle 95 % of 0 .. 1000 is 25 .. 975', () => {
  const [low, high] = middle95(Array.from({ length: 1001 }, (_, i) => i));
  assert.ok(Math.abs(low - 25) < 1e-9 && Math.abs(high - 975) < 1e-9);
});

test('A growing queue is told from a busy one that fluctuates', () => {
  let falseAlarms = 0;
  let missed = 0;
  for (let seed = 0; seed < 100; seed++) {
    if (rises(queueLengths(0.8, seed))) falseAlarms++;
    if (!rises(queueLengths(1.5, seed))) missed++;
  }
  assert.ok(falseAlarms <= 3, `${falseAlarms} false alarms`);
  assert.ok(missed <= 5, `${missed} missed`);
  assert.equal(rises([1, 2, 3, 4, 5]), false, 'too few samples tell nothing');
  assert.equal(rises(new Array(100).fill(7)), false);
});

/** Length of an M/M/1 queue seen at equal intervals, after a while at its load where it has one. */
function queueLengths(load: number, seed: number): number[] {
  const random = new SeededRandom(seed);
  const samples: number[] = [];
  let length = load < 1 ? 4 : 0;
  for (let i = 0; i < 200; i++) {
    for (let event = 0; event < 20; event++) {
      if (random.next() < load / (1 + load)) length++;
      else if (length > 0) length--;
    }
    samples.push(length);
  }
  return samples;
}
