/**
 * Waits until a moment to within a tenth of a millisecond. The event loop's timers are up to a
 * millisecond late, which would go into every latency measured; a thread asleep on a futex is not,
 * and takes no CPU.
 */
import { Worker } from 'node:worker_threads';
import { now } from '../engine/api.js';

/** Waits longer than this, in ms, are left to a timer for the most part. */
const TIMER_SLACK = 5;

export class Pacer {
  readonly #worker = new Worker(new URL('./pacer-thread.js', import.meta.url));
  #wake?: () => void;

  private constructor() {
    this.#worker.on('message', () => this.#wake?.());
  }

  /** Resolves when its thread is up, so that the first wait is as good as the others. */
  static async start(): Promise<Pacer> {
    const pacer = new Pacer();
    for (let i = 0; i < 3; i++) await pacer.#rest(now() + 1);
    return pacer;
  }

  /** Resolves at `moment`, in ms of `now()`, or when `signal` is aborted. */
  async until(moment: number, signal?: AbortSignal): Promise<void> {
    const left = moment - now();
    if (left > TIMER_SLACK) await sleep(left - TIMER_SLACK / 2, signal);
    if (!signal?.aborted && now() < moment) await this.#rest(moment);
  }

  #rest(moment: number): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
      this.#worker.postMessage(moment);
    });
  }

  close(): void {
    void this.#worker.terminate();
  }
}

function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const wake = () => {
      clearTimeout(timer);
      signal?.removeEventListener('abort', wake);
      resolve();
    };
    const timer = setTimeout(wake, ms);
    signal?.addEventListener('abort', wake);
  });
}
