/**
 * Whether the load generator itself was the bottleneck: its figures then tell more of the client
 * than of the server.
 */
import { monitorEventLoopDelay, performance } from 'node:perf_hooks';
import { percentile } from './statistics.js';

/** Above this share of a core the event loop answers late. */
const MAX_UTILIZATION = 0.9;
/** ms. Of a shorter run the utilization says nothing: it starts with the sending. */
const MIN_WATCH = 100;
/**
 * ms. A p99 of sends later than this is no open loop any more; unless it is only one or two
 * requests of a short run, which any hiccup of the machine can hit.
 */
const MAX_LATE = 10;
const MIN_LATE_SENDS = 3;

export interface HealthReport {
  /** Share of the time the event loop was busy, over the run and in its busiest second. */
  utilization: number;
  worstUtilization: number;
  /** 99th percentile of the event loop's delay, ms. */
  loopDelayP99: number;
  /** How late requests were sent by the client's own fault, ms. NaN in a closed loop. */
  lateP50: number;
  lateP99: number;
  lateMax: number;
  /** What was wrong, in a sentence; absent if the client kept up. */
  bottleneck?: string;
}

export class ClientHealth {
  readonly #late: number[] = [];
  #noSocket = 0;
  readonly #delay = monitorEventLoopDelay({ resolution: 5 });
  readonly #start = performance.eventLoopUtilization();
  #second = this.#start;
  #worst = 0;
  readonly #timer: NodeJS.Timeout;

  constructor() {
    this.#delay.enable();
    this.#timer = setInterval(() => this.#tick(), 1000).unref();
  }

  noteSend(late: number): void {
    this.#late.push(late);
  }

  noteNoSocket(): void {
    this.#noSocket++;
  }

  #tick(): void {
    const current = performance.eventLoopUtilization();
    const { utilization } = performance.eventLoopUtilization(current, this.#second);
    this.#worst = Math.max(this.#worst, utilization);
    this.#second = current;
  }

  /** Ends the watch. */
  report(): HealthReport {
    clearInterval(this.#timer);
    this.#delay.disable();
    const { utilization, active, idle } = performance.eventLoopUtilization(this.#start);
    const report: HealthReport = {
      utilization,
      worstUtilization: Math.max(this.#worst, utilization),
      // The histogram holds the sampling interval too.
      loopDelayP99: Math.max(0, this.#delay.percentile(99) / 1e6 - 5),
      lateP50: percentile(this.#late, 50),
      lateP99: percentile(this.#late, 99),
      lateMax: percentile(this.#late, 100),
    };
    const lateSends = this.#late.filter((late) => late > MAX_LATE).length;
    report.bottleneck = verdict(report, {
      lateSends,
      noSocket: this.#noSocket,
      watchedLong: active + idle >= MIN_WATCH,
    });
    return report;
  }
}

/** The sentence that goes first in every report, if the client was the bottleneck. */
function verdict(
  health: HealthReport,
  seen: { lateSends: number; noSocket: number; watchedLong: boolean },
): string | undefined {
  const { lateSends, noSocket, watchedLong } = seen;
  const faults: string[] = [];
  if (noSocket > 0) faults.push(`${noSocket} requests found no free socket on its machine`);
  if (health.lateP99 > MAX_LATE && lateSends >= MIN_LATE_SENDS) {
    faults.push(`1 % of the requests were sent more than ${health.lateP99.toFixed(0)} ms late`);
  }
  if (watchedLong && health.utilization > MAX_UTILIZATION) {
    faults.push(`its event loop was ${(health.utilization * 100).toFixed(0)} % busy`);
  }
  if (faults.length === 0) return undefined;
  return `THE CLIENT WAS THE BOTTLENECK: ${faults.join(' and ')}. These figures do not measure the server.`;
}
