/**
 * What the GPU draws and at which clock it runs while something is measured: at its power limit a card
 * lowers its clock, and then joules decide what is fast.
 */
import { spawn } from 'node:child_process';
import { median } from '../../src/bench/statistics.js';

const EVERY_MS = 100;

/** A line of medians such as `693 W, 1,485 MHz` of the time that `use` takes; empty without nvidia-smi. */
export async function watchCard(use: () => Promise<void>): Promise<string> {
  const gpu = process.env.CUDA_VISIBLE_DEVICES?.split(',')[0] ?? '0';
  const query = ['--query-gpu=power.draw,clocks.sm', '--format=csv,noheader,nounits'];
  const child = spawn('nvidia-smi', [...query, '-i', gpu, '-lms', String(EVERY_MS)], {
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  child.on('error', () => {});
  let text = '';
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    text += chunk;
  });
  try {
    await use();
    return describe(text);
  } finally {
    child.kill();
  }
}

function describe(text: string): string {
  const samples = text
    .split('\n')
    .map((line) => line.split(',').map(Number))
    .filter((sample) => sample.length === 2 && sample.every((number) => number > 0));
  if (samples.length === 0) return '';
  const [watts, clock] = [0, 1].map((i) => Math.round(median(samples.map((each) => each[i]))));
  return `${watts} W, ${clock.toLocaleString('en')} MHz`;
}
