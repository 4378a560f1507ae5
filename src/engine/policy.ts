/**
 * Who is served first; and when requests join a batch, in what pieces, with how much memory. The
 * defaults of the latter are how Millrace serves. The others are how servers worked before, one step
 * of that history each, so that bench/ablations.ts can measure what each step is worth.
 */
import type { Sequence } from './sequence.js';

export const SCHEDULING_POLICIES = ['fcfs', 'priority'] as const;
export type SchedulingPolicy = (typeof SCHEDULING_POLICIES)[number];

/**
 * `continuous`: requests join and leave in every step. `static`: when the last batch has ended, the
 * next is waited for until it is full, or for `BATCH_DELAY_MS`, and runs until all of it has ended; a
 * seat that becomes free stays empty till then.
 */
export const BATCHINGS = ['continuous', 'static'] as const;
export type Batching = (typeof BATCHINGS)[number];

/** How long an idle engine waits for a static batch to become full, from the first request on. */
export const BATCH_DELAY_MS = 50;

/**
 * `by-block`: a sequence holds the blocks its tokens fill. `worst-case`: from its admission on it
 * holds as many as `maxModelLen` tokens fill, as with a contiguous cache of that length for each.
 */
export const KV_RESERVATIONS = ['by-block', 'worst-case'] as const;
export type KvReservation = (typeof KV_RESERVATIONS)[number];

/** Negative if `a` is served before `b`; 0 only for the same sequence. */
export type ServiceOrder = (a: Sequence, b: Sequence) => number;

/** First come, first served; the choices of a request in their order. */
const byArrival: ServiceOrder = (a, b) => a.request.order - b.request.order || a.index - b.index;

/** Lowest `priority` value first, then first come, first served. */
const byPriority: ServiceOrder = (a, b) =>
  a.request.priority - b.request.priority || byArrival(a, b);

export function serviceOrder(policy: SchedulingPolicy): ServiceOrder {
  return policy === 'priority' ? byPriority : byArrival;
}
