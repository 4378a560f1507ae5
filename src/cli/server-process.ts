/** Runs `millrace serve` as a process of its own, so that a load generator here does not slow it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { ServerFailedError } from '../errors.js';

export interface ServerProcess {
  /** `http://host:port`, once it listens. */
  url: string;
  /** Resolves with the exit code when the server has ended by itself or by a signal. */
  exited: Promise<number>;
  /** A signal has told us, and so the server, to stop. */
  readonly interrupted: boolean;
  /** Asks the server to shut down and waits for it. */
  stop(): Promise<void>;
}

/** Starts the server and waits until it listens. What it says on stderr goes to ours. */
export async function startServerProcess(args: readonly string[]): Promise<ServerProcess> {
  const main = fileURLToPath(new URL('main.js', import.meta.url));
  const child = spawn(process.execPath, [main, 'serve', ...args], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const exited = once(child, 'exit').then(([code]) => (code as number | null) ?? 0);
  // Ctrl-C reaches the child by itself (same process group); a SIGTERM sent to us does not.
  let interrupted = false;
  const passOn = () => {
    interrupted = true;
    child.kill('SIGTERM');
  };
  const wait = () => {
    interrupted = true;
  };
  process.on('SIGTERM', passOn);
  exited.then(() => {
    process.off('SIGTERM', passOn);
    process.off('SIGINT', wait);
  });

  let said = '';
  child.stdout.setEncoding('utf8');
  const listening = new Promise<string>((resolve) => {
    child.stdout.on('data', (chunk: string) => {
      said += chunk;
      const url = said.match(/http:\/\/\S+/)?.[0];
      if (url) resolve(url);
    });
  });
  const url = await Promise.race([listening, exited]);
  if (typeof url === 'number') {
    throw new ServerFailedError(`The server ended with code ${url} before it listened.`);
  }
  // Until here Ctrl-C ends both of us at once; from now on the server finishes first.
  process.on('SIGINT', wait);
  return {
    url,
    exited,
    get interrupted() {
      return interrupted;
    },
    stop: async () => {
      if (child.exitCode === null && child.signalCode === null) child.kill('SIGTERM');
      await exited;
    },
  };
}
