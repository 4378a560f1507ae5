import { median } from '../src/bench/statistics.js';

/** Median (least - most). */
export function spread(samples: readonly number[], digits: number): string {
  const text = (value: number) => value.toFixed(digits);
  return `${text(median(samples))} (${text(Math.min(...samples))} - ${text(Math.max(...samples))})`;
}
