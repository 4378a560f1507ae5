/**
 * The requests that were accepted and not yet scheduled, counted exactly, and how fast they leave.
 * No clock of its own: times are given, in ms.
 */
const WINDOW_MS = 10_000;
const MAX_RETRY_S = 60;

export class QueueMeter {
  requests = 0;
  tokens = 0;
  /** What left lately: times and prompt tokens, oldest first. */
  #left: { time: number; tokens: number }[] = [];

  enter(tokens: number): void {
    this.requests++;
    this.tokens += tokens;
  }

  leave(tokens: number, time: number): void {
    this.requests--;
    this.tokens -= tokens;
    this.#left.push({ time, tokens });
    this.#forget(time);
  }

  /**
   * Seconds until the queue, at the pace of the last ten, will have shrunk by this much; at least 1,
   * and 60 at most: nobody should stay away for long because of one slow moment.
   */
  retryAfter(requests: number, tokens: number, time: number): number {
    this.#forget(time);
    if (this.#left.length === 0) return 1;
    const seconds = Math.max(1, time - this.#left[0].time) / 1000;
    const leftTokens = this.#left.reduce((sum, each) => sum + each.tokens, 0);
    const wait = Math.max(
      (requests / this.#left.length) * seconds,
      (tokens / Math.max(1, leftTokens)) * seconds,
    );
    return Math.min(MAX_RETRY_S, Math.max(1, Math.ceil(wait)));
  }

  #forget(time: number): void {
    let old = 0;
    while (old < this.#left.length && this.#left[old].time < time - WINDOW_MS) old++;
    // A burst of arrivals must not make this quadratic: drop in bulk.
    if (old > 0 && (old >= 64 || old === this.#left.length)) this.#left.splice(0, old);
  }
}
