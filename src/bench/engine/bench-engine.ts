/** `millrace bench engine PATH`: the engine without HTTP, beside the machine's limits. */
import { writeFileSync } from 'node:fs';
import type { Backend } from '../../backend/backend.js';
import type { Stored } from '../../backend/cost/cost.js';
import { withoutFp8 } from '../../backend/fp8.js';
import { loadBackend } from '../../backend/load-backend.js';
import { loadModel } from '../../model/load-model.js';
import { cell } from '../text-table.js';
import type { Breakdown } from './breakdown.js';
import { calibrate } from './calibrate.js';
import type { BenchEngineOptions } from './engine-options.js';
import { type GridPoint, measureGrid } from './grid.js';
import { InstrumentedEngine } from './instrumented-engine.js';
import { breakdownText, rateTable, reportJson } from './report.js';

/**
 * Prints as it measures. Throws InvalidParameterError, ModelError, MemoryPlanError or NativeError.
 * Where timing operations makes steps longer, that is a second pass: rates are of steps as they are.
 */
export async function benchEngine(
  options: BenchEngineOptions,
  load: (options: BenchEngineOptions) => Promise<Backend> = loadBackend,
): Promise<void> {
  const { batchSizes, inputLens, outputLen } = options;
  const { maxNumBatchedTokens, blockSize, kvCacheDtype } = options;
  const maxModelLen = Math.max(...inputLens) + outputLen;
  const { program, weights: given } = loadModel(options.model, { ...options, maxModelLen });
  const backend = await load(options);
  const weights = backend.name === 'cuda' ? given : withoutFp8(given);
  const machine = calibrate(program, weights, backend);
  const { dtype } = weights;
  const storage: Stored['storage'] = (weight) => weights.storage(weight);
  const stored = { dtype, storage, kvCacheDtype };
  const withEngine = (executor: Backend, use: (engine: InstrumentedEngine) => void) => {
    const engine = new InstrumentedEngine(executor, program, weights, {
      ...{ maxModelLen, maxNumBatchedTokens, blockSize, kvCacheDtype },
      maxNumSeqs: Math.max(...batchSizes),
    });
    try {
      use(engine);
    } finally {
      engine.close();
    }
  };
  const points: GridPoint[] = [];
  const timing = options.breakdown ? backend.profiling?.() : undefined;
  let description = '';
  withEngine(backend, (engine) => {
    description = engine.description;
    console.log(`${options.model}: ${description}`);
    console.log(
      `limits of this machine, measured: ${cell(machine.flopsPerSecond / 1e9)} GFLOP/s in products ` +
        `of many rows, ${cell(machine.bytesPerSecond / 1e9)} GB/s of weights for one row\n`,
    );
    for (const point of measureGrid({ engine, program, stored, machine }, options)) {
      points.push(point);
      if (options.breakdown && !timing) printBreakdowns(point);
    }
  });
  if (timing) {
    withEngine(timing, (engine) => {
      const grid = measureGrid({ engine, program, stored, machine }, { ...options, numIters: 1 });
      let done = 0;
      for (const { prefill, decode } of grid) {
        const point = points[done++];
        point.timed = { prefill, decode };
        printBreakdowns(point);
      }
    });
  }
  console.log(rateTable(points, outputLen));
  if (options.outputJson) {
    const report = reportJson({
      ...{ model: options.model, description, dtype },
      ...{ machine, outputLen, points },
    });
    writeFileSync(options.outputJson, `${JSON.stringify(report, null, 1)}\n`);
  }
}

function printBreakdowns({ batchSize, inputLen, prefill, decode, timed }: GridPoint): void {
  const print = (phase: string, part?: Breakdown, apart?: Breakdown) => {
    if (!part) return;
    const title = `batch ${batchSize}, ${inputLen} tokens in, ${phase}`;
    console.log(`${breakdownText(title, part, apart)}\n`);
  };
  print('prefill', prefill, timed?.prefill);
  print('decode', decode, timed?.decode);
}
