/** What a runner says of matrices that a checkpoint has in fewer bits than the executor keeps. */
import type { Program } from '../model/program.js';
import type { WeightSource } from '../model/weights.js';

/** Such as ", 14 matrices of fp8 widened"; `kept` are the names of those that are not floats. */
export function describeWidened(
  program: Program,
  source: WeightSource,
  kept: ReadonlySet<string>,
): string {
  const counts = new Map<string, number>();
  for (const { name, parts } of program.weights) {
    if (kept.has(name)) continue;
    const { tensor } = parts[0];
    const found = source.tensor(tensor);
    if (found.kind !== 'fp8' && found.kind !== 'quantized') continue;
    const type = found.kind === 'fp8' ? 'fp8' : `int${found.storage.bits}`;
    counts.set(type, (counts.get(type) ?? 0) + 1);
  }
  return [...counts].map(([type, count]) => `, ${count} matrices of ${type} widened`).join('');
}
