/** What an executor in the machine's memory allocates besides the KV cache, before it does. */
import type { Program, View } from '../model/program.js';
import { BYTES, storedBytes, type WeightSource } from '../model/weights.js';
import type { FixedBytes } from './memory-plan.js';

export function estimateFixedBytes(
  program: Program,
  weights: Pick<WeightSource, 'dtype' | 'storage'>,
  maxTokens: number,
): FixedBytes {
  return {
    weights: weightBytes(program, weights),
    workspace: workspaceBytes(program, maxTokens),
    reserve: 0,
  };
}

/** Matrices as the source wants them; norms and biases in float32, as every executor keeps them. */
function weightBytes(program: Program, source: Pick<WeightSource, 'dtype' | 'storage'>): number {
  return program.weights.reduce((sum, weight) => {
    const { shape } = weight;
    const elements = shape.reduce((product, size) => product * size, 1);
    if (shape.length === 1) return sum + elements * BYTES.float32;
    return sum + storedBytes(source.storage(weight), source.dtype, elements, shape.at(-1)!);
  }, 0);
}

/** Wanted rows an executor has in memory at once. */
const ROW_TILE = 64;

/**
 * An upper estimate of what the activations take: the most values that live at the same time, in
 * float32 and half as much again for the executor's own forms of them.
 */
function workspaceBytes(program: Program, maxTokens: number): number {
  const tile = Math.min(ROW_TILE, maxTokens);
  const elements = (value: number) => {
    // The logits are counted by themselves.
    if (value === program.logits.value) return 0;
    const { rows, width } = program.values[value];
    return width * (rows === 'T' ? maxTokens : tile);
  };
  const last = new Map<number, number>();
  program.ops.forEach((op, index) => {
    for (const view of Object.values(op) as (View | undefined)[]) {
      if (typeof view !== 'object') continue;
      // Every tile of wanted rows reads what tokens left.
      const again = op.kind === 'gather' && view.value === op.x.value;
      const until = again ? program.ops.length : index;
      last.set(view.value, Math.max(until, last.get(view.value) ?? 0));
    }
  });
  let live = 0;
  let most = 0;
  const begun = new Set<number>();
  program.ops.forEach((op, index) => {
    live += elements(op.out.value);
    begun.add(op.out.value);
    most = Math.max(most, live);
    for (const value of begun) {
      if (last.get(value) !== index) continue;
      live -= elements(value);
      begun.delete(value);
    }
  });
  const logits = program.vocabSize * tile;
  return Math.ceil(most * 4 * 1.5) + 2 * logits * 4;
}
