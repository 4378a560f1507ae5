/** How far two executors may differ. */
import type { Program } from '../../src/model/program.js';
import type { DType } from '../../src/model/weights.js';

/** Root of the mean squared difference over that of the expected numbers. */
export function relativeRms(computed: Float32Array[], expected: Float32Array[]): number {
  let difference = 0;
  let signal = 0;
  expected.forEach((numbers, n) => {
    numbers.forEach((value, i) => {
      difference += (computed[n][i] - value) ** 2;
      signal += value ** 2;
    });
  });
  return Math.sqrt(difference / signal);
}

/**
 * Both executors start from the same rounded weights. A number rounded to a format with p bits of
 * precision is off by at most the share 2^-p. Each linear rounds its inputs once, each attention
 * its queries, keys, values and weights; the bound is all of them adding up, none cancelling.
 * Float32 rounds each of some hundred sums instead.
 */
export function roundingBound(program: Program, dtype: DType): number {
  if (dtype === 'float32') return 1e-5;
  const roundings = program.ops.reduce(
    (sum, { kind }) => sum + (kind === 'attention' ? 4 : kind === 'linear' ? 1 : 0),
    0,
  );
  const precision = dtype === 'bfloat16' ? 8 : 11;
  return roundings * 2 ** -precision;
}
