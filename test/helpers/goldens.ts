/**
 * Checks any executor against the goldens: tiny checkpoints with the logits and greedy
 * continuations that transformers computes in float32 on a CPU.
 */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Backend, ModelRunner } from '../../src/backend/backend.js';
import { type LoadedModel, loadModel } from '../../src/model/load-model.js';
import { readTensor } from '../../src/model/read-tensor.js';
import { readSafetensors } from '../../src/model/safetensors.js';
import type { DType } from '../../src/model/weights.js';
import { loadTokenizer } from '../../src/tokenizer/load-tokenizer.js';
import { range, stepBatch } from './batch.js';

/** The compiled tests lie in dist/test/helpers. */
const ROOT = fileURLToPath(new URL('../../../', import.meta.url));
export const GOLDENS = join(ROOT, 'test/goldens');
export const STORIES = join(ROOT, 'models/stories-7m');

const BLOCK_SIZE = 16;

export interface Greedy {
  readonly prompt: readonly number[];
  readonly tokens: readonly number[];
  /** Largest logit minus the second at each token. */
  readonly margin: readonly number[];
}

export interface Golden {
  readonly name: string;
  readonly path: string;
  readonly prompts: readonly (readonly number[])[];
  /** `[rows, vocab]`: of every position, or, for a long prompt, of every 16th from 0 on. */
  readonly logits: readonly { readonly rows: number; readonly data: Float32Array }[];
  readonly greedy: readonly Greedy[];
}

/** All golden checkpoints, by name. */
export function goldens(): Golden[] {
  return readdirSync(GOLDENS, { withFileTypes: true })
    .filter((entry) => entry.isDirectory() && entry.name !== 'quantized')
    .map((entry) => readGolden(entry.name));
}

/** Checkpoints in published quantized formats; their logits are those of the dequantized weights. */
export function quantizedGoldens(): Golden[] {
  return readdirSync(join(GOLDENS, 'quantized')).map((name) => readGolden(`quantized/${name}`));
}

export function readGolden(name: string): Golden {
  const path = join(GOLDENS, name);
  const { prompts, greedy } = JSON.parse(readFileSync(join(path, 'golden.json'), 'utf8'));
  const tensors = readSafetensors(join(path, 'golden.safetensors'));
  return {
    name,
    path,
    prompts,
    logits: (prompts as number[][]).map((_, n) => {
      const { path: file, offset, shape } = tensors.find((t) => t.name === `logits.${n}`)!;
      const data = readTensor({ kind: 'file', path: file, offset, dtype: 'float32', shape });
      return { rows: shape[0], data };
    }),
    greedy: (greedy as Omit<Greedy, 'prompt'>[]).map((entry, n) => ({
      ...entry,
      prompt: prompts[n],
    })),
  };
}

export interface StoriesGolden {
  readonly texts: readonly { readonly text: string; readonly ids: readonly number[] }[];
  readonly chats: readonly {
    readonly messages: readonly { readonly role: string; readonly content: string }[];
    readonly ids: readonly number[];
  }[];
  readonly greedy: readonly (Greedy & { readonly text: string })[];
  readonly perplexity: {
    /** In the model's folder; the first `lines` of it were scored, each with bos before and eos after. */
    readonly file: string;
    readonly lines: number;
    readonly tokens: number;
    readonly nll_sum: number;
    readonly ppl: number;
  };
}

/** What transformers says of models/stories-7m, in float32. */
export function storiesGolden(): StoriesGolden {
  const json = JSON.parse(readFileSync(join(GOLDENS, 'stories-7m.json'), 'utf8'));
  return {
    ...json,
    greedy: json.greedy.map((entry: { prompt_ids: number[] }) => ({
      ...entry,
      prompt: entry.prompt_ids,
    })),
  };
}

