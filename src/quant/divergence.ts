/** How far two next-token distributions are apart. */

export interface RowLoss {
  /** Negative log-likelihood of the next token under each, in nats. */
  readonly base: number;
  readonly model: number;
  /** Kullback-Leibler divergence of the model from the base, in nats: sum of p log(p / q), p the base. */
  readonly kl: number;
  /** Whether both find the same token likeliest. */
  readonly sameTop: boolean;
}

/** `base` and `model` are raw logits over the vocabulary; `next` is the token that came. */
export function rowLoss(base: Float32Array, model: Float32Array, next: number): RowLoss {
  const [baseTop, baseLog] = topAndLogSum(base);
  const [modelTop, modelLog] = topAndLogSum(model);
  let kl = 0;
  for (let i = 0; i < base.length; i++) {
    const logP = base[i] - baseLog;
    // Less than e^-40 of the probability cannot show in a sum of order 1e-6.
    if (logP > -40) kl += Math.exp(logP) * (logP - (model[i] - modelLog));
  }
  return {
    base: baseLog - base[next],
    model: modelLog - model[next],
    // Rounding may leave a trace below 0 where the distributions are equal.
    kl: Math.max(0, kl),
    sameTop: baseTop === modelTop,
  };
}

function topAndLogSum(logits: Float32Array): [top: number, logSum: number] {
  let top = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[top]) top = i;
  let sum = 0;
  for (let i = 0; i < logits.length; i++) sum += Math.exp(logits[i] - logits[top]);
  return [top, logits[top] + Math.log(sum)];
}
