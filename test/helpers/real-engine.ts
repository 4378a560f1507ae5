/** Runs requests through a real engine on its own thread. */
import assert from 'node:assert/strict';
import type { Engine } from '../../src/engine/api.js';
import type { EngineOptions } from '../../src/engine/engine-options.js';
import { type SamplingParams, samplingParams } from '../../src/engine/sampling-params.js';
import { startEngine } from '../../src/engine/start-engine.js';
import type { Greedy } from './goldens.js';

/** Where the two largest logits are closer than this, another order of additions may choose the other. */
const NOISE = 1e-3;

/** Starts an engine for `use`, after which every block must be free, and closes it. */
export async function withEngine(
  options: EngineOptions,
  use: (engine: Engine) => Promise<void>,
): Promise<void> {
  const engine = await startEngine(options);
  try {
    await use(engine);
    assert.equal(engine.stats().freeBlocks, engine.info.numBlocks);
  } finally {
    await engine.close();
  }
}

let ids = 0;

/** The tokens of each choice. */
export function generate(
  engine: Engine,
  prompt: readonly number[],
  params: Partial<SamplingParams>,
): Promise<number[][]> {
  const complete = samplingParams({ ignoreEos: true, ...params }, engine.info);
  const choices: number[][] = Array.from({ length: complete.n }, () => []);
  let open = complete.n;
  return new Promise((resolve, reject) => {
    engine.generate({ id: `${ids++}`, prompt, params: complete }, ({ index, tokens, finish }) => {
      choices[index].push(...tokens);
      if (finish?.error) reject(new Error(finish.error.message));
      else if (finish && --open === 0) resolve(choices);
    });
  });
}

/** All at once; tokens from the first unclear one of each prompt on are not compared. */
export async function checkGreedy(
  engine: Engine,
  golden: readonly Greedy[],
  noise = NOISE,
): Promise<void> {
  let checked = 0;
  await Promise.all(
    golden.map(async ({ prompt, tokens, margin }) => {
      const [got] = await generate(engine, prompt, { temperature: 0, maxTokens: tokens.length });
      const unsure = margin.findIndex((each) => each < noise);
      const sure = unsure === -1 ? tokens.length : unsure;
      assert.equal(got.length, tokens.length);
      assert.deepEqual(got.slice(0, sure), tokens.slice(0, sure));
      checked += sure;
    }),
  );
  assert.ok(checked >= 2 * golden.length, `${checked} tokens have a clear margin`);
}
