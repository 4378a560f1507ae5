/**
 * node-llama-cpp's side. One context holds all streams as sequences; each sequence is driven by
 * `evaluate`, and the library puts what is pending of all of them into one batch (its guide
 * "Using batching" and the `sequences` option of `createContext`). The prebuilt binary picks the
 * kernels of this machine's instruction set itself.
 */
import { pathToFileURL } from 'node:url';
import { now } from '../../src/engine/api.js';
import {
  CONTEXT,
  type Contender,
  type Streams,
  serveContender,
  type Workload,
} from './contender.js';
import { keepPrepared } from './keep-prepared.js';

/** The part of node-llama-cpp's interface that is used here. */
interface Library {
  getLlama(options: object): Promise<{
    systemInfo: string;
    loadModel(options: { modelPath: string }): Promise<Model>;
    dispose(): Promise<void>;
  }>;
}
interface Model {
  createContext(options: object): Promise<Context>;
}
interface Context {
  getSequence(): Sequence;
  dispose(): Promise<void>;
}
interface Sequence {
  evaluate(
    tokens: readonly number[],
    options: { temperature: number; yieldEogToken: boolean },
  ): AsyncIterable<number>;
  dispose(): Promise<void>;
}

const [library, version, modelPath, threads] = process.argv.slice(2);

await serveContender(async (): Promise<Contender> => {
  const { getLlama } = (await import(pathToFileURL(library).href)) as Library;
  const llama = await getLlama({
    gpu: false,
    build: 'never',
    skipDownload: true,
    progressLogs: false,
    logLevel: 'error',
    maxThreads: Number(threads),
  });
  const model = await llama.loadModel({ modelPath });
  const features = llama.systemInfo.match(/[A-Z0-9_]+(?= = 1)/g) ?? [];
  const contender = keepPrepared<Context>(`node-llama-cpp ${version}: ${features.join(' ')}`, {
    make: (streams, settings) =>
      model.createContext({
        sequences: streams,
        contextSize: CONTEXT,
        batchSize: settings.batchSize,
        flashAttention: settings.flashAttention,
        threads: settings.threads,
      }),
    run,
    dispose: (context) => context.dispose(),
  });
  // The library disposes of its contexts itself.
  return { ...contender, close: () => llama.dispose() };
});

async function run(context: Context, { prompts, outputTokens }: Workload): Promise<Streams> {
  const sequences = prompts.map(() => context.getSequence());
  const tokens: number[][] = prompts.map(() => []);
  const times: number[][] = prompts.map(() => []);
  const start = now();
  await Promise.all(
    sequences.map(async (sequence, stream) => {
      const options = { temperature: 0, yieldEogToken: true };
      for await (const token of sequence.evaluate(prompts[stream], options)) {
        tokens[stream].push(token);
        times[stream].push(now());
        if (tokens[stream].length === outputTokens) break;
      }
    }),
  );
  await Promise.all(sequences.map((sequence) => sequence.dispose()));
  return { start, tokens, times };
}
