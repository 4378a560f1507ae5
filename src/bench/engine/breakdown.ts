/** Where the time of a series of steps went, beside what the roofline allows. */
import { costOfStep, type Machine, rooflineSeconds, type Stored } from '../../backend/cost/cost.js';
import type { Program } from '../../model/program.js';
import { duration, type Phases, type StepRecord } from './instrumented-engine.js';

export interface OperationTime {
  kind: string;
  seconds: number;
  /** What the operations of this kind would take at the machine's limits; 0 where none is counted. */
  rooflineSeconds: number;
  flops: number;
  /** Weights and KV cache. */
  bytes: number;
  /** Which limit is nearer, for most of the roofline's time. */
  bound: 'compute' | 'memory' | 'none';
}

/** Sums over all steps of a phase, in seconds. */
export interface Breakdown {
  steps: number;
  /** Tokens computed, and tokens generated. */
  tokens: number;
  generated: number;
  seconds: number;
  rooflineSeconds: number;
  phases: Phases;
  /** Longest first. */
  operations: OperationTime[];
}

/** Kinds the executor may compute within another, the first that it has, in whose time they are then. */
const FUSED_INTO: Readonly<Record<string, readonly string[]>> = {
  add: ['linear'],
  silu_mul: ['linear'],
  rope: ['qkv_store', 'attention'],
};

const NO_PHASES: Phases = { schedule: 0, build: 0, compute: 0, apply: 0, publish: 0 };

export function breakdown(
  steps: readonly StepRecord[],
  program: Program,
  stored: Stored,
  machine: Machine,
): Breakdown {
  const phases = { ...NO_PHASES };
  const operations = new Map<string, OperationTime & { computeBound: number }>();
  const operation = (kind: string) => {
    let found = operations.get(kind);
    if (!found) {
      const nothing = { seconds: 0, rooflineSeconds: 0, flops: 0, bytes: 0, computeBound: 0 };
      found = { kind, ...nothing, bound: 'none' };
      operations.set(kind, found);
    }
    return found;
  };
  for (const step of steps) {
    for (const phase of Object.keys(phases) as (keyof Phases)[])
      phases[phase] += step.phases[phase];
    for (const [kind, seconds] of Object.entries(step.operations)) {
      if (seconds > 0) operation(kind).seconds += seconds;
    }
  }
  const timed = new Set(operations.keys());
  for (const step of steps) {
    for (const cost of costOfStep(program, stored, step.shape)) {
      const { kind } = cost.op;
      const within = [kind, ...(FUSED_INTO[kind] ?? [])];
      const entry = operation(within.find((each) => timed.has(each)) ?? within.at(-1)!);
      const seconds = rooflineSeconds([cost], machine);
      entry.rooflineSeconds += seconds;
      entry.flops += cost.flops;
      entry.bytes += cost.weightBytes + cost.kvBytes;
      if (cost.flops / machine.flopsPerSecond >= seconds) entry.computeBound += seconds;
    }
  }
  const list = [...operations.values()].map(({ computeBound, ...entry }): OperationTime => {
    const { rooflineSeconds: limit } = entry;
    return {
      ...entry,
      bound: limit === 0 ? 'none' : computeBound > limit / 2 ? 'compute' : 'memory',
    };
  });
  const sum = (of: (step: StepRecord) => number) =>
    steps.reduce((total, step) => total + of(step), 0);
  return {
    steps: steps.length,
    tokens: sum((step) => step.tokens),
    generated: sum((step) => step.generated),
    seconds: sum(duration),
    rooflineSeconds: list.reduce((total, entry) => total + entry.rooflineSeconds, 0),
    phases,
    operations: list.sort((a, b) => b.seconds - a.seconds),
  };
}
