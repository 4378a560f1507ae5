/**
 * Goes through a model with calibration text, segment after segment, and quantizes each linear and
 * each expert with GPTQ on the inputs it gets from the segments and matrices quantized before it.
 */
import type { LinearOp, Program, WeightPart } from '../model/program.js';
import { readTensor } from '../model/read-tensor.js';
import { BYTES, type IntegerStorage, type TensorRef, type WeightSource } from '../model/weights.js';
import { quantizeExperts } from './calibrate-experts.js';
import {
  type CodedMatrix,
  codeMatrix,
  decodeMatrix,
  type Hessian,
  prepareHessian,
} from './code-matrix.js';
import { addOuterProducts } from './linear-algebra.js';
import { runSegment, type SegmentRun, segmentRows } from './run-segment.js';
import { type Segment, segments } from './segments.js';

export interface CalibrateOptions extends SegmentRun {
  readonly storage: IntegerStorage;
  /** Whether to quantize the tensor. */
  readonly wanted: (tensor: string) => boolean;
  /** Takes each quantized tensor as soon as it is there. */
  readonly onTensor: (tensor: string, coded: CodedMatrix) => void;
}

export interface Calibrated {
  /** Matrices of experts quantized, and those of them rounded to nearest for want of tokens. */
  expertMatrices: number;
  roundedExpertMatrices: number;
  /** Other matrices that are, because nothing can be learnt from their inputs. */
  roundedLinears: number;
}

export function calibrate(options: CalibrateOptions): Calibrated {
  const { program, source, sequences } = options;
  const total: Calibrated = { expertMatrices: 0, roundedExpertMatrices: 0, roundedLinears: 0 };
  let states = embed(program, source, sequences);
  for (const segment of segments(program)) {
    const done = new Map<string, TensorRef>();
    for (const op of segment.ops) {
      if (op.kind === 'linear') {
        total.roundedLinears += quantizeLinear(options, segment, op, states, done);
      }
      if (op.kind === 'moe') {
        const inputs = segmentRows(options, segment, op.x, states, done);
        const router = segmentRows(options, segment, op.router, states, done);
        quantizeExperts(options, op, { inputs, router }, done, (part, hessian) => {
          total.expertMatrices++;
          if (!hessian) total.roundedExpertMatrices++;
          quantizePart(options, part, hessian, done);
        });
      }
    }
    states = segmentRows(options, segment, segment.output, states, done);
  }
  return total;
}

/** Returns how many of its matrices were rounded to nearest after all. */
function quantizeLinear(
  options: CalibrateOptions,
  segment: Segment,
  op: LinearOp,
  states: Float32Array,
  done: Map<string, TensorRef>,
): number {
  const { program, wanted } = options;
  const parts = program.weights[op.weight].parts.filter(({ tensor }) => wanted(tensor));
  if (parts.length === 0) return 0;
  const { width } = op.x;
  const sum = new Float64Array(width * width);
  runSegment(options, segment, op.x, states, done, (rows, count, stride) => {
    addOuterProducts(sum, rows, count, width, stride);
  });
  const hessian = prepareHessian(sum, width);
  for (const part of parts) quantizePart(options, part, hessian, done);
  return hessian ? 0 : parts.length;
}

/** Hands the quantized matrix over and enters it into `done`. */
function quantizePart(
  { source, storage, onTensor }: CalibrateOptions,
  { tensor, shape }: WeightPart,
  hessian: Hessian | undefined,
  done: Map<string, TensorRef>,
): void {
  const [rows, width] = shape;
  const coded = codeMatrix(readTensor(source.tensor(tensor)), rows, width, storage, hessian);
  const read = () => decodeMatrix(coded, rows, width, storage);
  done.set(tensor, { kind: 'computed', shape, read });
  onTensor(tensor, coded);
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
