/**
 * What this machine can do, measured in about a second: the two lines of the roofline. Both are the
 * best a plain chain of square matrix products reaches with the executor's own kernels, so they
 * bound what a model can reach here from our side, not the silicon from the outside.
 */

import type { Backend } from '../../backend/backend.js';
import type { Machine } from '../../backend/cost/cost.js';
import { dummyWeights } from '../../model/dummy.js';
import { type Program, ProgramBuilder, type Weight } from '../../model/program.js';
import { type MatrixStorage, storedBytes, type WeightSource } from '../../model/weights.js';
import { InstrumentedEngine } from './instrumented-engine.js';

interface Sizes {
  /** Inputs and outputs of each product. */
  width: number;
  /** Tokens at a time, for the arithmetic. */
  tokens: number;
  /** Of weights: enough to come from RAM, past any cache. */
  mostBytes: number;
}

const MACHINE: Sizes = { width: 1024, tokens: 512, mostBytes: 256 * 2 ** 20 };
/** Of a device with memory of its own: a GPU starts a product in the time it takes to run a small one. */
const DEVICE: Sizes = { width: 8192, tokens: 4096, mostBytes: 2 ** 31 };

const COMPUTE_RUNS = 3;
/** One token at a time, for the bytes. */
const DECODES = 40;

/**
 * `flopsPerSecond`: products of many rows. `bytesPerSecond`: products of one row over as many bytes of
 * weights as the model has (up to a limit), so that they come from the same cache or RAM as its
 * own. Both with weights stored as most of the model's are: integers have limits of their own. Best
 * of several, because what disturbs a run only ever slows it down.
 */
export function calibrate(program: Program, weights: WeightSource, executor: Backend): Machine {
  // By the executor's own times where it tells them: what is around a product is not its limit.
  const backend = executor.profiling?.() ?? executor;
  const { dtype } = weights;
  const { width, tokens, mostBytes } = backend.memory ? DEVICE : MACHINE;
  const modelBytes = program.weights.reduce((sum, weight) => {
    const inputs = weight.shape.at(-1)!;
    return sum + storedBytes(weights.storage(weight), dtype, elements(weight), inputs);
  }, 0);
  const storage = commonStorage(program, weights);
  const matrixBytes = storedBytes(storage, dtype, width * width, width);
  const count = Math.max(1, Math.round(Math.min(modelBytes, mostBytes) / matrixBytes));
  const chain = productChain(count, width);
  const dummies = dummyWeights(chain, dtype, 0);
  const stored: WeightSource = {
    ...dummies,
    storage: (weight) => (weight.shape[0] === width ? storage : dummies.storage(weight)),
  };
  const engine = new InstrumentedEngine(backend, chain, stored, {
    maxModelLen: tokens + DECODES,
    maxNumSeqs: 1,
    maxNumBatchedTokens: tokens,
    blockSize: 16,
  });
  try {
    const prompts = [new Int32Array(tokens)];
    const best = (seconds: number[]) => Math.min(...seconds);
    const products = (outputTokens: number) =>
      engine.run({ prompts, outputTokens }).map(({ operations, phases }) => {
        return operations.linear ?? phases.compute;
      });
    const [, ...decodes] = products(DECODES);
    const prefills = Array.from({ length: COMPUTE_RUNS }, () => products(1)[0]);
    return {
      flopsPerSecond: (2 * tokens * width * width * count) / best(prefills),
      bytesPerSecond: (matrixBytes * count) / best(decodes),
    };
  } finally {
    engine.close();
  }
}

/** Of the most elements. */
function commonStorage(program: Program, weights: WeightSource): MatrixStorage {
  const sizes = new Map<string, { storage: MatrixStorage; size: number }>();
  for (const weight of program.weights) {
    const storage = weights.storage(weight);
    const key = JSON.stringify(storage);
    const size = (sizes.get(key)?.size ?? 0) + elements(weight);
    sizes.set(key, { storage, size });
  }
  return [...sizes.values()].reduce((a, b) => (b.size > a.size ? b : a)).storage;
}

function elements({ shape }: Weight): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** Each product takes the one before: no two share a weight, none is optimised away. */
function productChain(count: number, width: number): Program {
  const b = new ProgramBuilder();
  const matrix = (tensor: string, rows: number) =>
    b.weight([{ tensor, shape: [rows, width] }], [rows, width]);
  const vocab = 16;
  let x = b.embed(matrix('embedding', vocab));
  for (let i = 0; i < count; i++) x = b.linear(x, matrix(`product.${i}`, width));
  return b.finish(b.linear(b.gather(x), matrix('head', vocab)));
}
