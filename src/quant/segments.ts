/**
 * A program cut into segments, each from one value to the next where nothing else is alive: half a
 * layer of a decoder. A segment runs alone, as a program whose "embedding" is a table of its inputs
 * and whose "logits" are any value within: so calibration goes through a model with the weights of
 * one segment in memory.
 */
import {
  type Op,
  type Program,
  type RopeTable,
  slice,
  type Value,
  type View,
  type Weight,
} from '../model/program.js';

export interface Segment {
  readonly input: View;
  readonly ops: readonly Op[];
  readonly output: View;
}

/** The segments after the embedding, up to what the head multiplies. */
export function segments(program: Program): Segment[] {
  const ops = withAllRows(program);
  const last = new Map<number, number>();
  ops.forEach((op, index) => {
    for (const { value } of reads(op)) last.set(value, index);
  });
  const found: Segment[] = [];
  const alive = new Set<number>();
  let input: View | undefined;
  let within: Op[] = [];
  for (const [index, op] of ops.entries()) {
    if (op.out.value === program.logits.value) break;
    within.push(op);
    alive.add(op.out.value);
    for (const value of alive) if ((last.get(value) ?? -1) <= index) alive.delete(value);
    const { value } = op.out;
    const whole = op.out.width === program.values[value].width;
    if (alive.size !== 1 || !alive.has(value) || !whole) continue;
    // The first segment is the embedding, which needs no calibration.
    if (input) found.push({ input, ops: within, output: op.out });
    input = op.out;
    within = [];
  }
  return found;
}

/** The operations with the rows of all tokens wanted: gathering those would be a copy. */
function withAllRows(program: Program): Op[] {
  const gathered = new Map<number, View>();
  const ops: Op[] = [];
  for (const op of program.ops) {
    const moved = withViews(op, (view) => {
      const from = gathered.get(view.value);
      return from ? slice(from, view.offset, view.width) : view;
    });
    if (moved.kind === 'gather') gathered.set(moved.out.value, moved.x);
    else ops.push(moved);
  }
  return ops;
}

/** The operation with other views in place of its own. */
function withViews(op: Op, replace: (view: View) => View): Op {
  const fields = Object.entries(op).map(([field, value]) => [
    field,
    typeof value === 'object' ? replace(value) : value,
  ]);
  return Object.fromEntries(fields);
}

/** Views an operation reads. */
function reads(op: Op): View[] {
  const { out: _, ...rest } = op;
  return Object.values(rest).filter((field): field is View => typeof field === 'object');
}

/** Name of the table of inputs among the weights of a probe. */
export const INPUTS = 'calibration inputs';

/**
 * A program that computes `wanted` from a table of `rows` inputs: token t is row t of the weight
 * `INPUTS`, which is padded to at least as many as `wanted` is wide. The "logits" are `wanted` in their
 * first columns, undefined in the others: executors take the width of the logits for the size of the
 * vocabulary.
 */
export function probe(program: Program, segment: Segment, wanted: View, rows: number): Program {
  const values: Value[] = [];
  const valueIds = new Map<number, number>();
  const weights: Weight[] = [];
  const weightIds = new Map<number, number>();
  const ropeTables: RopeTable[] = [];
  const kvLayers: Program['kvLayers'][number][] = [];
  const view = (old: View): View => {
    if (!valueIds.has(old.value)) {
      const { width } = program.values[old.value];
      valueIds.set(old.value, values.push({ id: values.length, rows: 'T', width }) - 1);
    }
    return { ...old, value: valueIds.get(old.value) as number };
  };
  const weight = (old: number): number => {
    if (!weightIds.has(old)) {
      weightIds.set(old, weights.push({ ...program.weights[old], id: weights.length }) - 1);
    }
    return weightIds.get(old) as number;
  };
  const width = Math.max(rows, wanted.width);
  const shape = [width, segment.input.width];
  weights.push({ id: 0, name: INPUTS, shape, parts: [{ tensor: INPUTS, shape }] });
  const ops: Op[] = [{ kind: 'embed', weight: 0, out: view(segment.input) }];
  if (wanted.value !== segment.input.value) {
    for (const op of segment.ops) {
      const moved = withViews(op, view) as unknown as Record<string, unknown>;
      for (const field of ['weight', 'bias', 'gateUp', 'down'] as const) {
        const id = (op as unknown as Record<string, number | undefined>)[field];
        if (id !== undefined) moved[field] = weight(id);
      }
      if (op.kind === 'rope') moved.table = ropeTables.push(program.ropeTables[op.table]) - 1;
      if (op.kind === 'attention') moved.layer = kvLayers.push(program.kvLayers[op.layer]) - 1;
      ops.push(moved as unknown as Op);
      if (op.out.value === wanted.value) break;
    }
  }
  const id = values.push({ id: values.length, rows: 'R', width }) - 1;
  ops.push({ kind: 'gather', x: view(wanted), out: { value: id, offset: 0, width: wanted.width } });
  const logits: View = { value: id, offset: 0, width };
  return { values, weights, ropeTables, ops, logits, vocabSize: width, kvLayers };
}
