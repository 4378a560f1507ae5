/**
 * The `openai` client against a running server: streaming, usage, several answers, errors.
 *
 *     npx millrace serve models/stories-7m --served-model-name stories-7m &
 *     node dist/examples/openai-client.js [http://127.0.0.1:8000/v1]
 */
import OpenAI, { APIError } from 'openai';

const client = new OpenAI({
  baseURL: process.argv[2] ?? 'http://127.0.0.1:8000/v1',
  apiKey: 'none', // or one of the server's --api-key
});
const model = 'stories-7m';
const messages = [{ role: 'user' as const, content: 'Write a story about a dragon and a cake.' }];

const stream = await client.chat.completions.create({
  model,
  messages,
  max_tokens: 80,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const { choices, usage } of stream) {
  process.stdout.write(choices[0]?.delta.content ?? '');
  if (usage) console.log(`\n[${usage.prompt_tokens} + ${usage.completion_tokens} tokens]\n`);
}

// Three answers to one prompt share its computation. `top_k` is vLLM's, so the client's types lack it.
const answer = await client.completions.create({
  model,
  prompt: 'The dragon said:',
  n: 3,
  max_tokens: 16,
  seed: 1,
  ...{ top_k: 20 },
});
for (const { index, text } of answer.choices) console.log(`${index}: ${text}`);

try {
  await client.chat.completions.create({ model, messages, temperature: -1 });
} catch (error) {
  if (!(error instanceof APIError)) throw error;
  console.log(`\n${error.status} ${error.param}: ${error.message}`);
}
