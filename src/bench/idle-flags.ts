/**
 * Refuses flags that would do nothing beside the others given: whoever writes one believes that it
 * shapes the measurement.
 */
import { UsageError } from '../flags/flag.js';
import type { ParsedFlags } from '../flags/parse-flags.js';
import type { BENCH_SERVE_FLAGS, Dataset } from './serve-flags.js';

type Flags = ParsedFlags<typeof BENCH_SERVE_FLAGS>;
type Name = keyof Flags['values'];

const TEXTS: readonly Dataset[] = ['custom', 'sharegpt', 'mt-bench'];
const TRACES: readonly Dataset[] = ['azure', 'mooncake', 'burstgpt'];

/** The datasets a flag is for, where it is not for all. */
const DATASETS_OF: Partial<Record<Name, readonly Dataset[]>> = {
  'dataset-path': [...TEXTS, ...TRACES],
  'random-input-len': ['random'],
  'random-output-len': ['random'],
  'random-range-ratio': ['random'],
  'random-prefix-len': ['random'],
  'random-prefix-share': ['random'],
  'random-num-prefixes': ['random'],
  'output-len': TEXTS,
  'vocab-size': ['random', ...TRACES],
  speedup: TRACES,
  'trace-jitter': ['mooncake'],
};

/** One of the others must be there. */
const NEEDS: readonly (readonly [Name, readonly Name[]])[] = [
  ['random-num-prefixes', ['random-prefix-share']],
  ['burstiness', ['request-rate', 'ramp-up-strategy', 'sweep']],
  ['ramp-up-start-rps', ['ramp-up-strategy']],
  ['ramp-up-end-rps', ['ramp-up-strategy']],
  ['sweep-points', ['sweep']],
  ['sweep-seconds', ['sweep']],
];

/** They say the same, or opposite things. A sweep offers rates of its own. */
const EXCLUDE: readonly (readonly [Name, readonly Name[]])[] = [
  ['url', ['base-url']],
  ['num-prompts', ['limit']],
  ['ramp-up-strategy', ['request-rate']],
  ['sweep', ['request-rate', 'ramp-up-strategy', 'speedup', 'trace-jitter']],
  ['speedup', ['request-rate', 'ramp-up-strategy']],
  ['trace-jitter', ['request-rate', 'ramp-up-strategy']],
];

/** Throws UsageError. */
export function refuseIdleFlags({ given: written, values }: Flags): void {
  // `--no-sweep` is as good as nothing.
  const given = new Set([...written].filter((name) => values[name] !== false));
  const dataset = values['dataset-name'];
  for (const name of given) {
    const datasets = DATASETS_OF[name];
    if (datasets && !datasets.includes(dataset)) {
      throw new UsageError(
        `Expected --${name} only with --dataset-name ${datasets.join(', ')} but received it with ${dataset}`,
      );
    }
  }
  for (const [name, others] of NEEDS) {
    if (given.has(name) && !others.some((other) => given.has(other))) {
      throw new UsageError(
        `Expected ${others.map((other) => `--${other}`).join(' or ')} beside --${name}, which does nothing without`,
      );
    }
  }
  for (const [name, others] of EXCLUDE) {
    const other = others.find((one) => given.has(one));
    if (given.has(name) && other) {
      throw new UsageError(`Expected --${name} or --${other}, not both`);
    }
  }
  const lengths = [values['random-input-len'], values['random-output-len']];
  if (given.has('random-range-ratio') && lengths.every(({ kind }) => kind !== 'fixed')) {
    throw new UsageError('Expected a fixed length beside --random-range-ratio, which widens those');
  }
}
