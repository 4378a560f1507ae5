/** Random requests through an engine, all at once, and when things happened. */
import { SeededRandom } from '../../src/bench/seeded-random.js';
import { type Engine, now, type StepReport } from '../../src/engine/api.js';
import { samplingParams } from '../../src/engine/sampling-params.js';

export interface Lengths {
  input: number;
  output: number;
}

export interface RunTimes {
  /** Seconds from the first request to the last first token, and to the last token. */
  prefill: number;
  total: number;
  outputTokens: number;
  /** Each step as it was reported, with the moment in ms. */
  steps: { at: number; report: StepReport }[];
}

let requests = 0;
let runs = 0;

/** Greedy, to exactly the given lengths. Prompts differ from run to run: no prefix is known. */
export async function runRequests(engine: Engine, lengths: readonly Lengths[]): Promise<RunTimes> {
  const random = new SeededRandom(runs++);
  const { vocabSize } = engine.info;
  const prompts = lengths.map(({ input }) =>
    Int32Array.from({ length: input }, () => random.integer(0, vocabSize)),
  );
  const steps: RunTimes['steps'] = [];
  const stop = engine.onStep((report) => steps.push({ at: now(), report }));
  const start = now();
  let firstTokens = 0;
  let outputTokens = 0;
  await Promise.all(
    lengths.map(
      ({ output }, n) =>
        new Promise<void>((resolve, reject) => {
          const given = { temperature: 0, maxTokens: output, ignoreEos: true };
          const params = samplingParams(given, engine.info);
          let got = 0;
          engine.generate({ id: `${requests++}`, prompt: prompts[n], params }, (delta) => {
            if (got === 0 && delta.tokens.length > 0) firstTokens = now();
            got += delta.tokens.length;
            if (!delta.finish) return;
            outputTokens += got;
            if (got === output) resolve();
            else reject(new Error(`${got} of ${output} tokens: ${delta.finish.error?.message}`));
          });
        }),
    ),
  );
  const total = (now() - start) / 1000;
  stop();
  return { prefill: (firstTokens - start) / 1000, total, outputTokens, steps };
}

/** Mean ms from step to step while all `batch` requests decode, ends left out. */
export function decodeInterval({ steps }: RunTimes, batch: number): number {
  const decodes = steps.filter(({ report }) => report.tokens === batch);
  const inner = decodes.slice(5, -5);
  if (inner.length < 10) throw new Error(`only ${decodes.length} steps had ${batch} tokens`);
  return (inner[inner.length - 1].at - inner[0].at) / (inner.length - 1);
}

export function same(count: number, input: number, output: number): Lengths[] {
  return Array.from({ length: count }, () => ({ input, output }));
}

/** Both lengths uniform between 100 and 1,024, the same in each run. */
export function uniform(count: number): Lengths[] {
  const random = new SeededRandom(1);
  const length = () => random.integer(100, 1025);
  return Array.from({ length: count }, () => ({ input: length(), output: length() }));
}
