/**
 * What this machine can do, measured in about a second: the two lines of the roofline. Both are the
 * best a plain chain of square matrix products reaches with the executor's own kernels, so they
 * bound what a model can reach here from our side, not the silicon from the outside.
 */
import type { Machine } from '../../backend/cost/cost.js';
import type { CpuBackendOptions } from '../../backend/cpu/cpu-backend.js';
import { dummyWeights } from '../../model/dummy.js';
import { type Program, ProgramBuilder } from '../../model/program.js';
import { BYTES, type DType } from '../../model/weights.js';
import { InstrumentedEngine } from './instrumented-engine.js';

/** Inputs and outputs of each product. */
const WIDTH = 1024;
/** Tokens at a time, for the arithmetic. */
const TOKENS = 512;
const COMPUTE_RUNS = 3;
/** One token at a time, for the bytes. */
const DECODES = 40;
/** Enough to come from RAM on the machines we know. */
const MOST_BYTES = 256 * 2 ** 20;

/**
 * `flopsPerSecond`: products of 512 rows. `bytesPerSecond`: products of one row over as many bytes of
 * weights as the model has (at most 256 MiB), so that they come from the same cache or RAM as its
 * own. Best of several, because what disturbs a run only ever slows it down.
 */
export function calibrate(program: Program, dtype: DType, backend: CpuBackendOptions): Machine {
  const modelBytes = program.weights.reduce(
    (sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1) * BYTES[dtype],
    0,
  );
  const matrixBytes = WIDTH * WIDTH * BYTES[dtype];
  const count = Math.max(1, Math.round(Math.min(modelBytes, MOST_BYTES) / matrixBytes));
  const chain = productChain(count);
  const engine = new InstrumentedEngine(chain, dummyWeights(chain, dtype, 0), {
    ...backend,
    maxModelLen: TOKENS + DECODES,
    maxNumSeqs: 1,
    maxNumBatchedTokens: TOKENS,
    blockSize: 16,
  });
  try {
    const prompts = [new Int32Array(TOKENS)];
    const best = (seconds: number[]) => Math.min(...seconds);
    const products = (outputTokens: number) =>
      engine.run({ prompts, outputTokens }).map(({ operations }) => operations.linear);
    const [, ...decodes] = products(DECODES);
    const prefills = Array.from({ length: COMPUTE_RUNS }, () => products(1)[0]);
    return {
      flopsPerSecond: (2 * TOKENS * WIDTH * WIDTH * count) / best(prefills),
      bytesPerSecond: (matrixBytes * count) / best(decodes),
    };
  } finally {
    engine.close();
  }
}

/** Each product takes the one before: no two share a weight, none is optimised away. */
function productChain(count: number): Program {
  const b = new ProgramBuilder();
  const matrix = (tensor: string, rows: number) =>
    b.weight([{ tensor, shape: [rows, WIDTH] }], [rows, WIDTH]);
  const vocab = 16;
  let x = b.embed(matrix('embedding', vocab));
  for (let i = 0; i < count; i++) x = b.linear(x, matrix(`product.${i}`, WIDTH));
  return b.finish(b.linear(b.gather(x), matrix('head', vocab)));
}