/** The held-out stories that transformers scored, each with bos before and eos after. */
export async function heldOutSequences(): Promise<number[][]> {
  const { file, lines } = storiesGolden().perplexity;
  const tokenizer = await loadTokenizer(STORIES);
  const [bos, eos] = [1, 2];
  return readFileSync(join(STORIES, file), 'utf8')
    .split('\n')
    .slice(0, lines)
    .map((line) => {
      const text = (JSON.parse(line) as { text: string }).text;
      return [bos, ...tokenizer.encode(text, { addSpecialTokens: false }), eos];
    });
}

/** How a prompt is fed: the size of each chunk, and whether all prompts go through steps together. */
export interface Feeding {
  readonly chunk: number;
  readonly together: boolean;
}

export interface Difference {
  /** Largest absolute difference of a logit. */
  readonly max: number;
  /** Root of the mean squared difference, over that of the golden logits around their mean. */
  readonly relativeRms: number;
}

/** Runs a golden's prompts through an executor and compares the logits. */
export function compareLogits(
  backend: Backend,
  golden: Golden,
  { chunk, together }: Feeding,
  dtype: DType = 'float32',
  model: LoadedModel = loadModel(golden.path, { dtype }),
): Difference {
  const vocab = model.program.vocabSize;
  const all = golden.prompts.map((_, n) => n);
  let max = 0;
  let squares = 0;
  let signal = 0;
  for (const group of together ? [all] : all.map((n) => [n])) {
    const prompts = group.map((n) => golden.prompts[n]);
    const computed = withRunner(backend, model, prompts, (runner) =>
      promptLogits(runner, prompts, chunk, vocab),
    );
    group.forEach((n, i) => {
      const { rows, data } = golden.logits[n];
      const stride = rows === golden.prompts[n].length ? 1 : 16;
      const mean = data.reduce((a, b) => a + b) / data.length;
      data.forEach((value, j) => {
        const row = Math.floor(j / vocab);
        const difference = Math.abs(computed[i][row * stride * vocab + (j % vocab)] - value);
        assert.ok(difference < Infinity, `${golden.name}: logit ${j} of prompt ${n} is not finite`);
        max = Math.max(max, difference);
        squares += difference ** 2;
        signal += (value - mean) ** 2;
      });
    });
  }
  return { max, relativeRms: Math.sqrt(squares / signal) };
}

/** The golden's prompts with the logits that an executor computes for another model. */
export function goldenOf(backend: Backend, model: LoadedModel, golden: Golden): Golden {
  const { prompts } = golden;
  const vocab = model.program.vocabSize;
  const computed = withRunner(backend, model, prompts, (runner) =>
    promptLogits(runner, prompts, 1024, vocab),
  );
  return { ...golden, logits: computed.map((data) => ({ rows: data.length / vocab, data })) };
}

/** The logits of all positions of each prompt, `[length, vocab]`, fed `chunk` tokens a step. */
function promptLogits(
  runner: ModelRunner,
  prompts: readonly (readonly number[])[],
  chunk: number,
  vocab: number,
): Float32Array[] {
  const tables = blockTables(prompts.map(({ length }) => length));
  const out = prompts.map(({ length }) => new Float32Array(length * vocab));
  const longest = Math.max(...prompts.map(({ length }) => length));
  for (let from = 0; from < longest; from += chunk) {
    const live = prompts.flatMap((tokens, n) =>
      from < tokens.length ? [{ n, tokens, to: Math.min(tokens.length, from + chunk) }] : [],
    );
    const chunks = live.map(({ n, tokens, to }) => ({
      tokens,
      from,
      to,
      blocks: tables[n],
      rows: range(from, to - from),
    }));
    const { logits } = runner.step(stepBatch(chunks, BLOCK_SIZE));
    assert.ok(logits, 'keepLogits must fill logits');
    let row = 0;
    for (const { n, to } of live) {
      out[n].set(logits.subarray(row * vocab, (row + to - from) * vocab), from * vocab);
      row += to - from;
    }
  }
  return out;
}

