/**
 * What the GPU executor reaches beside what is asked of it, through the engine, with random bf16
 * weights of published shapes. Prints one table; exit code 1 if a row failed or missed its floor.
 *
 *     node dist/bench/gpu/floors.js [--only NAME,NAME] [--runs 3] [--budget SECONDS] [--json FILE]
 *         [--model-dir bench/shapes] [--device cuda] [--tflops 790] [--tbps 4]
 *
 * --tflops and --tbps are what the card does at best, measured: those of an H200. Each row is
 * measured in a process of its own. Rows for which the budget has no time left are skipped, and
 * said so. HTTP is held against the row without: that one is measured first.
 */
import { fork } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { median } from '../../src/bench/statistics.js';
import { cell, textTable } from '../../src/bench/text-table.js';
import { root } from '../../test/helpers/root.js';
import { type Job, type Measured, ROWS, type Row } from './rows.js';

const HTTP_SHARE = 0.85;

const { values: flags } = parseArgs({
  options: {
    only: { type: 'string' },
    runs: { type: 'string', default: '3' },
    budget: { type: 'string', default: '300' },
    json: { type: 'string' },
    'model-dir': { type: 'string', default: join(root, 'bench/shapes') },
    device: { type: 'string', default: 'cuda' },
    tflops: { type: 'string', default: '790' },
    tbps: { type: 'string', default: '4' },
  },
});
const deadline = Date.now() + Number(flags.budget) * 1000;
const outcomes: { row: Row; measured?: Measured; problem?: string }[] = [];

for (const row of chosenRows(flags.only)) {
  const left = (deadline - Date.now()) / 1000;
  if (left < row.seconds) {
    const problem = `skipped: ${Math.round(left)} s of the budget are left, it takes ${row.seconds}`;
    outcomes.push({ row, problem });
    continue;
  }
  console.error(`${row.name}: ${row.shape}, ${row.work}`);
  const job: Job = {
    row,
    modelDir: flags['model-dir'],
    device: flags.device,
    runs: Math.min(Number(flags.runs), row.runs ?? Infinity),
    flopsPerSecond: Number(flags.tflops) * 1e12,
    bytesPerSecond: Number(flags.tbps) * 1e12,
  };
  const outcome = { row, ...(await measure(job, Math.min(left, 2 * row.seconds))) };
  if (outcome.problem) console.error(`  ${outcome.problem}`);
  outcomes.push(outcome);
}

const lines = outcomes.map(({ row, measured, problem }) => {
  const what = [`${row.name}: ${row.work}`, row.shape];
  if (!measured) return [...what, '', '', '', problem?.split('\n')[0].slice(0, 100) ?? ''];
  const floor = floorOf(row, measured);
  const ratio = ratioTo(floor, row, measured);
  const [least, most] = [Math.min(...measured.values), Math.max(...measured.values)];
  return [
    ...what,
    floor === undefined ? '-' : cell(floor, ` ${row.unit}`),
    `${cell(median(measured.values), ` ${row.unit}`)} (${cell(least)} - ${cell(most)})`,
    ratio === undefined ? '-' : `${ratio.toFixed(2)}${ratio >= 1 ? '' : ' BELOW'}`,
    measured.note ?? '',
  ];
});
const header = ['row', 'shape', 'floor', 'median (least - most)', 'ratio', 'note'];
console.log(`\n${textTable(header, lines)}\n\nratio: 1 or more meets the floor`);
if (flags.json) {
  const rows = outcomes.map(({ row, measured, problem }) => ({
    ...row,
    ...measured,
    floor: measured && floorOf(row, measured),
    problem,
  }));
  writeFileSync(flags.json, `${JSON.stringify({ device: flags.device, rows }, null, 1)}\n`);
}
process.exitCode = outcomes.every(({ row, measured }) => {
  return measured && (ratioTo(floorOf(row, measured), row, measured) ?? 1) >= 1;
})
  ? 0
  : 1;

function chosenRows(only: string | undefined): readonly Row[] {
  if (only === undefined) return ROWS;
  const names = only.split(',');
  const unknown = names.find((name) => !ROWS.some((row) => row.name === name));
  if (unknown !== undefined) {
    console.error(`No row ${unknown}; there are ${ROWS.map(({ name }) => name).join(', ')}`);
    process.exit(2);
  }
  if (names.includes('http')) names.push('8b-offline');
  return ROWS.filter(({ name }) => names.includes(name));
}

/**
 * The row in a child process, which is killed after `limit` seconds. It leads a group, so that the
 * server and the clients it may have started die with it and leave the GPU.
 */
function measure(job: Job, limit: number): Promise<{ measured?: Measured; problem?: string }> {
  return new Promise((resolve) => {
    const path = fileURLToPath(new URL('measure-row.js', import.meta.url));
    const child = fork(path, { detached: true });
    const end = () => process.kill(-child.pid!, 'SIGKILL');
    const interrupted = () => {
      end();
      process.exit(1);
    };
    for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, interrupted);
    let answer: { measured?: Measured; failure?: string } | undefined;
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      end();
    }, limit * 1000);
    child.on('message', (message) => {
      if (message === 'ready') child.send(job);
      else answer = message as typeof answer;
    });
    child.on('exit', (code, signal) => {
      clearTimeout(timer);
      for (const each of ['SIGINT', 'SIGTERM']) process.off(each, interrupted);
      const ended = late ? `not done after ${Math.round(limit)} s` : `ended with ${code ?? signal}`;
      const problem = answer?.measured ? undefined : `failed: ${answer?.failure ?? ended}`;
      resolve({ measured: answer?.measured, problem });
    });
  });
}

function floorOf(row: Row, measured: Measured): number | undefined {
  if (row.name !== 'http') return measured.floor ?? row.floor;
  const offline = outcomes.find((outcome) => outcome.row.name === '8b-offline')?.measured;
  return offline && HTTP_SHARE * median(offline.values);
}

/** How much of the floor is reached; more is better, whatever the unit. */
function ratioTo(floor: number | undefined, row: Row, { values }: Measured): number | undefined {
  if (floor === undefined) return undefined;
  const reached = median(values);
  if (row.more) return reached / floor;
  return reached <= 0 ? Infinity : floor / reached;
}
