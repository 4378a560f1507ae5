/**
 * The reference executor: plain TypeScript, slow and obviously right. The oracle of every test of
 * another executor, and small enough to read in one sitting.
 */
import type { Op, Program, View } from '../../model/program.js';
import type { WeightSource } from '../../model/weights.js';
import {
  type Backend,
  MAX_LOGPROBS,
  type ModelRunner,
  type RunnerOptions,
  type StepBatch,
  type StepResult,
} from '../backend.js';
import { checkBatch } from '../check-batch.js';
import { checkKvCacheDtype } from '../kv-dtype.js';
import { siluMul } from './activation.js';
import { attention } from './attention.js';
import { IntegerWeight } from './integer-weight.js';
import { KvCache } from './kv-cache.js';
import { add, embed, gather, linear } from './linear.js';
import { Matrix } from './matrix.js';
import { moe } from './moe.js';
import { rmsNorm } from './norm.js';
import { rope } from './rope.js';
import { sampleRow } from './sample.js';
import { type ReferenceWeight, readWeights } from './weights.js';

export const referenceBackend: Backend = {
  name: 'reference',
  // Float32 whatever the storage type: 16-bit types are rounded to, not packed.
  kvBytesPerBlock(program, blockSize) {
    const elements = program.kvLayers.reduce(
      (sum, layer) => sum + layer.kvHeads * layer.headDim,
      0,
    );
    return 2 * elements * blockSize * Float32Array.BYTES_PER_ELEMENT;
  },
  createRunner(program, weights, options, onProgress) {
    return new ReferenceRunner(program, weights, options, onProgress);
  },
};

class ReferenceRunner implements ModelRunner {
  readonly memory: ModelRunner['memory'];
  readonly description: string;
  readonly #program: Program;
  readonly #options: RunnerOptions;
  readonly #weights: ReferenceWeight[];
  /** By value id, `[maxTokens, width]` each. */
  readonly #values: Float32Array[];
  readonly #caches: KvCache[];
  readonly #result: StepResult;

  constructor(
    program: Program,
    weights: WeightSource,
    options: RunnerOptions,
    onProgress?: (share: number) => void,
  ) {
    const { numBlocks, blockSize, maxTokens, kvCacheDtype } = options;
    checkKvCacheDtype('reference', kvCacheDtype);
    this.#program = program;
    this.#options = options;
    this.#weights = readWeights(program, weights, onProgress);
    this.#values = program.values.map(({ width }) => new Float32Array(maxTokens * width));
    this.#caches = program.kvLayers.map(
      ({ kvHeads, headDim }) =>
        new KvCache(
          numBlocks * blockSize,
          kvHeads,
          headDim,
          kvCacheDtype === 'int8' ? 'int8' : weights.dtype,
        ),
    );
    this.#result = {
      tokens: new Int32Array(maxTokens),
      logprobs: new Float32Array(maxTokens),
      ranks: new Int32Array(maxTokens),
      topTokens: new Int32Array(maxTokens * MAX_LOGPROBS),
      topLogprobs: new Float32Array(maxTokens * MAX_LOGPROBS),
    };
    this.memory = {
      weights: this.#weights.reduce(
        (sum, weight) =>
          sum + (weight instanceof IntegerWeight ? weight.byteLength() : weight.byteLength),
        0,
      ),
      workspace: byteLength(this.#values),
      kvCache: numBlocks * referenceBackend.kvBytesPerBlock(program, blockSize, weights.dtype),
    };
    this.description = `reference: TypeScript, 1 thread, weights rounded to ${weights.dtype}, computed in float32`;
  }

  step(batch: StepBatch): StepResult {
    checkBatch(this.#program, this.#options, batch);
    const { blockSize, keepLogits } = this.#options;
    for (let i = 0; i < batch.numCopies; i++) {
      const [from, to] = batch.copies.subarray(2 * i, 2 * i + 2);
      for (const cache of this.#caches) cache.copy(from * blockSize, to * blockSize, blockSize);
    }
    for (const op of this.#program.ops) this.#run(op, batch);
    const logits = this.#matrix(this.#program.logits, batch);
    for (let r = 0; r < batch.numRows; r++) {
      sampleRow(logits.row(r), batch.sampling, r, this.#result);
    }
    if (keepLogits) {
      const { width } = logits;
      this.#result.logits = new Float32Array(batch.numRows * width);
      for (let r = 0; r < batch.numRows; r++) this.#result.logits.set(logits.row(r), r * width);
    }
    return this.#result;
  }

  close(): void {}

  #run(op: Op, batch: StepBatch): void {
    const at = (view: View) => this.#matrix(view, batch);
    const weights = this.#weights;
    // Norms and biases are never integers.
    const vector = (id: number) => weights[id] as Float32Array;
    const out = at(op.out);
    switch (op.kind) {
      case 'embed':
        embed(batch.tokens, weights[op.weight], out);
        break;
      case 'rms_norm':
        rmsNorm(at(op.x), vector(op.weight), op.eps, op.group, out);
        break;
      case 'linear':
        linear(
          at(op.x),
          weights[op.weight],
          op.bias === undefined ? undefined : vector(op.bias),
          out,
        );
        break;
      case 'add':
        add(at(op.a), at(op.b), out);
        break;
      case 'rope':
        rope(at(op.x), batch.positions, op.headDim, this.#program.ropeTables[op.table], out);
        break;
      case 'attention':
        attention(op, batch, this.#options.blockSize, this.#caches[op.layer], {
          q: at(op.q),
          k: at(op.k),
          v: at(op.v),
          out,
        });
        break;
      case 'silu_mul':
        siluMul(at(op.x), out);
        break;
      case 'moe':
        moe(op, at(op.x), at(op.router), weights[op.gateUp], weights[op.down], out);
        break;
      case 'gather':
        gather(at(op.x), batch.rows, out);
        break;
    }
  }

  #matrix({ value, offset, width }: View, batch: StepBatch): Matrix {
    const { rows, width: stride } = this.#program.values[value];
    const count = rows === 'T' ? batch.numTokens : batch.numRows;
    return new Matrix(this.#values[value], count, stride, offset, width);
  }
}

function byteLength(arrays: readonly Float32Array[]): number {
  return arrays.reduce((sum, { byteLength }) => sum + byteLength, 0);
}
