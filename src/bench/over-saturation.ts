/**
 * Tells a queue that grows without bound from one that fluctuates: in the former the number of
 * requests in flight and the time to first token both rise, significantly and by much.
 *
 * Neighbouring samples of a queue are alike, so a regression on them would find significance
 * everywhere. They are first averaged in a few equal stretches (batch means; Law, "Simulation
 * Modeling and Analysis", chapter 9), and the line is fitted to those.
 */

const STRETCHES = 10;
/** One-sided 0.5 % quantile of Student's t with 8 degrees of freedom. */
const CRITICAL_T = 3.355;
/** The fitted line must end at this multiple of its middle; it would be 2 for a queue from zero. */
const MIN_GROWTH = 1.4;
/** Fewer samples than this tell nothing. */
const MIN_SAMPLES = 2 * STRETCHES;

/**
 * Whether the samples, taken at equal intervals, rise significantly and by much: by a good part of
 * their mean, and by at least `least` from the first to the last.
 */
export function rises(samples: readonly number[], least = 0): boolean {
  if (samples.length < MIN_SAMPLES) return false;
  const means: number[] = [];
  for (let i = 0; i < STRETCHES; i++) {
    const from = Math.floor((i * samples.length) / STRETCHES);
    const to = Math.floor(((i + 1) * samples.length) / STRETCHES);
    let sum = 0;
    for (let j = from; j < to; j++) sum += samples[j];
    means.push(sum / (to - from));
  }
  const { slope, error, middle } = fitLine(means);
  const rise = slope * (STRETCHES - 1);
  const end = middle + rise / 2;
  return slope > CRITICAL_T * error && end > MIN_GROWTH * middle && rise >= least;
}

/** Least squares of values at 0, 1, 2, ...; `error` is the slope's standard error. */
function fitLine(values: readonly number[]) {
  const n = values.length;
  const centre = (n - 1) / 2;
  const middle = values.reduce((sum, value) => sum + value, 0) / n;
  let xx = 0;
  let xy = 0;
  for (let x = 0; x < n; x++) {
    xx += (x - centre) ** 2;
    xy += (x - centre) * (values[x] - middle);
  }
  const slope = xy / xx;
  let residual = 0;
  for (let x = 0; x < n; x++) residual += (values[x] - middle - slope * (x - centre)) ** 2;
  return { slope, error: Math.sqrt(residual / (n - 2) / xx), middle };
}
