/** The thread behind `Pacer`: told a moment, it sleeps until then and answers. */
import { parentPort } from 'node:worker_threads';
import { now } from '../engine/api.js';

const port = parentPort;
if (!port) throw new Error('pacer-thread.js runs as a worker thread');
const never = new Int32Array(new SharedArrayBuffer(4));
port.on('message', (moment: number) => {
  const left = moment - now();
  if (left > 0) Atomics.wait(never, 0, 0, left);
  port.postMessage(0);
});
