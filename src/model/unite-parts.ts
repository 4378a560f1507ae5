/**
 * The parts of one weight (query, key and value; gate and up; experts) in one storage: checkpoints
 * may have quantized each in another way, a fused matrix is kept in one.
 */

import { regroup } from './formats/groups.js';
import { readTensor } from './read-tensor.js';
import type {
  IntegerStorage,
  MatrixStorage,
  QuantizedMatrix,
  QuantizedTensor,
  TensorRef,
} from './weights.js';

export interface UnitedParts {
  readonly parts: readonly TensorRef[];
  readonly storage: MatrixStorage;
  /** Quantized parts had to become floats: this is why. */
  readonly lost?: string;
}

/**
 * Parts in 8-bit floats stay so if all are: each row has its own scale. Integer parts take the widest
 * of their bits, the finest of their groups, and offsets if one has them: codes and scales are
 * rewritten, no value changes. Parts stay integers only if all are and their act-order is the same.
 * Quantized ones become floats otherwise, and where a step looks up single rows (`embedded`).
 */
export function uniteParts(parts: readonly TensorRef[], embedded = false): UnitedParts {
  const eight = parts.filter((part) => part.kind === 'fp8').length;
  if (eight === parts.length && !embedded)
    return { parts, storage: { kind: 'fp8', unasked: true } };
  const quantized = parts.filter((part) => part.kind === 'quantized');
  if (quantized.length + eight === 0) return { parts, storage: { kind: 'float' } };
  const sameOrder = quantized.every(
    ({ columns }) => columns?.join() === quantized[0].columns?.join(),
  );
  if (quantized.length < parts.length || !sameOrder || embedded) {
    return {
      parts: parts.map(asFloats),
      storage: { kind: 'float' },
      lost: embedded
        ? 'embeddings are looked up as floats'
        : sameOrder
          ? 'only some of its parts are quantized'
          : 'the act-order of its parts differs',
    };
  }
  const storage = commonStorage(quantized);
  return { parts: quantized.map((part) => widened(part, storage)), storage };
}

/** The tensor as an executor reads it that keeps no codes. */
export function asFloats(part: TensorRef): TensorRef {
  if (part.kind !== 'quantized' && part.kind !== 'fp8') return part;
  return { kind: 'computed', shape: part.shape, read: () => readTensor(part) };
}

function commonStorage(parts: readonly QuantizedTensor[]): IntegerStorage {
  const groups = parts.map(({ storage, shape }) => storage.group || shape[1]);
  const rowsOnly = parts.every(({ storage }) => storage.group === 0);
  return {
    kind: 'integer',
    bits: parts.some(({ storage }) => storage.bits === 8) ? 8 : 4,
    group: rowsOnly ? 0 : (Math.min(...groups.filter((_, i) => parts[i].storage.group > 0)) as 32),
    symmetric: parts.every(({ storage }) => storage.symmetric),
    unasked: true,
  };
}

function widened(part: QuantizedTensor, storage: IntegerStorage): QuantizedTensor {
  const own = part.storage;
  const { bits, group, symmetric } = storage;
  if (own.bits === bits && own.group === group && own.symmetric === symmetric) return part;
  const [rows, width] = part.shape;
  const read = (): QuantizedMatrix => {
    const { codes, scales, offsets, columns } = part.read();
    const fit = (values: Float32Array) => regroup(values, rows, width, own.group || width, group);
    const needsOffsets = bits === 4 || !symmetric;
    // Symmetric int4 counts from 8; as int8 it counts from 0.
    const shift = bits === 8 && own.bits === 4 && own.symmetric ? 8 : 0;
    return {
      codes: shift === 0 ? codes : codes.map((code) => code - shift),
      scales: fit(scales),
      offsets: needsOffsets
        ? fit(shift === 0 && offsets ? offsets : new Float32Array(scales.length))
        : undefined,
      columns,
    };
  };
  return { ...part, storage, read };
}
