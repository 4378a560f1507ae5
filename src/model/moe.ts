/** The mixture-of-experts feed-forward part, as Mixtral and Qwen3-MoE have it. */
import { ModelError } from '../errors.js';
import type { ModelConfig } from './config.js';
import { type DecoderTraits, layerPrefix, matrix } from './decoder.js';
import type { WeightPart } from './program.js';

export interface MoeTraits {
  /** The module within a layer: `mlp`. Its router is `<module>.gate`, its experts `<module>.experts.N`. */
  readonly module: string;
  /** What the three matrices of an expert are called. */
  readonly names: { readonly gate: string; readonly up: string; readonly down: string };
  readonly experts: number;
  readonly topK: number;
  /** Rows of an expert's gate and up matrices. */
  readonly inner: number;
  /** Whether the weights of the chosen experts are rescaled to sum 1. */
  readonly normalize: boolean;
}

export function moeMlp(config: ModelConfig, traits: MoeTraits): NonNullable<DecoderTraits['mlp']> {
  const { experts, topK, inner, normalize, names } = traits;
  const width = config.hiddenSize;
  if (topK > experts) {
    throw new ModelError(
      `${config.fields.where}: num_experts_per_tok is ${topK}, ` +
        `expected at most the number of experts (${experts})`,
    );
  }
  return (b, x, layer) => {
    const prefix = `${layerPrefix(layer)}.${traits.module}`;
    const partsOf = (expert: number, matrices: readonly string[], shape: readonly number[]) =>
      matrices.map(
        (name): WeightPart => ({ tensor: `${prefix}.experts.${expert}.${name}.weight`, shape }),
      );
    const all = Array.from({ length: experts }, (_, expert) => expert);
    return b.moe({
      x,
      router: b.linear(x, matrix(b, `${prefix}.gate.weight`, experts, width)),
      gateUp: b.weight(
        all.flatMap((expert) => partsOf(expert, [names.gate, names.up], [inner, width])),
        [experts, 2 * inner, width],
        `${prefix}.experts.gate_up_proj.weight`,
      ),
      down: b.weight(
        all.flatMap((expert) => partsOf(expert, [names.down], [width, inner])),
        [experts, width, inner],
        `${prefix}.experts.down_proj.weight`,
      ),
      experts,
      inner,
      topK,
      normalize,
    });
  };
}
