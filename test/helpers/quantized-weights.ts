/** Weight sources for tests of quantization: integers made on load, or ready-made in the checkpoint. */
import type { Program } from '../../src/model/program.js';
import { quantizeRows } from '../../src/model/quantize-rows.js';
import { readTensor } from '../../src/model/read-tensor.js';
import type { IntegerStorage, WeightSource } from '../../src/model/weights.js';

/** The source with every matrix kept as integers. */
export function asIntegers(source: WeightSource, storage: IntegerStorage): WeightSource {
  return {
    dtype: source.dtype,
    storage: () => storage,
    tensor: (name) => source.tensor(name),
  };
}

/**
 * The source with its matrices quantized in the checkpoint; those that are linears only, with
 * `reverse`, in the reverse order of columns, as an act-order checkpoint may have them.
 */
export function asQuantizedTensors(
  source: WeightSource,
  program: Program,
  storage: IntegerStorage,
  reverse: boolean,
): WeightSource {
  const embeddings = program.ops.flatMap((op) => (op.kind === 'embed' ? op.weight : []));
  const matrices = program.weights.filter(({ shape }) => shape.length > 1);
  const reordered = new Set(
    matrices
      .filter(({ id }) => reverse && !embeddings.includes(id))
      .flatMap(({ parts }) => parts.map(({ tensor }) => tensor)),
  );
  const names = new Set(matrices.flatMap(({ parts }) => parts.map(({ tensor }) => tensor)));
  return {
    dtype: source.dtype,
    storage: () => storage,
    tensor(name) {
      const ref = source.tensor(name);
      if (!names.has(name)) return ref;
      const width = ref.shape.at(-1)!;
      const columns = Int32Array.from({ length: width }, (_, i) => width - 1 - i);
      return {
        kind: 'quantized',
        shape: ref.shape,
        storage,
        read() {
          const floats = readTensor(ref);
          const rows = floats.length / width;
          if (!reordered.has(name)) return quantizeRows(floats, rows, width, storage);
          const turned = floats.map((_, i) => floats[i - (i % width) + width - 1 - (i % width)]);
          return { ...quantizeRows(turned, rows, width, storage), columns };
        },
      };
    },
  };
}
