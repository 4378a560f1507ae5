/**
 * The engine thread's loop: one step a turn of the event loop, so that messages that came during a
 * step are read before the next one without a timer. With nothing to do no turn is asked for, and
 * the thread sleeps in the poll for messages; while a static batch is gathered, with a timer set.
 */
import type { MessagePort } from 'node:worker_threads';
import type { EngineCore } from './engine-core.js';
import type { Command, Report } from './engine-protocol.js';
import { BATCH_DELAY_MS } from './policy.js';

/** Serves commands from `port` until one says `close`; then calls `onClose` and lets go of the port. */
export function serveEngine(port: MessagePort, core: EngineCore, onClose: () => void): void {
  let scheduled = false;
  let patience: NodeJS.Timeout | undefined;

  const step = (): void => {
    scheduled = false;
    if (!core.hasWork) return;
    // Messages that are there by now are read before the second step of a burst is made.
    if (!core.begin()) {
      const output = core.step();
      port.postMessage({ type: 'step', output } satisfies Report, [
        output.deltas.buffer as ArrayBuffer,
      ]);
    }
    wake();
  };
  /** The timer runs from the first of a batch on, however many come after it. */
  const watchBatch = (): void => {
    if (!core.isGathering) {
      clearTimeout(patience);
      patience = undefined;
    } else {
      patience ??= setTimeout(() => {
        core.startIncompleteBatch();
        wake();
      }, BATCH_DELAY_MS);
    }
  };
  const wake = (): void => {
    watchBatch();
    if (scheduled || !core.hasWork) return;
    scheduled = true;
    setImmediate(step);
  };

  port.on('message', (command: Command) => {
    if (command.type === 'add') core.add(command.request);
    else if (command.type === 'abort') core.abort(command.handle, command.index);
    else {
      core.abortAll();
      step();
      onClose();
      port.close();
    }
    wake();
  });
}
