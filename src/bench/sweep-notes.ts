/** What a reader of a sweep must know beside its points. */
import type { SweepPoint } from './result.js';
import { cell } from './text-table.js';
import type { WorkloadRequest } from './workloads/workload.js';

/** A share by which an open loop may pass the saturation by chance. */
const BY_CHANCE = 1.05;

export function sweepNotes(
  points: readonly SweepPoint[],
  prompts: readonly WorkloadRequest[],
): string[] {
  const used = points.reduce((sum, { result }) => sum + result.settings.numPrompts, 0);
  const notes: string[] = [];
  if (prompts[0].at !== undefined) {
    notes.push("the trace's lengths at the sweep's own rates: its times are not used");
  }
  if (used > prompts.length) {
    notes.push(
      `${prompts.length} prompts for ${used} requests: those repeated may be found in the prefix cache; give more with --num-prompts`,
    );
  }
  const served = ({ result }: SweepPoint) => result.summary.steady.requests.value;
  const saturated = points.find(({ name }) => name === 'saturated');
  const [best] = points
    .filter(({ rate, result }) => rate !== null && result.summary.completed > 0)
    .sort((a, b) => served(b) - served(a));
  if (saturated && best && served(best) > BY_CHANCE * served(saturated)) {
    notes.push(
      `at ${best.name} the server did more than with everything at once: saturation is at least ${cell(served(best))} req/s; another --max-concurrency or a quieter machine may show it`,
    );
  }
  return notes;
}
