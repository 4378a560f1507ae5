import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { Backend, ModelRunner } from '../../../src/backend/backend.js';
import { costOfStep, rooflineSeconds, totalCost } from '../../../src/backend/cost/cost.js';
import { createCpuBackend } from '../../../src/backend/cpu/cpu-backend.js';
import { benchEngine } from '../../../src/bench/engine/bench-engine.js';
import { breakdown } from '../../../src/bench/engine/breakdown.js';
import {
  BENCH_ENGINE_FLAGS,
  benchEngineOptions,
} from '../../../src/bench/engine/engine-options.js';
import { split } from '../../../src/bench/engine/grid.js';
import {
  duration,
  InstrumentedEngine,
  type StepRecord,
} from '../../../src/bench/engine/instrumented-engine.js';
import { MemoryPlanError } from '../../../src/errors.js';
import { UsageError } from '../../../src/flags/flag.js';
import { parseFlags } from '../../../src/flags/parse-flags.js';
import { loadModel } from '../../../src/model/load-model.js';
import { OverlappingRunner } from '../../helpers/overlapping-runner.js';
import { root } from '../../helpers/root.js';

const optionsOf = (...argv: string[]) => benchEngineOptions(parseFlags(BENCH_ENGINE_FLAGS, argv));

const model = loadModel(join(root, 'test/goldens/llama-tiny'), { maxModelLen: 64 });

const backend = createCpuBackend({ threads: 1 });

function engine(maxNumBatchedTokens: number): InstrumentedEngine {
  return new InstrumentedEngine(backend, model.program, model.weights, {
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
  const found = breakdown([step, step], model.program, model.weights, machine);
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
  await benchEngine(
    optionsOf(...argv, '--threads', '1', '--num-iters', '2', '--output-json', file),
  );
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
  const refused = (argv: string[], message: RegExp) =>
    assert.throws(
      () => optionsOf(...argv),
      (error) => error instanceof UsageError && message.test(error.message),
    );
  refused([], /Usage: millrace bench engine PATH/);
  refused(['a', 'b'], /Usage: millrace bench engine PATH/);
  refused(['a', '--batch-size', '1'], /Unknown flag --batch-size; did you mean --batch-sizes\?/);
  refused(['a', '--batch-sizes', '1,x'], /integer of at least 1 for --batch-sizes .* "x"/);
  refused(['a', '--output-len', '0'], /--output-len/);
  refused(['a', '--batch-sizes', '4', '--max-num-batched-tokens', '2'], /--max-num-batched-tokens/);
  refused(['a', '--block-size', '17'], /multiple of 16 for --block-size/);
  refused(['a', '--kv-cache-dtype', 'int3'], /--kv-cache-dtype/);
  assert.deepEqual(optionsOf('a', '--input-lens', '16,32').inputLens, [16, 32]);
});

test('Integer weights and an int8 KV cache are measured as such, beside limits of their own', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'bench-engine-'));
  t.after(() => rmSync(folder, { recursive: true }));
  t.mock.method(console, 'log', () => {});
  const measure = async (...flags: string[]) => {
    const file = join(folder, 'out.json');
    const path = join(root, 'test/goldens/llama-tiny');
    const grid = ['--batch-sizes', '2', '--input-lens', '8', '--output-len', '4'];
    const brief = ['--threads', '1', '--num-iters', '1', '--output-json', file];
    await benchEngine(optionsOf(path, ...grid, ...brief, ...flags));
    return JSON.parse(readFileSync(file, 'utf8'));
  };
  const bytes = (report: Awaited<ReturnType<typeof measure>>, kind: string) =>
    report.points[0].decode.operations.find((one: { kind: string }) => one.kind === kind)
      .bytes_per_step;
  const plain = await measure();
  const quantized = await measure('--quantization', 'int8', '--kv-cache-dtype', 'int8');
  assert.match(quantized.executor, /weights and KV cache in int8/);
  for (const kind of ['linear', 'attention']) {
    assert.ok(bytes(quantized, kind) < 0.6 * bytes(plain, kind), `${kind} reads fewer bytes`);
  }
  assert.ok(quantized.machine.flops_per_second > 0);
});

