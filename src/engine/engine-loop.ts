/**
 * The engine thread's loop: one step a turn of the event loop, so that messages that came during a
 * step are read before the next one without a timer. With nothing to do no turn is asked for, and
 * the thread sleeps in the poll for messages.
 */
import type { MessagePort } from 'node:worker_threads';
import type { EngineCore } from './engine-core.js';
import type { Command, Report } from './engine-protocol.js';

/** Serves commands from `port` until one says `close`; then calls `onClose` and lets go of the port. */
export function serveEngine(port: MessagePort, core: EngineCore, onClose: () => void): void {
  let scheduled = false;

  const step = (): void => {
    scheduled = false;
    if (!core.hasWork) return;
    const output = core.step();
    port.postMessage({ type: 'step', output } satisfies Report, [
      output.deltas.buffer as ArrayBuffer,
    ]);
    wake();
  };
  const wake = (): void => {
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
