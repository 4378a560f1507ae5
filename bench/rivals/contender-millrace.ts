/** Millrace's side: the engine as `millrace serve` runs it, without HTTP. */
import { now } from '../../src/engine/api.js';
import { samplingParams } from '../../src/engine/sampling-params.js';
import { startEngine } from '../../src/engine/start-engine.js';
import {
  CONTEXT,
  type Contender,
  type Streams,
  serveContender,
  type Workload,
} from './contender.js';

const [model, loadFormat, threads] = process.argv.slice(2);

await serveContender(async (): Promise<Contender> => {
  const engine = await startEngine({
    model,
    loadFormat: loadFormat as 'auto',
    threads: Number(threads),
    maxModelLen: CONTEXT,
    kvCacheMemory: 1 << 30,
    // The rivals compute every prompt; ours are random and would not be found anyway.
    enablePrefixCaching: false,
  });
  let runs = 0;
  return {
    description: `Millrace: ${engine.info.plan.at(-1)}`,
    run: (workload) => run(workload, runs++),
    close: () => engine.close(),
  };

  async function run(
    { prompts, outputTokens, withMargins: wanted }: Workload,
    index: number,
  ): Promise<Streams> {
    const tokens: number[][] = prompts.map(() => []);
    const times: number[][] = prompts.map(() => []);
    const margins: number[][] = prompts.map(() => []);
    const params = samplingParams(
      {
        temperature: 0,
        maxTokens: outputTokens,
        ignoreEos: true,
        logprobs: wanted ? 2 : undefined,
      },
      engine.info,
    );
    const start = now();
    await Promise.all(
      prompts.map(
        (prompt, stream) =>
          new Promise<void>((resolve, reject) => {
            engine.generate({ id: `${index}-${stream}`, prompt, params }, (delta) => {
              const at = now();
              for (const token of delta.tokens) {
                tokens[stream].push(token);
                times[stream].push(at);
              }
              for (const { top } of delta.logprobs ?? []) {
                margins[stream].push(top[0].logprob - top[1].logprob);
              }
              if (delta.finish?.reason === 'length') resolve();
              else if (delta.finish) reject(new Error(`a stream ended: ${delta.finish.reason}`));
            });
          }),
      ),
    );
    return { start, tokens, times, margins: wanted ? margins : undefined };
  }
});
