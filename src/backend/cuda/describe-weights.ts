/** What the native code is told of each weight: where its numbers come from. */
import { InvalidParameterError } from '../../errors.js';
import { dequantize } from '../../model/dequantize.js';
import type { TensorRef, WeightSource } from '../../model/weights.js';
import type { LoweredWeight } from './lower.js';
import type { NativePart, NativeWeight } from './native.js';

/** Throws InvalidParameterError where floats are to be kept as integers: there are no kernels for it. */
export function describeWeight(
  { weight, layout }: LoweredWeight,
  source: WeightSource,
): NativeWeight {
  const tensors = weight.parts.map(({ tensor }) => source.tensor(tensor));
  const storage = source.storage(weight);
  // What the checkpoint has quantized itself is widened.
  const asked = !tensors.some(({ kind }) => kind === 'quantized');
  if (layout === 'matrix' && storage.kind === 'integer' && asked) {
    throw new InvalidParameterError(
      `Device cuda computes with float weights only: quantization to int${storage.bits} is not ` +
        'available there. Leave quantization out, or use device cpu',
      { param: 'quantization' },
    );
  }
  const { shape } = weight;
  const [experts, n, k] = shape.length === 3 ? shape : [1, shape[0], shape[1] ?? 1];
  return { name: weight.name, layout, n, k, experts, parts: tensors.map(describePart) };
}

function describePart(tensor: TensorRef): NativePart {
  const elements = tensor.shape.reduce((product, size) => product * size, 1);
  switch (tensor.kind) {
    case 'file': {
      const { kind, path, offset, dtype } = tensor;
      return { kind, elements, path, offset, dtype };
    }
    case 'dummy': {
      const { kind, seed, mean, scale } = tensor;
      return { kind, elements, seed, mean, scale };
    }
    case 'computed':
      return { kind: 'computed', elements, read: () => tensor.read() };
    case 'quantized':
      return { kind: 'computed', elements, read: () => dequantize(tensor) };
  }
}
