/** The offline benchmark's results as text and as JSON. */
import type { Machine } from '../../backend/cost/cost.js';
import { median } from '../statistics.js';
import { cell, textTable } from '../text-table.js';
import type { Breakdown } from './breakdown.js';
import type { GridPoint } from './grid.js';

export function rateTable(points: readonly GridPoint[], outputLen: number): string {
  const spread = (rates: readonly number[]) =>
    rates.length === 0
      ? '-'
      : `${cell(median(rates))} (${cell(Math.min(...rates))} - ${cell(Math.max(...rates))})`;
  const ofRoofline = (part?: Breakdown) =>
    part ? `${cell((100 * part.rooflineSeconds) / part.seconds)}%` : '-';
  return textTable(
    [
      'batch x input',
      'prefill tok/s',
      'of roofline',
      `decode tok/s (${outputLen} out)`,
      'of roofline',
    ],
    points.map(({ batchSize, inputLen, prefillRates, decodeRates, prefill, decode }) => [
      `${batchSize} x ${inputLen}`,
      spread(prefillRates),
      ofRoofline(prefill),
      spread(decodeRates),
      ofRoofline(decode),
    ]),
  );
}

/**
 * Milliseconds a step by operation beside its limit, then by phase. `apart`: the same steps with
 * their operations timed, where that makes them longer.
 */
export function breakdownText(title: string, whole: Breakdown, apart?: Breakdown): string {
  const part = apart ?? whole;
  const { steps, seconds, phases } = part;
  const ms = (total: number) => cell((1000 * total) / steps);
  const share = (total: number) => `${cell((100 * total) / seconds)}%`;
  const host = (['schedule', 'build', 'apply', 'publish'] as const).map((phase) => [
    phase,
    ms(phases[phase]),
    share(phases[phase]),
  ]);
  const operations = part.operations
    .filter((operation) => operation.seconds > 0)
    .map((operation) => [
      operation.kind,
      ms(operation.seconds),
      share(operation.seconds),
      ...(operation.bound === 'none'
        ? []
        : [
            ms(operation.rooflineSeconds),
            `${cell((100 * operation.rooflineSeconds) / operation.seconds)}%`,
            operation.bound,
            cell(operation.flops / operation.seconds / 1e9),
            cell(operation.bytes / operation.seconds / 1e9),
          ]),
    ]);
  // What an executor computes while the host works is in both, so the difference may be negative.
  const unaccounted =
    phases.compute - part.operations.reduce((sum, operation) => sum + operation.seconds, 0);
  const perStep = `${cell((1000 * whole.seconds) / whole.steps)} ms`;
  const timed = apart ? `, of ${ms(seconds)} ms with each operation timed` : '';
  const header = ['', 'ms/step', 'share', 'limit ms', 'of limit', 'bound by', 'GFLOP/s', 'GB/s'];
  return (
    `${title}: ${whole.steps} steps of ${perStep}${timed}\n` +
    textTable(header, [
      ...operations,
      [unaccounted < 0 ? 'overlapped' : 'native call', ms(unaccounted), share(unaccounted)],
      ...host,
    ])
  );
}

export interface ReportInput {
  model: string;
  description: string;
  dtype: string;
  machine: Machine;
  outputLen: number;
  points: readonly GridPoint[];
}

/** Keys as in the other reports: snake case, units in the name. */
export function reportJson(input: ReportInput): Record<string, unknown> {
  const { model, description, dtype, machine, outputLen, points } = input;
  return {
    date: new Date().toISOString(),
    model,
    executor: description,
    dtype,
    machine: {
      flops_per_second: machine.flopsPerSecond,
      bytes_per_second: machine.bytesPerSecond,
    },
    output_len: outputLen,
    points: points.map((point) => ({
      batch_size: point.batchSize,
      input_len: point.inputLen,
      prefill_tokens_per_second: median(point.prefillRates),
      prefill_rates: point.prefillRates,
      decode_tokens_per_second: point.decode ? median(point.decodeRates) : null,
      decode_rates: point.decodeRates,
      prefill: breakdownJson(point.prefill, point.timed?.prefill),
      decode: point.decode ? breakdownJson(point.decode, point.timed?.decode) : null,
    })),
  };
}

function breakdownJson(part: Breakdown, apart?: Breakdown): Record<string, unknown> {
  const perStep = (seconds: number, { steps } = part) => (1000 * seconds) / steps;
  const timed = apart ?? part;
  return {
    steps: part.steps,
    tokens: part.tokens,
    generated_tokens: part.generated,
    ms_per_step: perStep(part.seconds),
    roofline_ms_per_step: perStep(part.rooflineSeconds),
    phases_ms_per_step: Object.fromEntries(
      Object.entries(part.phases).map(([phase, seconds]) => [phase, perStep(seconds)]),
    ),
    // Of steps that timing the operations made longer; null where it does not.
    timed_ms_per_step: apart ? perStep(apart.seconds, apart) : null,
    operations: timed.operations.map((operation) => ({
      kind: operation.kind,
      ms_per_step: perStep(operation.seconds, timed),
      roofline_ms_per_step: perStep(operation.rooflineSeconds, timed),
      bound: operation.bound,
      flops_per_step: operation.flops / timed.steps,
      bytes_per_step: operation.bytes / timed.steps,
    })),
  };
}
