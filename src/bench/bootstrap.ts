/**
 * Statistics of samples with bootstrap intervals. Whole requests are drawn, with all their samples:
 * the gaps between tokens of one request are alike, and drawing them singly would make the
 * intervals too narrow (cluster bootstrap; Davison and Hinkley, "Bootstrap Methods and their
 * Application", 1997, section 3.8).
 */
import { SeededRandom } from './seeded-random.js';

/** A 95 % interval. */
export type Interval = [low: number, high: number];

export interface Distribution {
  count: number;
  mean: number;
  std: number;
  /** By percentile, 50, 90, 95, 99. */
  percentiles: Record<number, number>;
  intervals: { mean: Interval; percentiles: Record<number, Interval> };
  /** The 0th to 100th percentile in steps of 0.5: the distribution function for the plots. */
  quantiles: number[];
}

export const PERCENTILES = [50, 90, 95, 99] as const;

/** Additions the intervals of one distribution may cost: about half a second. */
const BUDGET = 2e8;
const MIN_RESAMPLES = 100;
const MAX_RESAMPLES = 1000;
const QUANTILES = Array.from({ length: 201 }, (_, i) => i / 2);

/** `groups` holds the samples of each request. Statistics of nothing are NaN. */
export function distribution(
  groups: readonly (readonly number[])[],
  options: { seed?: number; resamples?: number } = {},
): Distribution {
  const count = groups.reduce((sum, group) => sum + group.length, 0);
  const { values, owners } = sortSamples(groups, count);
  const ones = new Int32Array(groups.length).fill(1);
  const mean = weightedMean(values, owners, ones);
  let squares = 0;
  for (const value of values) squares += (value - mean) ** 2;

  const resamples =
    options.resamples ??
    Math.round(Math.min(MAX_RESAMPLES, Math.max(MIN_RESAMPLES, BUDGET / Math.max(1, count))));
  const random = new SeededRandom(options.seed ?? 0, 3);
  const weights = new Int32Array(groups.length);
  const means: number[] = [];
  const tails: number[][] = PERCENTILES.map(() => []);
  for (let i = 0; i < resamples && count > 0; i++) {
    weights.fill(0);
    for (let j = 0; j < groups.length; j++) weights[random.integer(0, groups.length)]++;
    const drawn = weightedMean(values, owners, weights);
    if (Number.isNaN(drawn)) continue;
    means.push(drawn);
    const points = weightedPercentiles(values, owners, weights, PERCENTILES);
    for (const [k, point] of points.entries()) tails[k].push(point);
  }
  const points = weightedPercentiles(values, owners, ones, PERCENTILES);
  return {
    count,
    mean,
    std: Math.sqrt(squares / count),
    percentiles: Object.fromEntries(PERCENTILES.map((p, k) => [p, points[k]])),
    intervals: {
      mean: middle95(means),
      percentiles: Object.fromEntries(PERCENTILES.map((p, k) => [p, middle95(tails[k])])),
    },
    quantiles: count === 0 ? [] : weightedPercentiles(values, owners, ones, QUANTILES),
  };
}

/** The middle 95 % of bootstrap replicates (percentile method). */
export function middle95(replicates: readonly number[]): Interval {
  const sorted = Float64Array.from(replicates).sort();
  const owners = new Int32Array(sorted.length);
  const [low, high] = weightedPercentiles(sorted, owners, Int32Array.of(1), [2.5, 97.5]);
  return [low, high];
}

/** All samples ascending, and the request each belongs to. */
function sortSamples(groups: readonly (readonly number[])[], count: number) {
  const flat = new Float64Array(count);
  const flatOwners = new Int32Array(count);
  let at = 0;
  for (const [owner, group] of groups.entries()) {
    for (const value of group) {
      flat[at] = value;
      flatOwners[at++] = owner;
    }
  }
  const order = new Uint32Array(count).map((_, i) => i).sort((a, b) => flat[a] - flat[b]);
  return {
    values: Float64Array.from(order, (i) => flat[i]),
    owners: Int32Array.from(order, (i) => flatOwners[i]),
  };
}

function weightedMean(values: Float64Array, owners: Int32Array, weights: Int32Array): number {
  let sum = 0;
  let total = 0;
  for (let i = 0; i < values.length; i++) {
    const weight = weights[owners[i]];
    sum += weight * values[i];
    total += weight;
  }
  return sum / total;
}

/** Percentiles, ascending, of the samples repeated as often as their owner was drawn. */
function weightedPercentiles(
  values: Float64Array,
  owners: Int32Array,
  weights: Int32Array,
  percentiles: readonly number[],
): number[] {
  let total = 0;
  for (let i = 0; i < values.length; i++) total += weights[owners[i]];
  if (total === 0) return percentiles.map(() => Number.NaN);
  let at = -1;
  let passed = 0;
  /** The value at `rank` of the repeated samples; ranks must not descend. */
  const valueAt = (rank: number) => {
    while (passed <= rank) passed += weights[owners[++at]];
    return values[at];
  };
  return percentiles.map((p) => {
    const rank = (p / 100) * (total - 1);
    const below = Math.floor(rank);
    const low = valueAt(below);
    if (rank === below) return low;
    // The next rank may be past this sample; looking there must not move on for good.
    const [keptAt, keptPassed] = [at, passed];
    const high = valueAt(below + 1);
    [at, passed] = [keptAt, keptPassed];
    return low + (high - low) * (rank - below);
  });
}
