/**
 * Requests that arrive together are taken up one in each turn of the event loop: parsing and
 * tokenizing a burst of hundreds in one turn would keep a health check or a scrape waiting for all.
 */
let last: Promise<void> = Promise.resolve();

/** Resolves in a turn of the event loop that no other caller gets. */
export function ownTurn(): Promise<void> {
  last = last.then(() => new Promise((resolve) => setImmediate(resolve)));
  return last;
}
