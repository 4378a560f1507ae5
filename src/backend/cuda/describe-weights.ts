/** What the native code is told of each weight: how it is kept and where its numbers come from. */
import { InvalidParameterError } from '../../errors.js';
import { schemeName } from '../../model/quantization.js';
import { readTensor } from '../../model/read-tensor.js';
import type { DType, IntegerStorage, TensorRef, WeightSource } from '../../model/weights.js';
import { refuseFp8 } from '../fp8.js';
import type { LoweredProgram, LoweredWeight } from './lower.js';
import type { NativePart, NativeWeight } from './native.js';

/** Products of 8-bit floats on a GPU. */
export interface Fp8Support {
  /** Why there are none. */
  refused?: string;
  /** They are sure to be there, so that a checkpoint can rely on them unasked. */
  certain: boolean;
}

/**
 * Throws InvalidParameterError where an option asks for a matrix to be kept in a way there are no kernels
 * for; what only the checkpoint has so, or a rule chose, is floats there.
 */
export function describeWeights(
  program: LoweredProgram,
  source: WeightSource,
  support: Fp8Support,
): NativeWeight[] {
  const uses = usesOf(program);
  return program.weights.map((weight, id) => describeWeight(weight, uses[id], source, support));
}

/** What matrices are kept in, such as "int4-g128 and bfloat16". */
export function describeStorage(weights: readonly NativeWeight[], dtype: DType): string {
  const names = weights.flatMap(({ int4, fp8 }) => {
    if (fp8) return 'fp8';
    if (!int4) return [];
    return schemeName({ kind: 'integer', bits: 4, group: int4.group, symmetric: !int4.offsets });
  });
  return [...new Set(names), dtype].join(' and ');
}

/** What reads a weight: only products of one matrix have kernels for 4 bits. */
interface Use {
  linear: boolean;
  other: boolean;
}

function usesOf({ tokenOps, rowOps, weights }: LoweredProgram): Use[] {
  const uses = weights.map(() => ({ linear: false, other: false }));
  for (const op of [...tokenOps, ...rowOps]) {
    if (op.kind === 'linear') {
      uses[op.weight].linear = true;
    } else if (op.kind === 'embed') {
      uses[op.weight].other = true;
    } else if (op.kind === 'moe') {
      uses[op.gateUp].other = uses[op.down].other = true;
    }
  }
  return uses;
}

function describeWeight(
  { weight, layout }: LoweredWeight,
  use: Use,
  source: WeightSource,
  support: Fp8Support,
): NativeWeight {
  const tensors = weight.parts.map(({ tensor }) => source.tensor(tensor));
  const { shape } = weight;
  const [experts, n, k] = shape.length === 3 ? shape : [1, shape[0], shape[1] ?? 1];
  const described = { name: weight.name, layout, n, k, experts, fp8: false };
  const storage = source.storage(weight);
  if (layout === 'matrix' && storage.kind === 'fp8') {
    const reason = support.refused ?? fp8Refusal(use, n, k, source);
    // Not every cuBLASLt has products of fp8 with float16 results.
    const certain = support.certain && source.dtype === 'bfloat16';
    if (reason === undefined && (certain || !storage.unasked)) {
      return { ...described, fp8: true, parts: tensors.map(describeRows) };
    }
    if (reason !== undefined && !storage.unasked) refuseFp8(weight, reason);
  }
  if (layout === 'matrix' && storage.kind === 'integer') {
    const reason = refusal(storage, use, k, source);
    if (reason === undefined) {
      const { group, symmetric } = storage;
      const columns = tensors.find((tensor) => tensor.kind === 'quantized')?.columns;
      const int4 = { group: group as 32 | 64 | 128, offsets: !symmetric, columns };
      return { ...described, int4, parts: tensors.map(describeCodes) };
    }
    if (!storage.unasked) {
      throw new InvalidParameterError(
        `${weight.name} cannot be ${schemeName(storage)}: ${reason}`,
        { param: 'quantization' },
      );
    }
  }
  return { ...described, parts: tensors.map(describePart) };
}

function refusal(
  { bits, group }: IntegerStorage,
  { linear, other }: Use,
  k: number,
  { dtype }: WeightSource,
): string | undefined {
  if (bits === 8) {
    return 'device cuda has no kernels for int8 weights. Take fp8 or int4, leave quantization out, or use device cpu';
  }
  if (dtype === 'float32') {
    return 'on device cuda int4 weights are for dtype float16 or bfloat16';
  }
  if (group === 0) {
    return 'on device cuda int4 weights have groups of 32, 64 or 128 columns';
  }
  if (!linear || other) {
    return 'on device cuda embeddings and experts are floats. Name them in quantization-overrides with float';
  }
  if (k % 8 !== 0) {
    return `on device cuda int4 weights have a multiple of 8 inputs, not ${k}. Name it in quantization-overrides with float`;
  }
  return undefined;
}

/** native/cuda/fp8.h has the sizes. */
function fp8Refusal(
  { linear, other }: Use,
  n: number,
  k: number,
  { dtype }: WeightSource,
): string | undefined {
  if (dtype === 'float32') return 'fp8 weights are for dtype float16 or bfloat16';
  if (!linear || other) {
    return 'embeddings and experts are floats. Name it in quantization-overrides with float';
  }
  if (n % 16 !== 0 || k % 16 !== 0 || k > 32768) {
    return (
      `fp8 weights have multiples of 16 inputs and outputs, at most 32,768 inputs, not ${k} and ${n}. ` +
      'Name it in quantization-overrides with float'
    );
  }
  return undefined;
}

/** Of a matrix in fp8: codes of the checkpoint are kept, floats are rounded on the GPU. */
function describeRows(tensor: TensorRef): NativePart {
  if (tensor.kind !== 'fp8') return describePart(tensor);
  const { kind, path, offset, shape, readScales } = tensor;
  return { kind, elements: shape[0] * shape[1], path, offset, read: () => readScales() };
}

/** Floats stay so: they are rounded on the GPU. */
function describeCodes(tensor: TensorRef): NativePart {
  if (tensor.kind !== 'quantized') return describePart(tensor);
  const read = () => {
    const { codes, scales, offsets = new Float32Array(scales.length) } = tensor.read();
    return { codes, scales, offsets };
  };
  return { kind: 'codes', elements: tensor.shape[0] * tensor.shape[1], read };
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
    case 'fp8':
      return { kind: 'computed', elements, read: () => readTensor(tensor) };
  }
}
