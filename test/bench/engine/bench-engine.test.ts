import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { costOfStep, rooflineSeconds, totalCost } from '../../../src/backend/cost/cost.js';
import { benchEngine } from '../../../src/bench/engine/bench-engine.js';
import { breakdown } from '../../../src/bench/engine/breakdown.js';
import { parseBenchEngineOptions } from '../../../src/bench/engine/engine-options.js';
import { split } from '../../../src/bench/engine/grid.js';
import {
  duration,
  InstrumentedEngine,
  type StepRecord,
} from '../../../src/bench/engine/instrumented-engine.js';
import { InvalidParameterError, MemoryPlanError } from '../../../src/errors.js';
import { loadModel } from '../../../src/model/load-model.js';
import { root } from '../../helpers/root.js';

const model = loadModel(join(root, 'test/goldens/llama-tiny'), { maxModelLen: 64 });

function engine(maxNumBatchedTokens: number): InstrumentedEngine {
  return new InstrumentedEngine(model.program, model.weights, {
    threads: 1,
    maxModelLen: 64,
    maxNumSeqs: 4,
    maxNumBatchedTokens,
    blockSize: 16,
  });
}

const prompts = [20, 20, 20].map((length) => Int32Array.from({ length }, (_, i) => i));

test('A batch is taken apart into steps: every token, row and context is accounted for', () => {
  const instrumented = engine(128);
  const steps = instrumented.run({ prompts, outputTokens: 5 });
  instrumented.close();
  assert.deepEqual(
    steps.map(({ tokens, generated, firsts }) => [tokens, generated, firsts]),
    [[60, 3, 3], ...Array.from({ length: 4 }, () => [3, 3, 0])],
  );
  assert.deepEqual(steps[0].shape, {
    rows: 3,
    sequences: prompts.map(() => ({ query: 20, context: 20 })),
  });
  assert.deepEqual(steps[4].shape.sequences[0], { query: 1, context: 24 });
  for (const step of steps) {
    for (const seconds of Object.values(step.phases)) assert.ok(seconds >= 0);
    assert.ok(step.operations.linear > 0 && step.operations.attention > 0);
    const computed = Object.values(step.operations).reduce((sum, seconds) => sum + seconds, 0);
    assert.ok(computed <= step.phases.compute, 'operations take no longer than the native call');
  }
});

test('Steps that compute prompts in chunks belong to the prefill, mixed ends to neither', () => {
  const instrumented = engine(25);
  const steps = instrumented.run({ prompts, outputTokens: 6 });
  instrumented.close();
  const { prefill, decode } = split(steps, 3);
  const started = prefill.reduce((sum, { firsts }) => sum + firsts, 0);
  assert.equal(started, 3);
  assert.ok(prefill.length >= 3);
  assert.ok(decode.length > 0 && decode.every(({ tokens }) => tokens === 3));
  assert.ok(prefill.length + decode.length < steps.length, 'the first to start ends alone');
});

