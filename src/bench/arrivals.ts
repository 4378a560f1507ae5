/** When requests arrive: pure functions from a seed to times in ms from the start, ascending. */
import { InvalidParameterError } from '../errors.js';
import type { SeededRandom } from './seeded-random.js';

/** A change of rate over the requests, as `--ramp-up-*` of `vllm bench serve`. */
export interface Ramp {
  strategy: 'linear' | 'exponential';
  /** Requests a second at the first and at the last request. */
  startRps: number;
  endRps: number;
}

export interface Arrivals {
  /** Requests a second; Infinity sends all at once. */
  rate: number;
  /**
   * Shape of the gamma distribution of the gaps: 1 is a Poisson process, smaller is burstier (the
   * gaps' coefficient of variation is 1 / sqrt(burstiness)), Infinity is a constant rate.
   */
  burstiness: number;
  ramp?: Ramp;
}

/** The times of `count` requests. The first arrives one gap after the start. */
export function arrivalTimes(count: number, arrivals: Arrivals, random: SeededRandom): number[] {
  const { rate, burstiness, ramp } = arrivals;
  if (!(burstiness > 0)) {
    throw InvalidParameterError.expected('a number above 0 or inf', '--burstiness', burstiness);
  }
  const times: number[] = [];
  let time = 0;
  for (let i = 0; i < count; i++) {
    const current = ramp ? rampRate(ramp, count > 1 ? i / (count - 1) : 0) : rate;
    time += (gap(burstiness, random) / current) * 1000;
    times.push(time);
  }
  return times;
}

/** A gap with mean 1. */
function gap(burstiness: number, random: SeededRandom): number {
  if (burstiness === Number.POSITIVE_INFINITY) return 1;
  if (burstiness === 1) return random.exponential();
  return random.gamma(burstiness) / burstiness;
}

/** Requests a second when the share `progress` of the requests has been sent. */
function rampRate({ strategy, startRps, endRps }: Ramp, progress: number): number {
  return strategy === 'linear'
    ? startRps + (endRps - startRps) * progress
    : startRps * (endRps / startRps) ** progress;
}
