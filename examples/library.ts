/**
 * Millrace in your own process: many prompts in one batch, then a chat, streamed.
 *
 *     npm ci && node dist/examples/library.js
 */
import { type ChatMessage, LLM } from 'millrace';

const llm = await LLM.load('models/stories-7m');

// All prompts share every step of the engine: sixteen take little longer than one.
const beginnings = ['Once upon a time', 'The little dragon', 'On a rainy day', 'Lily found a box'];
const prompts = Array.from({ length: 16 }, (_, i) => beginnings[i % beginnings.length]);
const stories = await llm.generate(
  prompts,
  { maxTokens: 60, temperature: 0.8, stop: ['\n'] },
  {
    onProgress: ({ done, total, tokensPerSecond }) =>
      console.log(`${done} of ${total} stories, ${Math.round(tokensPerSecond)} tok/s`),
  },
);
const [first] = stories;
console.log(`\n${first.prompt}${first.text} [${first.choices[0].finishReason}]\n`);

const chat: ChatMessage[] = [{ role: 'user', content: 'Write a story about a dragon and a cake.' }];
for await (const { text } of llm.stream(chat, { maxTokens: 120 })) process.stdout.write(text);
console.log();

await llm.close();