test('The breakdown sums what the steps took, and puts the roofline of fused operations where their time is', () => {
  const machine = { flopsPerSecond: 1e9, bytesPerSecond: 1e8 };
  const shape = {
    rows: 2,
    sequences: [
      { query: 3, context: 3 },
      { query: 1, context: 40 },
    ],
  };
  const phases = { schedule: 1, build: 2, compute: 30, apply: 3, publish: 4 };
  // The executor fused sums and activations into products.
  const operations = {
    embed: 1,
    rms_norm: 2,
    linear: 10,
    rope: 0,
    attention: 5,
    gather: 1,
    sample: 3,
  };
  const step: StepRecord = { shape, tokens: 4, generated: 2, firsts: 0, phases, operations };
  const found = breakdown([step, step], model.program, 'float32', machine);
  assert.equal(found.seconds, 2 * duration(step));
  assert.deepEqual([found.steps, found.tokens, found.generated], [2, 8, 4]);
  assert.equal(found.phases.publish, 8);
  const costs = costOfStep(model.program, 'float32', shape);
  const total = totalCost(costs);
  const sum = (key: 'flops' | 'bytes') =>
    found.operations.reduce((all, operation) => all + operation[key], 0);
  assert.equal(sum('flops'), 2 * total.flops);
  assert.equal(sum('bytes'), 2 * (total.weightBytes + total.kvBytes));
  const close = (a: number, b: number) => assert.ok(Math.abs(a - b) < 1e-9 * b, `${a} is ${b}`);
  close(found.rooflineSeconds, 2 * rooflineSeconds(costs, machine));
  const linear = found.operations[0];
  assert.equal(linear.kind, 'linear');
  const within = costs.filter(({ op }) => ['linear', 'add', 'silu_mul'].includes(op.kind));
  close(linear.rooflineSeconds, 2 * rooflineSeconds(within, machine));
  const rotated = costs.filter(({ op }) => ['attention', 'rope'].includes(op.kind));
  const attention = found.operations.find(({ kind }) => kind === 'attention')!;
  close(attention.rooflineSeconds, 2 * rooflineSeconds(rotated, machine));
  assert.equal(found.operations.find(({ kind }) => kind === 'sample')?.bound, 'none');
  assert.equal(linear.bound, 'memory');
});

test('millrace bench engine writes its grid, limits and breakdowns as JSON', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'bench-engine-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const lines: string[] = [];
  t.mock.method(console, 'log', (line: string) => lines.push(line));
  const file = join(folder, 'out.json');
  const path = join(root, 'test/goldens/llama-tiny');
  const argv = [path, '--batch-sizes', '1,3', '--input-lens', '8,20', '--output-len', '4'];
  const code = await benchEngine([
    ...argv,
    '--threads',
    '1',
    '--num-iters',
    '2',
    '--output-json',
    file,
  ]);
  assert.equal(code, 0);
  const report = JSON.parse(readFileSync(file, 'utf8'));
  assert.ok(report.machine.flops_per_second > 0 && report.machine.bytes_per_second > 0);
  const grid = report.points.map((p: Record<string, unknown>) => [p.batch_size, p.input_len]);
  assert.deepEqual(grid, [
    [1, 8],
    [3, 8],
    [1, 20],
    [3, 20],
  ]);
  for (const point of report.points) {
    assert.equal(point.prefill_rates.length, 2);
    assert.ok(point.prefill_tokens_per_second > 0 && point.decode_tokens_per_second > 0);
    assert.equal(point.prefill.tokens, point.batch_size * point.input_len);
    assert.equal(point.decode.steps, 3);
    assert.equal(point.decode.generated_tokens, 3 * point.batch_size);
    const kinds = point.decode.operations.map(({ kind }: { kind: string }) => kind);
    for (const kind of ['linear', 'attention', 'sample']) assert.ok(kinds.includes(kind));
  }
  assert.match(lines.at(-1)!, /3 x 20/);
});

test('Flags of bench engine are checked by name', () => {
  const refused = (argv: string[], param: string) =>
    assert.throws(
      () => parseBenchEngineOptions(argv),
      (error) => error instanceof InvalidParameterError && error.param === param,
    );
  refused([], 'bench engine');
  refused(['a', 'b'], 'bench engine');
  refused(['a', '--batch-size', '1'], 'bench engine');
  refused(['a', '--batch-sizes', '1,x'], 'batch-sizes');
  refused(['a', '--output-len', '0'], 'output-len');
  refused(['a', '--batch-sizes', '4', '--max-num-batched-tokens', '2'], 'max-num-batched-tokens');
  refused(['a', '--block-size', '17'], 'block-size');
  assert.deepEqual(parseBenchEngineOptions(['a', '--input-lens', '16,32']).inputLens, [16, 32]);
});

test('A grid that does not fit into memory is refused before anything is allocated', () => {
  assert.throws(
    () =>
      new InstrumentedEngine(model.program, model.weights, {
        ...{ threads: 1, maxModelLen: 1 << 20, maxNumSeqs: 1 << 16 },
        ...{ maxNumBatchedTokens: 1 << 16, blockSize: 16 },
      }),
    MemoryPlanError,
  );
});
