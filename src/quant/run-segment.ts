/** Runs a segment of a model alone, on the inputs it has for the calibration text. */
import type { Backend } from '../backend/backend.js';
import type { Program, View } from '../model/program.js';
import type { TensorRef, WeightSource } from '../model/weights.js';
import { runnerOptions, runSequences } from './run-sequences.js';
import { INPUTS, probe, type Segment } from './segments.js';

export interface SegmentRun {
  readonly backend: Backend;
  readonly program: Program;
  readonly source: WeightSource;
  readonly sequences: readonly (readonly number[])[];
}

/** Tokens in a step. */
const MAX_TOKENS = 256;

/**
 * Runs the segment on `states` up to `wanted` over all sequences, with the tensors in `done` in place
 * of the source's; rows come in the order of the tokens, row r at `r * stride`.
 */
export function runSegment(
  { backend, program, source, sequences }: SegmentRun,
  segment: Segment,
  wanted: View,
  states: Float32Array,
  done: ReadonlyMap<string, TensorRef>,
  onRows: (rows: Float32Array, count: number, stride: number) => void,
): void {
  const count = states.length / segment.input.width;
  const longest = sequences.reduce((most, { length }) => Math.max(most, length), 0);
  const probed = probe(program, segment, wanted, count);
  // The table has as many rows as the "logits" are wide.
  const rows = probed.vocabSize;
  const table: TensorRef = {
    kind: 'computed',
    shape: [rows, segment.input.width],
    read() {
      const padded = new Float32Array(rows * segment.input.width);
      padded.set(states);
      return padded;
    },
  };
  const weights: WeightSource = {
    dtype: 'float32',
    storage: () => ({ kind: 'float' }),
    tensor: (name) => (name === INPUTS ? table : (done.get(name) ?? source.tensor(name))),
  };
  const options = runnerOptions(MAX_TOKENS, longest);
  const runner = backend.createRunner(probed, weights, { ...options, keepLogits: true });
  try {
    let next = 0;
    const indices = sequences.map(({ length }) => Array.from({ length }, () => next++));
    for (const { result, rows: wantedRows } of runSequences(runner, indices, options)) {
      onRows(result.logits as Float32Array, wantedRows.length, rows);
    }
  } finally {
    runner.close();
  }
}

/** All rows of `wanted`, `[tokens, wanted.width]`. */
export function segmentRows(
  options: SegmentRun,
  segment: Segment,
  wanted: View,
  states: Float32Array,
  done: ReadonlyMap<string, TensorRef>,
): Float32Array {
  const { width } = wanted;
  const all = new Float32Array((states.length / segment.input.width) * width);
  let at = 0;
  runSegment(options, segment, wanted, states, done, (rows, count, stride) => {
    for (let r = 0; r < count; r++, at += width) {
      all.set(rows.subarray(r * stride, r * stride + width), at);
    }
  });
  return all;
}
