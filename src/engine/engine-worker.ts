/** Entry of the engine's thread; `workerData` are the EngineOptions. */
import { setPriority } from 'node:os';
import { parentPort, workerData } from 'node:worker_threads';
import { createCore } from './create-core.js';
import { serveEngine } from './engine-loop.js';
import { type Report, serializeError } from './engine-protocol.js';

const port = parentPort!;
const post = (report: Report): void => port.postMessage(report);

try {
  // On Linux a priority belongs to a thread and passes on to those it starts: where cores are short,
  // the HTTP thread's short turns go before the compute threads'.
  if (process.platform === 'linux') setPriority(0, 5);
  const { core, runner, info } = await createCore(workerData, (share) =>
    post({ type: 'progress', share }),
  );
  serveEngine(port, core, () => runner.close());
  post({ type: 'ready', info });
} catch (error) {
  post({ type: 'refused', error: serializeError(error) });
  port.close();
}
