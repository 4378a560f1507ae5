/** Group sizes: what formats allow, in terms of the sizes executors have kernels for. */
import { ModelError } from '../../errors.js';
import type { IntegerStorage } from '../weights.js';

/**
 * The group to store with: the largest of 128, 64 and 32 that divides the format's own group, so
 * that scales are repeated and nothing is lost. One scale a row stays so for int8.
 */
export function storedGroup(
  where: string,
  bits: 4 | 8,
  groupSize: number,
  width: number,
): IntegerStorage['group'] {
  const wholeRow = groupSize >= width;
  if (wholeRow && bits === 8) return 0;
  const group = ([128, 64, 32] as const).find((size) => groupSize % size === 0);
  if (group !== undefined) return group;
  // Of a whole row any cut will do: the last group of a row may be shorter.
  if (wholeRow) return 32;
  throw new ModelError(`${where}: group_size is ${groupSize}, expected -1 or a multiple of 32`);
}

/** Repeats `[rows, groups of groupSize]` so that each stands for `group` columns. */
export function regroup(
  values: Float32Array,
  rows: number,
  width: number,
  groupSize: number,
  group: number,
): Float32Array {
  const size = group === 0 ? width : group;
  if (size === groupSize) return values;
  const from = Math.ceil(width / groupSize);
  const to = Math.ceil(width / size);
  const out = new Float32Array(rows * to);
  for (let row = 0; row < rows; row++) {
    for (let g = 0; g < to; g++) {
      out[row * to + g] = values[row * from + Math.floor((g * size) / groupSize)];
    }
  }
  return out;
}

/**
 * Act-order: `order[k]` is the group of input column k. The columns, group after group; undefined
 * where they stand so already. Throws `ModelError` unless every group has `groupSize` columns, the
 * last may have fewer.
 */
export function columnsByGroup(
  name: string,
  order: Int32Array,
  groupSize: number,
): Int32Array | undefined {
  const groups = Math.ceil(order.length / groupSize);
  const counts = new Int32Array(groups);
  for (const group of order) {
    if (group < 0 || group >= groups) {
      throw new ModelError(`${name} has group ${group}, expected 0 to ${groups - 1}`);
    }
    counts[group]++;
  }
  counts.forEach((count, group) => {
    const expected = Math.min(groupSize, order.length - group * groupSize);
    if (count !== expected) {
      throw new ModelError(`${name}: group ${group} has ${count} columns, expected ${expected}`);
    }
  });
  if (order.every((group, k) => group === Math.floor(k / groupSize))) return undefined;
  const next = Int32Array.from({ length: groups }, (_, group) => group * groupSize);
  const columns = new Int32Array(order.length);
  order.forEach((group, k) => {
    columns[next[group]++] = k;
  });
  return columns;
}
