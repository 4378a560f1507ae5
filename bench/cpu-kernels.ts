/**
 * GFLOP/s and GB/s of each matrix product of a model at several numbers of rows, each over enough
 * different weights that they come from RAM, as they do in a step.
 *
 *     node dist/bench/cpu-kernels.js [MODEL_DIR] [threads] [isa]
 *
 * The best of several passes: on a shared machine the others measure the neighbours.
 */
import { type CpuIsa, createCpuBackend } from '../src/backend/cpu/cpu-backend.js';
import { dummyWeights } from '../src/model/dummy.js';
import { loadModel } from '../src/model/load-model.js';
import { type Program, ProgramBuilder } from '../src/model/program.js';
import { stepBatch } from '../test/helpers/batch.js';
import { root } from '../test/helpers/root.js';

const ROWS = [1, 4, 8, 16, 32, 64, 128, 512, 2048];
/** Several times the last-level cache. */
const WEIGHT_BYTES = 96e6;
/** Of one pass: short enough that some pass is undisturbed. */
const PASS_FLOPS = 2e9;
const SECONDS = 0.3;

const [path = `${root}bench/shapes/smol-135m`, threads = '2', isa] = process.argv.slice(2);
const backend = createCpuBackend({ threads: Number(threads), isa: isa as CpuIsa });
console.log(`rows:${ROWS.map((rows) => String(rows).padStart(15)).join('')}   (GFLOP/s, GB/s)`);
for (const { n, k, gateUp } of shapes(loadModel(path, { loadFormat: 'dummy' }).program)) {
  const cells = ROWS.map((rows) => {
    const seconds = bestPass(n, k, gateUp, rows);
    const flops = (2 * rows * n * k) / seconds / 1e9;
    const bytes = (2 * n * k) / seconds / 1e9;
    return `${flops.toFixed(0).padStart(9)} ${bytes.toFixed(1).padStart(5)}`;
  });
  console.log(`${n} x ${k}${gateUp ? ' silu' : ''}`.padEnd(16) + cells.join(''));
}

/** Seconds of one product. */
function bestPass(n: number, k: number, gateUp: boolean, rows: number): number {
  const fromRam = Math.ceil(WEIGHT_BYTES / (2 * n * k));
  const count = rows < 64 ? fromRam : Math.min(fromRam, Math.ceil(PASS_FLOPS / (2 * rows * n * k)));
  const program = linears(n, k, count, gateUp);
  const runner = backend.createRunner(program, dummyWeights(program, 'bfloat16', 0), {
    ...{ blockSize: 16, numBlocks: 128, maxTokens: 2048, maxSeqs: 1, maxModelLen: 2048 },
  });
  const blocks = [...Array(128).keys()];
  const tokens = Array(rows).fill(0);
  const batch = stepBatch([{ tokens, from: 0, to: rows, blocks, rows: [] }], 16);
  let best = Number.POSITIVE_INFINITY;
  const end = performance.now() + SECONDS * 1e3;
  while (performance.now() < end) {
    const before = runner.profile().linear.seconds;
    runner.step(batch);
    best = Math.min(best, runner.profile().linear.seconds - before);
  }
  runner.close();
  return best / count;
}

/** The different products of a model. */
function shapes(program: Program): { n: number; k: number; gateUp: boolean }[] {
  const found = new Map<string, { n: number; k: number; gateUp: boolean }>();
  for (const op of program.ops) {
    if (op.kind !== 'linear') continue;
    const [n, k] = program.weights[op.weight].shape;
    const gateUp = program.ops.some(
      (other) => other.kind === 'silu_mul' && other.x.value === op.out.value,
    );
    found.set(`${n} ${k} ${gateUp}`, { n, k, gateUp });
  }
  return [...found.values()];
}

function linears(n: number, k: number, count: number, gateUp: boolean): Program {
  const builder = new ProgramBuilder();
  const weight = (tensor: string, shape: number[]) => builder.weight([{ tensor, shape }], shape);
  const x = builder.embed(weight('model.embed_tokens.weight', [16, k]));
  for (let i = 0; i < count; i++) {
    const product = builder.linear(x, weight(`layers.${i}.weight`, [n, k]));
    if (gateUp) builder.siluMul(product);
  }
  return builder.finish(builder.linear(builder.gather(x), weight('lm_head.weight', [16, k])));
}
