/**
 * Scoring instead of generating: how likely the model finds each text, token by token.
 *
 *     npm ci && node dist/examples/score.js
 */
import { LLM } from 'millrace';

const texts = [
  'Once upon a time, there was a little girl named Lily.',
  'Lily girl a was time, there upon named a Once little.',
];

const llm = await LLM.load('models/stories-7m', { dtype: 'float32' });
// Without generating nothing is scored: one token is made and thrown away.
const scored = await llm.generate(texts, { promptLogprobs: 0, maxTokens: 1 });
for (const { prompt, promptLogprobs = [] } of scored) {
  // The first token has nothing before it to be predicted from.
  const logprobs = promptLogprobs.flatMap((entry) => (entry ? [entry.logprob] : []));
  const mean = logprobs.reduce((sum, logprob) => sum + logprob, 0) / logprobs.length;
  console.log(`perplexity ${Math.exp(-mean).toFixed(2).padStart(8)}  ${prompt}`);
}
await llm.close();
