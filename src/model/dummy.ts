/** Random weights from a config alone, for measurements and tests: `--load-format dummy`. */
import { ModelError } from '../errors.js';
import type { Program, Weight } from './program.js';
import { type DType, type DummyTensor, hash32, type WeightSource } from './weights.js';

/**
 * Weights that keep activations near 1: linears of standard deviation about `1 / sqrt(inputs)`,
 * small embeddings and biases, norms around 1. Equal seeds give equal models.
 */
export function dummyWeights(program: Program, dtype: DType, seed: number): WeightSource {
  const embeddings = new Set(
    program.ops.filter((op) => op.kind === 'embed').map(({ weight }) => weight),
  );
  const norms = new Set(
    program.ops.filter((op) => op.kind === 'rms_norm').map(({ weight }) => weight),
  );
  const tensors = new Map<string, DummyTensor>();
  for (const weight of program.weights) {
    const mean = norms.has(weight.id) ? 1 : 0;
    const scale = embeddings.has(weight.id) ? 2 ** -5 : weightScale(weight);
    for (const { tensor, shape } of weight.parts) {
      const tensorSeed = hash32(hashText(tensor) ^ hash32(seed));
      tensors.set(tensor, { kind: 'dummy', seed: tensorSeed, mean, scale, dtype, shape });
    }
  }
  return {
    dtype,
    storage: () => ({ kind: 'float' }),
    tensor(name) {
      const tensor = tensors.get(name);
      if (tensor !== undefined) return tensor;
      throw new ModelError(`The program has no tensor ${name}`);
    },
  };
}

/** A power of two: a uniform variable in [-s, s) has the standard deviation s / sqrt(3). */
function weightScale(weight: Weight): number {
  if (weight.shape.length === 1) return 2 ** -5;
  return 2 ** Math.round(Math.log2(Math.sqrt(3 / weight.shape.at(-1)!)));
}

/** FNV-1a over the UTF-16 code units. */
function hashText(text: string): number {
  let hash = 0x811c9dc5;
  for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
  return hash;
}
