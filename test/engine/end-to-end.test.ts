import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { samplingParams } from '../../src/engine/sampling-params.js';
import { loadTokenizer } from '../../src/tokenizer/load-tokenizer.js';
import { readGolden, STORIES, storiesGolden } from '../helpers/goldens.js';
import { checkGreedy, generate, withEngine } from '../helpers/real-engine.js';

for (const name of ['llama-tiny', 'qwen3-moe-tiny', 'mistral-window']) {
  const { path, greedy } = readGolden(name);
  const size = { model: path, dtype: 'float32' as const, maxNumSeqs: 4, maxNumBatchedTokens: 24 };

  for (const device of ['reference', 'cpu'] as const) {
    test(`${name} on ${device} gives the golden's greedy tokens, batched and in chunks`, async () => {
      await withEngine({ ...size, device }, (engine) => checkGreedy(engine, greedy));
    });
  }
}

test('stories-7m gives its greedy tokens with and without prefix cache, and when a tiny cache forces preemption', async () => {
  const { greedy } = storiesGolden();
  const base = { model: STORIES, dtype: 'float32' as const };
  const longest = Math.max(...greedy.map(({ prompt, tokens }) => prompt.length + tokens.length));
  for (const options of [
    { ...base, kvCacheMemory: 64 * 2 ** 20 },
    { ...base, kvCacheMemory: 64 * 2 ** 20, enablePrefixCaching: false, maxNumBatchedTokens: 16 },
  ]) {
    await withEngine(options, async (engine) => {
      await checkGreedy(engine, greedy);
      await checkGreedy(engine, greedy);
    });
  }
  let blockBytes = 0;
  await withEngine({ ...base, kvCacheMemory: 64 * 2 ** 20 }, async ({ info }) => {
    blockBytes = info.kvCacheBytes / info.numBlocks;
  });
  const tiny = { maxModelLen: longest, kvCacheMemory: (Math.ceil(longest / 16) + 2) * blockBytes };
  await withEngine({ ...base, ...tiny }, async (engine) => {
    await checkGreedy(engine, [...greedy, ...greedy, ...greedy]);
    assert.ok(engine.stats().preemptions > 0);
  });
});

test('A seeded request of three choices gives the same tokens alone and in a crowd', async () => {
  const [{ prompt }, ...others] = storiesGolden().greedy;
  const params = { n: 3, temperature: 0.9, topP: 0.95, seed: 7, maxTokens: 40 };
  await withEngine(
    { model: STORIES, dtype: 'float32', kvCacheMemory: 64 * 2 ** 20 },
    async (engine) => {
      const alone = await generate(engine, prompt, params);
      const crowd = others.map((other) => generate(engine, other.prompt, { maxTokens: 60 }));
      assert.deepEqual(await generate(engine, prompt, params), alone);
      await Promise.all(crowd);
      assert.notDeepEqual(alone[0], alone[1]);
    },
  );
});

test('Prompt logprobs give the reference perplexity of stories-7m', async () => {
  const { perplexity } = storiesGolden();
  const tokenizer = await loadTokenizer(STORIES);
  const lines = readFileSync(join(STORIES, perplexity.file), 'utf8')
    .split('\n')
    .slice(0, perplexity.lines)
    .map((line) => (JSON.parse(line) as { text: string }).text);
  await withEngine(
    { model: STORIES, dtype: 'float32', kvCacheMemory: 64 * 2 ** 20 },
    async (engine) => {
      const params = samplingParams({ maxTokens: 1, promptLogprobs: 0 }, engine.info);
      let nll = 0;
      let count = 0;
      await Promise.all(
        lines.map(
          (text, i) =>
            new Promise<void>((resolve) => {
              const prompt = [...tokenizer.encode(text), tokenizer.eosTokenId!];
              engine.generate({ id: `${i}`, prompt, params }, ({ promptLogprobs, finish }) => {
                for (const each of promptLogprobs?.slice(1) ?? []) {
                  nll -= each!.logprob;
                  count++;
                }
                if (finish) resolve();
              });
            }),
        ),
      );
      assert.equal(count, perplexity.tokens);
      const difference = Math.abs(Math.exp(nll / count) / perplexity.ppl - 1);
      assert.ok(difference < 0.002, `perplexity ${Math.exp(nll / count)}`);
    },
  );
});
