/** A process of streaming clients: one client core could not keep up with a GPU. */
import { once } from 'node:events';
import { closedLoop } from '../../src/bench/closed-loop.js';
import { SeededRandom } from '../../src/bench/seeded-random.js';
import { keepAliveAgent, streamRequest } from '../../src/bench/streaming-client.js';
import { now } from '../../src/engine/api.js';

export interface ClientJob {
  url: string;
  clients: number;
  input: number;
  output: number;
  vocabSize: number;
  seed: number;
}

/** Moments of `now()`, which all processes of a machine share. */
export interface ClientResult {
  start: number;
  end: number;
  tokens: number;
  failure?: string;
}

if (process.send) {
  process.send('ready');
  for (;;) {
    const [job] = (await once(process, 'message')) as [ClientJob];
    process.send(await run(job));
  }
}

async function run({ url, clients, input, output, ...job }: ClientJob): Promise<ClientResult> {
  const random = new SeededRandom(job.seed);
  const agent = keepAliveAgent();
  const bodies = Array.from({ length: clients }, () => ({
    ...{ model: 'm', temperature: 0, max_tokens: output, ignore_eos: true, return_token_ids: true },
    prompt: Array.from({ length: input }, () => random.integer(0, job.vocabSize)),
  }));
  const start = now();
  const records = await closedLoop({
    count: clients,
    concurrency: clients,
    send: (index) =>
      streamRequest({
        ...{ url: `${url}/v1/completions`, agent, intended: now(), timeout: 60_000 },
        body: bodies[index],
      }),
  });
  agent.destroy();
  const failed = records.find((record) => record.error || record.outputTokens !== output);
  return {
    start,
    end: Math.max(...records.map((record) => record.end)),
    tokens: records.reduce((sum, { outputTokens }) => sum + outputTokens, 0),
    failure: failed && `${failed.outputTokens} of ${output} tokens: ${failed.error?.message}`,
  };
}
