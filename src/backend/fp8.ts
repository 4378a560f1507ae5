/** Matrices in 8-bit floats where there are no kernels for them. */
import { InvalidParameterError } from '../errors.js';
import type { Weight } from '../model/program.js';
import type { WeightSource } from '../model/weights.js';

/** Throws InvalidParameterError that names the weight. */
export function refuseFp8({ name }: Pick<Weight, 'name'>, reason: string): never {
  throw new InvalidParameterError(`${name} cannot be fp8: ${reason}`, { param: 'quantization' });
}

/**
 * The source for an executor without 8-bit floats: those of the checkpoint are floats, and what was to
 * be rounded to them is refused.
 */
export function withoutFp8(source: WeightSource): WeightSource {
  return {
    dtype: source.dtype,
    tensor: (name) => source.tensor(name),
    storage(weight) {
      const storage = source.storage(weight);
      if (storage.kind !== 'fp8') return storage;
      if (storage.unasked) return { kind: 'float' };
      return refuseFp8(
        weight,
        '8-bit floats are of device cuda; int8 is as small, and the CPU computes in it',
      );
    },
  };
}
