/** Measures prefill and decode at each batch size and prompt length. */
import type { Machine, Stored } from '../../backend/cost/cost.js';
import type { Program } from '../../model/program.js';
import { SeededRandom } from '../seeded-random.js';
import { type Breakdown, breakdown } from './breakdown.js';
import { duration, type InstrumentedEngine, type StepRecord } from './instrumented-engine.js';

export interface GridOptions {
  batchSizes: readonly number[];
  inputLens: readonly number[];
  outputLen: number;
  /** Measured repetitions of a point, and ones before that do not count. */
  numIters: number;
  numItersWarmup: number;
  seed: number;
}

export interface GridPoint {
  batchSize: number;
  inputLen: number;
  /** Prompt tokens per second until every request has its first token; one of each repetition. */
  prefillRates: number[];
  /** Output tokens per second while every request decodes; empty if `outputLen` is 1. */
  decodeRates: number[];
  /** Of the repetition with the median rate. */
  prefill: Breakdown;
  decode?: Breakdown;
  /** The same, operation by operation, where timing those makes steps longer. */
  timed?: { prefill: Breakdown; decode?: Breakdown };
}

export interface Subject {
  engine: InstrumentedEngine;
  program: Program;
  stored: Stored;
  machine: Machine;
}

/** Yields point after point, smallest prompts and batches first. */
export function* measureGrid(subject: Subject, options: GridOptions): Generator<GridPoint> {
  const random = new SeededRandom(options.seed);
  for (const inputLen of options.inputLens) {
    for (const batchSize of options.batchSizes) {
      const prompts = Array.from({ length: batchSize }, () =>
        Int32Array.from({ length: inputLen }, () => random.integer(0, subject.program.vocabSize)),
      );
      const batch = { prompts, outputTokens: options.outputLen };
      for (let i = 0; i < options.numItersWarmup; i++) subject.engine.run(batch);
      const runs = Array.from({ length: options.numIters }, () =>
        split(subject.engine.run(batch), batchSize),
      );
      yield point(subject, { batchSize, inputLen }, runs);
    }
  }
}

interface Run {
  prefill: StepRecord[];
  decode: StepRecord[];
}

/** The steps until the last first token, and those in which every request generates one. */
export function split(steps: readonly StepRecord[], batchSize: number): Run {
  let started = 0;
  const prefill: StepRecord[] = [];
  const decode: StepRecord[] = [];
  for (const step of steps) {
    if (started < batchSize) prefill.push(step);
    else if (step.generated === batchSize) decode.push(step);
    started += step.firsts;
  }
  return { prefill, decode };
}

function point(
  { program, stored, machine }: Subject,
  { batchSize, inputLen }: { batchSize: number; inputLen: number },
  runs: readonly Run[],
): GridPoint {
  const seconds = (steps: readonly StepRecord[]) =>
    steps.reduce((sum, step) => sum + duration(step), 0);
  const middle = (of: (run: Run) => StepRecord[]) => {
    const sorted = runs.map(of).sort((a, b) => seconds(a) - seconds(b));
    return breakdown(sorted[Math.floor(sorted.length / 2)], program, stored, machine);
  };
  const decodes = runs.filter(({ decode }) => decode.length > 0);
  return {
    batchSize,
    inputLen,
    prefillRates: runs.map(({ prefill }) => (batchSize * inputLen) / seconds(prefill)),
    decodeRates: decodes.map(({ decode }) => (batchSize * decode.length) / seconds(decode)),
    prefill: middle((run) => run.prefill),
    decode: decodes.length > 0 ? middle((run) => run.decode) : undefined,
  };
}
