/** What `quantization_config` of a config.json says about the checkpoint's tensors. */
import { ModelError } from '../../errors.js';
import type { ConfigFields } from '../config-fields.js';
import type { WeightPart } from '../program.js';
import type { TensorRef } from '../weights.js';
import { compressedTensorsFormat } from './compressed-tensors.js';
import type { Entries } from './entry.js';
import { fp8Format } from './fp8.js';
import { awqFormat, gptqFormat } from './gptq.js';

export interface FoundTensor {
  readonly tensor: TensorRef;
  /** Names of the checkpoint that it is made of. */
  readonly uses: readonly string[];
  /** What a person should know. */
  readonly note?: string;
}

export interface CheckpointFormat {
  /**
   * The tensor of a part that this format has quantized; undefined: look for plain floats. Throws
   * `ModelError`.
   */
  find(part: WeightPart, entries: Entries): FoundTensor | undefined;
}

const METHODS: Readonly<Record<string, (fields: ConfigFields) => CheckpointFormat>> = {
  gptq: gptqFormat,
  awq: awqFormat,
  'compressed-tensors': compressedTensorsFormat,
  fp8: fp8Format,
};

/** Throws `ModelError` naming the scheme, if it is not supported. */
export function checkpointFormat(config: ConfigFields): CheckpointFormat | undefined {
  const fields = config.object('quantization_config');
  if (fields === undefined) return undefined;
  const method = fields.text('quant_method');
  if (!Object.hasOwn(METHODS, method)) {
    throw new ModelError(
      `${fields.where}: quant_method ${JSON.stringify(method)} is not supported, ` +
        `supported are ${Object.keys(METHODS).join(', ')}`,
    );
  }
  return METHODS[method](fields);
}
