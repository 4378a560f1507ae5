/**
 * What two ways to launch bring: kernels that are set up while those before them end (programmatic
 * dependent launch), and steps that are replayed as graphs. Decode steps of the executor alone, with
 * both, without the one, without the other, one after the other.
 *
 *     node dist/bench/gpu/launches.js [--shapes NAME,NAME] [--batches 64,256] [--runs 5]
 *         [--context 256] [--model-dir bench/shapes]
 *
 * Each tunes its products by itself; where times of one algorithm and another are close, that is part
 * of the difference.
 */
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { type CudaBackendOptions, createCudaBackend } from '../../src/backend/cuda/cuda-backend.js';
import { textTable } from '../../src/bench/text-table.js';
import { loadModel } from '../../src/model/load-model.js';
import { root } from '../../test/helpers/root.js';
import { spread } from '../spread.js';
import { bareDecoder } from './bare-steps.js';

const STEPS = 100;
const MODES: Readonly<Record<string, CudaBackendOptions>> = {
  'as served': {},
  'no overlap': { overlapLaunches: false },
  'no graphs': { enforceEager: true },
};

const { values: flags } = parseArgs({
  options: {
    shapes: { type: 'string', default: 'qwen3-0.6b,llama-3.2-1b,llama-3.1-8b' },
    batches: { type: 'string', default: '64,256' },
    runs: { type: 'string', default: '5' },
    context: { type: 'string', default: '256' },
    'model-dir': { type: 'string', default: join(root, 'bench/shapes') },
  },
});
const first = Number(flags.context);
const modes = Object.values(MODES);
const lines: string[][] = [];
for (const shape of flags.shapes.split(',')) {
  const model = loadModel(join(flags['model-dir'], shape), {
    ...{ loadFormat: 'dummy', dtype: 'bfloat16', maxModelLen: first + STEPS },
  });
  for (const batch of flags.batches.split(',').map(Number)) {
    // One after the other: of engines that live at once only the first has chains of products.
    const times = modes.map((options) => {
      const decoder = bareDecoder(createCudaBackend(options), model, {
        batch,
        first,
        count: STEPS,
      });
      const list = Array.from({ length: Number(flags.runs) }, () => decoder.run());
      decoder.close();
      return list;
    });
    lines.push([shape, String(batch), ...times.map((list) => spread(list, 3))]);
    console.error(lines.at(-1)!.join('  '));
  }
}
const header = ['shape', 'batch', ...Object.keys(MODES)];
console.log(`\nms a step, median (least - most)\n${textTable(header, lines)}`);
