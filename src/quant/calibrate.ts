/**
 * Goes through a model with calibration text, segment after segment, and quantizes each linear with
 * GPTQ on the inputs it gets from the segments and linears quantized before it.
 */
import type { Backend } from '../backend/backend.js';
import type { LinearOp, Program, View } from '../model/program.js';
import { readTensor } from '../model/read-tensor.js';
import { BYTES, type IntegerStorage, type TensorRef, type WeightSource } from '../model/weights.js';
import {
  type CodedMatrix,
  codeMatrix,
  decodeMatrix,
  type Hessian,
  prepareHessian,
} from './code-matrix.js';
import { addOuterProducts } from './linear-algebra.js';
import { runnerOptions, runSequences } from './run-sequences.js';
import { INPUTS, probe, type Segment, segments } from './segments.js';

export interface CalibrateOptions {
  readonly backend: Backend;
  readonly program: Program;
  readonly source: WeightSource;
  readonly storage: IntegerStorage;
  readonly sequences: readonly (readonly number[])[];
  /** Whether to quantize the tensor. */
  readonly wanted: (tensor: string) => boolean;
  /** Takes each quantized tensor as soon as it is there. */
  readonly onTensor: (tensor: string, coded: CodedMatrix) => void;
}

/** Tokens in a step. */
const MAX_TOKENS = 256;

export function calibrate(options: CalibrateOptions): void {
  const { program, source, sequences } = options;
  let states = embed(program, source, sequences);
  for (const segment of segments(program)) {
    const done = new Map<string, TensorRef>();
    for (const op of segment.ops) {
      if (op.kind === 'linear') quantizeLinear(options, segment, op, states, done);
    }
    const { width } = segment.output;
    const next = new Float32Array((states.length / segment.input.width) * width);
    let at = 0;
    run(options, segment, segment.output, states, done, (rows, count, stride) => {
      for (let r = 0; r < count; r++, at += width) {
        next.set(rows.subarray(r * stride, r * stride + width), at);
      }
    });
    states = next;
  }
}

function quantizeLinear(
  options: CalibrateOptions,
  segment: Segment,
  op: LinearOp,
  states: Float32Array,
  done: Map<string, TensorRef>,
): void {
  const { program, source, storage, wanted, onTensor } = options;
  const parts = program.weights[op.weight].parts.filter(({ tensor }) => wanted(tensor));
  if (parts.length === 0) return;
  const width = op.x.width;
  const sum = new Float64Array(width * width);
  run(options, segment, op.x, states, done, (rows, count, stride) => {
    addOuterProducts(sum, rows, count, width, stride);
  });
  const hessian: Hessian | undefined = prepareHessian(sum, width);
  for (const { tensor, shape } of parts) {
    const values = readTensor(source.tensor(tensor));
    const coded = codeMatrix(values, shape[0], width, storage, hessian);
    done.set(tensor, {
      kind: 'computed',
      shape,
      read: () => decodeMatrix(coded, shape[0], width, storage),
    });
    onTensor(tensor, coded);
  }
}

/** Runs the segment up to `wanted` over all sequences; rows come in the order of the tokens. */
function run(
  { backend, program, source, sequences }: CalibrateOptions,
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

/** The embeddings of all tokens, sequence after sequence, `[tokens, width]`. */
function embed(
  program: Program,
  source: WeightSource,
  sequences: readonly (readonly number[])[],
): Float32Array {
  const op = program.ops.find(({ kind }) => kind === 'embed');
  if (op?.kind !== 'embed') throw new Error('the program has no embedding');
  const { width } = op.out;
  const table = source.tensor(program.weights[op.weight].parts[0].tensor);
  if (table.kind !== 'file') throw new Error('the embedding is not in a file');
  const rowBytes = width * BYTES[table.dtype];
  // Row by row: a vocabulary may be many times what the text uses.
  const rows = new Map<number, Float32Array>();
  const rowOf = (token: number) =>
    readTensor({ ...table, offset: table.offset + token * rowBytes, shape: [1, width] });
  const tokens = sequences.flat();
  const states = new Float32Array(tokens.length * width);
  tokens.forEach((token, n) => {
    const row = rows.get(token) ?? rowOf(token);
    rows.set(token, row);
    states.set(row, n * width);
  });
  return states;
}