/**
 * Generates greedily, all prompts in one batch, and compares the tokens. Where the golden's margin
 * is within `noise` either token is right, and the rest of that continuation is not compared.
 * Returns how many tokens were compared.
 */
export function compareGreedy(
  backend: Backend,
  model: LoadedModel,
  greedy: readonly Greedy[],
  noise: number,
): number {
  const length = Math.max(...greedy.map(({ tokens }) => tokens.length));
  const sequences = greedy.map(({ prompt, tokens }) => [...prompt, ...tokens]);
  const generated = withRunner(backend, model, sequences, (runner) => {
    const tables = blockTables(sequences.map((tokens) => tokens.length));
    const soFar = greedy.map(({ prompt }) => [...prompt]);
    const starts = greedy.map(() => 0);
    for (let step = 0; step < length; step++) {
      const chunks = soFar.map((tokens, n) => ({
        tokens,
        from: starts[n],
        to: tokens.length,
        blocks: tables[n],
        rows: [tokens.length - 1],
      }));
      const result = runner.step(stepBatch(chunks, BLOCK_SIZE));
      soFar.forEach((tokens, n) => {
        starts[n] = tokens.length;
        tokens.push(result.tokens[n]);
      });
    }
    return soFar.map((tokens, n) => tokens.slice(greedy[n].prompt.length));
  });
  let compared = 0;
  greedy.forEach(({ tokens, margin }, n) => {
    for (let i = 0; i < tokens.length; i++) {
      if (generated[n][i] !== tokens[i]) {
        assert.ok(
          margin[i] <= noise,
          `prompt ${n}, token ${i}: ${generated[n][i]} instead of ${tokens[i]}, margin ${margin[i]}`,
        );
        break;
      }
      compared++;
    }
  });
  return compared;
}

/** Sum of the negative log-likelihoods of the tokens after the first, each sequence alone. */
export function negativeLogLikelihood(
  backend: Backend,
  model: LoadedModel,
  sequences: readonly (readonly number[])[],
): { sum: number; tokens: number } {
  let sum = 0;
  let tokens = 0;
  withRunner(backend, model, sequences, (runner) => {
    for (const sequence of sequences) {
      const rows = range(0, sequence.length - 1);
      const chunk = { tokens: sequence, from: 0, to: rows.length, blocks: [] as number[], rows };
      chunk.blocks = range(0, Math.ceil(rows.length / BLOCK_SIZE));
      const targets = rows.map((p) => ({ target: sequence[p + 1] }));
      const { logprobs } = runner.step(stepBatch([chunk], BLOCK_SIZE, targets));
      for (const p of rows) sum -= logprobs[p];
      tokens += rows.length;
    }
  });
  return { sum, tokens };
}

/** Makes a runner large enough for the sequences in one step, and closes it. */
function withRunner<T>(
  backend: Backend,
  model: LoadedModel,
  sequences: readonly (readonly number[])[],
  use: (runner: ModelRunner) => T,
): T {
  const lengths = sequences.map(({ length }) => length);
  const runner = backend.createRunner(model.program, model.weights, {
    blockSize: BLOCK_SIZE,
    numBlocks: blockTables(lengths).flat().length,
    maxTokens: lengths.reduce((a, b) => a + b),
    maxSeqs: sequences.length,
    maxModelLen: Math.max(...lengths),
    keepLogits: true,
  });
  try {
    return use(runner);
  } finally {
    runner.close();
  }
}

/** Blocks for sequences of these lengths, dealt in turn so that no table is contiguous. */
function blockTables(lengths: readonly number[]): number[][] {
  const tables: number[][] = lengths.map(() => []);
  const needed = lengths.map((length) => Math.ceil(length / BLOCK_SIZE));
  let next = 0;
  for (let round = 0; round < Math.max(...needed); round++) {
    needed.forEach((count, n) => {
      if (round < count) tables[n].unshift(next++);
    });
  }
  return tables;
}
