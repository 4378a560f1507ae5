import assert from 'node:assert/strict';
import { test } from 'node:test';
import { type Arrivals, arrivalTimes } from '../../src/bench/arrivals.js';
import { SeededRandom } from '../../src/bench/seeded-random.js';
import { mean } from '../../src/bench/statistics.js';

const COUNT = 20_000;

const gaps = (arrivals: Arrivals, seed = 1) => {
  const times = arrivalTimes(COUNT, arrivals, new SeededRandom(seed));
  return times.map((time, i) => time - (times[i - 1] ?? 0));
};

const variation = (values: number[]) => {
  const middle = mean(values);
  return Math.sqrt(mean(values.map((value) => (value - middle) ** 2))) / middle;
};

test('The same seed gives the same times, another seed others', () => {
  const arrivals = { rate: 10, burstiness: 0.5 };
  assert.deepEqual(gaps(arrivals, 7), gaps(arrivals, 7));
  assert.notDeepEqual(gaps(arrivals, 7), gaps(arrivals, 8));
});

test('Gaps have the mean of the rate and the variation 1 / sqrt(burstiness)', () => {
  for (const burstiness of [0.25, 0.5, 1, 4]) {
    const drawn = gaps({ rate: 50, burstiness });
    // The error of a mean of 20,000 gaps is at most 2 / sqrt(20,000) = 1.4 %; three of them.
    assert.ok(Math.abs(mean(drawn) / 20 - 1) < 0.045, `mean ${mean(drawn)} at ${burstiness}`);
    const expected = 1 / Math.sqrt(burstiness);
    assert.ok(Math.abs(variation(drawn) / expected - 1) < 0.06, `variation at ${burstiness}`);
  }
});

test('Poisson gaps are exponential: 1 - 1/e of them are below the mean', () => {
  const below = gaps({ rate: 1000, burstiness: 1 }).filter((gap) => gap < 1).length / COUNT;
  assert.ok(Math.abs(below - (1 - Math.exp(-1))) < 0.012, `${below}`);
});

test('An infinite burstiness is a constant rate', () => {
  for (const gap of gaps({ rate: 200, burstiness: Number.POSITIVE_INFINITY })) {
    assert.ok(Math.abs(gap - 5) < 1e-6);
  }
});

test('Ramps begin and end at their rates', () => {
  for (const strategy of ['linear', 'exponential'] as const) {
    const ramp = { strategy, startRps: 10, endRps: 1000 };
    const drawn = gaps({ rate: Number.NaN, burstiness: Number.POSITIVE_INFINITY, ramp });
    assert.ok(Math.abs(drawn[0] - 100) < 1e-6);
    assert.ok(Math.abs(drawn[COUNT - 1] - 1) < 1e-6);
    const halfway = strategy === 'linear' ? 1000 / 505 : 10;
    assert.ok(Math.abs(drawn[COUNT / 2] / halfway - 1) < 0.01, strategy);
  }
});

test('A burstiness of zero is refused by name', () => {
  assert.throws(() => gaps({ rate: 1, burstiness: 0 }), /--burstiness/);
});