test('A grid that does not fit into memory is refused before anything is allocated', () => {
  assert.throws(
    () =>
      new InstrumentedEngine(backend, model.program, model.weights, {
        ...{ maxModelLen: 1 << 20, maxNumSeqs: 1 << 16 },
        ...{ maxNumBatchedTokens: 1 << 16, blockSize: 16 },
      }),
    MemoryPlanError,
  );
});

/** Whose profile tells one second of products for each token of the steps that are collected. */
function overlappingBackend(profiling: boolean): Backend {
  const cpu = createCpuBackend({ threads: 1 });
  return {
    ...cpu,
    profiling: () => overlappingBackend(true),
    createRunner: (...args) => {
      const { profile: _, ...inner } = cpu.createRunner(...args);
      const runner = new OverlappingRunner(inner);
      const sizes: number[] = [];
      let tokens = 0;
      const told: ModelRunner = {
        memory: inner.memory,
        description: profiling ? 'profiling' : 'plain',
        overlaps: true,
        step: () => runner.step(),
        submit(batch) {
          sizes.push(batch.numTokens);
          runner.submit(batch);
        },
        collect() {
          tokens += sizes.shift()!;
          return runner.collect();
        },
        close: () => runner.close(),
      };
      if (!profiling) return told;
      return { ...told, profile: () => ({ linear: { seconds: tokens, calls: 1 } }) };
    },
  };
}

test('Times of operations are of the step that is reported, though the next one is under way', () => {
  const instrumented = new InstrumentedEngine(
    overlappingBackend(true),
    model.program,
    model.weights,
    { maxModelLen: 64, maxNumSeqs: 4, maxNumBatchedTokens: 25, blockSize: 16 },
  );
  const steps = instrumented.run({ prompts, outputTokens: 5 });
  instrumented.close();
  assert.ok(new Set(steps.map(({ tokens }) => tokens)).size > 2, 'steps of several sizes');
  for (const { tokens, operations } of steps) assert.equal(operations.linear, tokens);
});

test('Where timing operations makes steps longer, rates are of a pass without', async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'bench-engine-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const lines: string[] = [];
  t.mock.method(console, 'log', (line: string) => lines.push(line));
  const file = join(folder, 'out.json');
  const path = join(root, 'test/goldens/llama-tiny');
  const grid = ['--batch-sizes', '2', '--input-lens', '8', '--output-len', '4'];
  const options = optionsOf(path, ...grid, '--num-iters', '2', '--output-json', file);
  await benchEngine(options, async () => overlappingBackend(false));
  const { executor, machine, points } = JSON.parse(readFileSync(file, 'utf8'));
  assert.equal(executor, 'plain');
  for (const limit of Object.values(machine))
    assert.ok(Number.isFinite(limit) && Number(limit) > 0);
  const { decode } = points[0];
  assert.deepEqual([decode.steps, points[0].decode_rates.length], [3, 2]);
  assert.ok(decode.ms_per_step < 1000 && decode.timed_ms_per_step > 0);
  const [linear] = decode.operations;
  assert.deepEqual([linear.kind, linear.ms_per_step], ['linear', 2000]);
  assert.ok(linear.roofline_ms_per_step > 0 && linear.bytes_per_step > 0);
  assert.match(lines.join('\n'), /decode: 3 steps of .* ms, of .* ms with each operation timed\n/);
  assert.match(lines.join('\n'), /linear +2,000/);
});

test('An executor that overlaps steps is measured step by step as well', () => {
  const sizes = { maxModelLen: 64, maxNumSeqs: 4, maxNumBatchedTokens: 16, blockSize: 16 };
  const prompts = [Int32Array.from({ length: 20 }, (_, i) => i), Int32Array.from([1, 2, 3])];
  const shapes = [backend, overlappingBackend(false)].map((each) => {
    const engine = new InstrumentedEngine(each, model.program, model.weights, sizes);
    const steps = engine.run({ prompts, outputTokens: 5 });
    engine.close();
    return steps.map(({ shape, tokens }) => ({ shape, tokens }));
  });
  assert.deepEqual(shapes[1], shapes[0]);
});
