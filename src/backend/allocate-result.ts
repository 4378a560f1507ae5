import { MAX_LOGPROBS, type StepResult } from './backend.js';

/** Arrays for the results of up to `rows` rows; `vocab` is 0 where logits are not kept. */
export function allocateResult(rows: number, vocab: number): StepResult {
  return {
    tokens: new Int32Array(rows),
    logprobs: new Float32Array(rows),
    ranks: new Int32Array(rows),
    topTokens: new Int32Array(rows * MAX_LOGPROBS),
    topLogprobs: new Float32Array(rows * MAX_LOGPROBS),
    logits: vocab > 0 ? new Float32Array(rows * vocab) : undefined,
  };
}
