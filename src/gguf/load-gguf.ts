/** A GGUF file as a checkpoint: config, program and weights. */
import { ModelError } from '../errors.js';
import { weightSource } from '../model/checkpoint.js';
import type { ModelConfig } from '../model/config.js';
import type { Program } from '../model/program.js';
import type { DType, TensorRef, WeightSource } from '../model/weights.js';
import type { GgufFile } from './gguf-file.js';
import { ggufTensor, unreadTensors } from './gguf-weights.js';

/** Throws one `ModelError` that names everything missing, extra or misshapen. */
export function ggufWeights(
  file: GgufFile,
  config: ModelConfig,
  program: Program,
  dtype: DType,
): { weights: WeightSource; notes: string[] } {
  const problems: string[] = [];
  const notes = new Set<string>();
  const found = program.weights.map((weight) => ({
    weight,
    parts: weight.parts.map((part): TensorRef | undefined => {
      try {
        return ggufTensor(file, part, config);
      } catch (error) {
        if (!(error instanceof ModelError)) throw error;
        problems.push(error.message);
        return undefined;
      }
    }),
  }));
  const parts = program.weights.flatMap((weight) => weight.parts);
  problems.push(...unreadTensors(file, parts).map((name) => `unexpected ${name}`));
  if (problems.length > 0) {
    const more = problems.length > 20 ? `; and ${problems.length - 20} more` : '';
    throw new ModelError(
      `${file.path}: the weights do not fit the metadata: ${problems.slice(0, 20).join('; ')}${more}`,
    );
  }
  if ([...file.tensors.values()].some(({ type }) => type === 'Q6_K')) {
    notes.add('Q6_K tensors are rounded to int8 in groups of 32 at load');
  }
  const complete = found.map(({ weight, parts }) => ({ weight, parts: parts as TensorRef[] }));
  const weights = weightSource(file.path, program, complete, dtype, notes);
  return { weights, notes: [...notes] };
}
