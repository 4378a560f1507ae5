/** Small programs of random shape that use every operation, and a way to run sequences through them. */
import type { Backend, RunnerOptions } from '../../src/backend/backend.js';
import { type Program, ProgramBuilder, slice, type View } from '../../src/model/program.js';
import type { WeightSource } from '../../src/model/weights.js';
import { range, stepBatch } from './batch.js';
import { randomInt } from './random.js';

const BLOCK = 16;

export interface ProgramShape {
  readonly experts: number;
  readonly layers: number;
  /** The embedding is the matrix of the logits, too. */
  readonly tied: boolean;
}

/**
 * A decoder with odd widths everywhere the operations allow them: fused and separate QKV, biases,
 * QK-norm, windows, a mixture of experts, sums and gates that can be fused and some that cannot. The
 * wanted rows are taken after the last attention, as decoders do it, or as late as can be.
 */
export function randomProgram(random: () => number, shape: Partial<ProgramShape> = {}): Program {
  const { experts = randomInt(random, 0, 5), layers = 2, tied = random() < 0.5 } = shape;
  const builder = new ProgramBuilder();
  let count = 0;
  const weight = (...dims: number[]) => {
    const tensor = `tensor.${count++}`;
    return builder.weight([{ tensor, shape: dims }], dims);
  };
  const maybe = <T>(value: () => T) => (random() < 0.5 ? value() : undefined);
  const width = randomInt(random, 3, 75);
  const kvHeads = randomInt(random, 1, 3);
  const heads = kvHeads * randomInt(random, 1, 3);
  const headDim = 2 * randomInt(random, 4, 20);
  const vocab = randomInt(random, 17, 90);
  const norm = (x: View, group = x.width) => builder.rmsNorm(x, weight(group), 1e-5);
  const linear = (x: View, out: number) =>
    builder.linear(
      x,
      weight(out, x.width),
      maybe(() => weight(out)),
    );

  const table = builder.ropeTable({
    invFreq: Array.from({ length: headDim / 2 }, (_, i) => 100 ** (-i / headDim)),
    scale: 1 + random() / 4,
  });
  const embedding = weight(vocab, width);
  const early = random() < 0.5;
  let x = builder.embed(embedding);
  for (let layer = 0; layer < layers; layer++) {
    const h = norm(x);
    const [q, k] = [heads * headDim, kvHeads * headDim];
    const qkv = linear(h, q + 2 * k);
    const prepare = (view: View) => builder.rope(norm(view, headDim), headDim, table);
    let attended = builder.attention({
      q: prepare(slice(qkv, 0, q)),
      k: prepare(slice(qkv, q, k)),
      v: random() < 0.5 ? slice(qkv, q + k, k) : linear(h, k),
      ...{ heads, kvHeads, headDim, scale: 1 / Math.sqrt(headDim) },
      window: maybe(() => randomInt(random, 3, 40)),
    });
    if (early && layer === layers - 1)
      [x, attended] = [builder.gather(x), builder.gather(attended)];
    x = builder.add(x, linear(attended, width));
    const inner = randomInt(random, 1, 60);
    const m = norm(x);
    const gates = linear(m, 2 * inner);
    // Read twice, so that it cannot be fused; x + x reads one value twice.
    const gated =
      random() < 0.5 ? builder.siluMul(gates) : builder.siluMul(builder.add(gates, gates));
    x = builder.add(linear(gated, width), x);
    if (experts > 0) {
      const mixed = builder.moe({
        x: norm(x),
        router: linear(norm(x), experts),
        gateUp: weight(experts, 2 * inner, width),
        down: weight(experts, width, inner),
        ...{ experts, inner, topK: randomInt(random, 1, experts), normalize: random() < 0.5 },
      });
      x = builder.add(x, mixed);
    }
  }
  const last = norm(early ? x : builder.gather(x));
  return builder.finish(builder.linear(last, tied ? embedding : weight(vocab, width)));
}

/** Tokens of `count` sequences of random lengths. */
export function randomSequences(random: () => number, count: number, vocab: number): number[][] {
  return Array.from({ length: count }, () =>
    Array.from({ length: randomInt(random, 1, 70) }, () => randomInt(random, 0, vocab - 1)),
  );
}

export interface Run {
  /** `[length, vocab]` of each sequence; zeros where no row is wanted. */
  readonly logits: Float32Array[];
  /** The greedy token at each wanted position of each sequence. */
  readonly tokens: number[][];
}

export interface RunOptions extends Partial<RunnerOptions> {
  /** Whether the logits of a position are wanted. Default: all are. */
  readonly wanted?: (position: number) => boolean;
}

/** Computes all sequences side by side, `chunk` tokens of each a step. */
export function runSequences(
  backend: Backend,
  program: Program,
  weights: WeightSource,
  sequences: readonly (readonly number[])[],
  chunk: number,
  { wanted = () => true, ...options }: RunOptions = {},
): Run {
  const vocab = program.vocabSize;
  const lengths = sequences.map(({ length }) => length);
  const longest = Math.max(...lengths);
  const blocksEach = Math.ceil(longest / BLOCK);
  const runner = backend.createRunner(program, weights, {
    blockSize: BLOCK,
    numBlocks: blocksEach * sequences.length,
    maxTokens: sequences.length * chunk,
    maxSeqs: sequences.length,
    maxModelLen: longest,
    keepLogits: true,
    ...options,
  });
  const logits = lengths.map((length) => new Float32Array(length * vocab));
  const tokens = lengths.map((): number[] => []);
  try {
    for (let from = 0; from < longest; from += chunk) {
      const live = range(0, sequences.length).filter((n) => from < lengths[n]);
      const chunks = live.map((n) => {
        const to = Math.min(lengths[n], from + chunk);
        // Interleaved, so that no table is contiguous.
        const blocks = range(0, blocksEach).map((i) => i * sequences.length + n);
        const rows = range(from, to - from).filter(wanted);
        return { tokens: sequences[n], from, to, blocks, rows };
      });
      const result = runner.step(stepBatch(chunks, BLOCK));
      let row = 0;
      live.forEach((n, i) => {
        for (const position of chunks[i].rows) {
          const computed = result.logits!.subarray(row * vocab, (row + 1) * vocab);
          logits[n].set(computed, position * vocab);
          tokens[n].push(result.tokens[row++]);
        }
      });
    }
  } finally {
    runner.close();
  }
  return { logits, tokens };
}
