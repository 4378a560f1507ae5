/**
 * Something that runs streams of greedy tokens and says when each came: Millrace or a rival. Each
 * runs in a process of its own, so that threads, thread pools and garbage of one do not slow the
 * others; while one is measured the others wait for a message.
 */
import { type ChildProcess, fork } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

export interface Workload {
  /** One stream each; all are sent at once. */
  prompts: number[][];
  /** Tokens every stream generates; the end-of-sequence token does not end it. */
  outputTokens: number;
  /** Ask for `Streams.margins`. */
  withMargins?: boolean;
}

/** Stands for a token that was generated and not told. */
export const UNSEEN = -1;

export interface Streams {
  /** When the prompts were handed over, in ms. */
  start: number;
  /** `UNSEEN` where the contender does not tell which it was. */
  tokens: number[][];
  /** When each token reached the caller, on the same clock as `start`. */
  times: number[][];
  /** How much likelier each token was than the runner-up, in nats; only Millrace tells. */
  margins?: number[][];
}

/** What a contender can be told to try; each reads the settings it knows. */
export interface Settings {
  threads: number;
  /** Tokens in one forward pass at most. */
  batchSize: number;
  flashAttention: boolean;
}

export interface Contender {
  /** Name, version, instruction set: one line for the report. */
  readonly description: string;
  /** Rejects with `TooSlowError` if it takes longer than `limitMs`. */
  run(workload: Workload, settings: Settings, limitMs?: number): Promise<Streams>;
  /** Makes everything ready for such a run, outside the measured time. */
  prepare?(streams: number, settings: Settings): Promise<void>;
  close(): Promise<void>;
}

/** A run was given up. */
export class TooSlowError extends Error {}

/** Longest context of a stream in tokens; a contender may round it up. */
export const CONTEXT = 512;

type Command =
  | { type: 'prepare'; streams: number; settings: Settings }
  | { type: 'run'; workload: Workload; settings: Settings }
  | { type: 'close' };
type Answer = { type: 'done'; value?: unknown } | { type: 'failed'; message: string };

/** In the contender's process: makes it and serves commands until `close`. */
export async function serveContender(make: () => Promise<Contender>): Promise<void> {
  const answer = (reply: Answer) => process.send?.(reply);
  const guarded = async (act: () => Promise<unknown>) => {
    try {
      answer({ type: 'done', value: await act() });
    } catch (error) {
      answer({ type: 'failed', message: (error as Error).stack ?? String(error) });
    }
  };
  let contender: Contender | undefined;
  await guarded(async () => {
    contender = await make();
    return contender.description;
  });
  if (!contender) {
    // Nothing to serve. Messages on their way are delivered before the channel closes.
    process.exitCode = 1;
    process.disconnect?.();
    return;
  }
  // Whoever started this is gone: so is the reason to run.
  process.once('disconnect', () => process.exit());
  process.on('message', (command: Command) => {
    void guarded(async () => {
      if (command.type === 'run') return await contender?.run(command.workload, command.settings);
      if (command.type === 'prepare') {
        return await contender?.prepare?.(command.streams, command.settings);
      }
      await contender?.close();
      setImmediate(() => process.disconnect?.());
    });
  });
}

/**
 * Starts the contender in `module` (beside this file) with `args` as a process, and anew when a run was
 * given up.
 */
export async function startContender(module: string, args: readonly string[]): Promise<Contender> {
  const start = () =>
    fork(fileURLToPath(new URL(module, import.meta.url)), args, {
      serialization: 'advanced',
      // A rival's chatter belongs to the progress line, not into the table.
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    });
  let child = start();
  const description = (await reply(child)) as string;
  const ask = (command: Command) => {
    child.send(command);
    return reply(child);
  };
  const restart = async () => {
    const exited = new Promise((resolve) => child.once('exit', resolve));
    child.disconnect();
    await orKill(child, exited);
    child = start();
    await reply(child);
  };
  return {
    description,
    prepare: async (streams, settings) => void (await ask({ type: 'prepare', streams, settings })),
    async run(workload, settings, limitMs) {
      const answer = ask({ type: 'run', workload, settings }) as Promise<Streams>;
      if (limitMs === undefined) return await answer;
      const stop = new AbortController();
      const late = sleep(limitMs, undefined, { signal: stop.signal }).catch(() => undefined);
      const streams = await Promise.race([answer, late]);
      stop.abort();
      if (streams) return streams;
      answer.catch(() => {});
      await restart();
      throw new TooSlowError(`${module} took longer than ${Math.round(limitMs)} ms`);
    },
    async close() {
      const exited = new Promise((resolve) => child.once('exit', resolve));
      await ask({ type: 'close' });
      await orKill(child, exited);
    },
  };
}

/** Native threads may keep a process alive that has nothing left to do. */
async function orKill(child: ChildProcess, exited: Promise<unknown>): Promise<void> {
  const timer = setTimeout(() => child.kill('SIGKILL'), 5000);
  await exited;
  clearTimeout(timer);
}

/** The next answer; rejects if the process fails or ends instead. */
function reply(child: ChildProcess): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const settle = (act: () => void) => {
      child.off('message', onMessage).off('exit', onExit);
      act();
    };
    const onMessage = (answer: Answer) =>
      settle(() =>
        answer.type === 'done' ? resolve(answer.value) : reject(new Error(answer.message)),
      );
    const onExit = (code: number | null) =>
      settle(() => reject(new Error(`${child.spawnargs[1]} ended with code ${code}`)));
    child.on('message', onMessage).on('exit', onExit);
  });
}
