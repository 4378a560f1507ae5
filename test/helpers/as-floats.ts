/** Quantized weights as the floats they stand for, so that formats can be checked without rounding. */
import type { LoadedModel } from '../../src/model/load-model.js';
import { readTensor } from '../../src/model/read-tensor.js';

export function asFloats(model: LoadedModel): LoadedModel {
  const { weights } = model;
  return {
    ...model,
    weights: {
      ...weights,
      storage: () => ({ kind: 'float' }),
      tensor(name) {
        const tensor = weights.tensor(name);
        if (tensor.kind !== 'quantized') return tensor;
        return { kind: 'computed', shape: tensor.shape, read: () => readTensor(tensor) };
      },
    },
  };
}
