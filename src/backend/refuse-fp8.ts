/** Where a matrix is to be kept in fp8 and cannot. */
import { InvalidParameterError } from '../errors.js';
import type { Weight } from '../model/program.js';

/** Throws InvalidParameterError that names the weight. */
export function refuseFp8({ name }: Pick<Weight, 'name'>, reason: string): never {
  throw new InvalidParameterError(`${name} cannot be fp8: ${reason}`, { param: 'quantization' });
}

export const FP8_IS_OF_CUDA =
  '8-bit floats are of device cuda; int8 is as small, and the CPU computes in it';
