/** `millrace bench engine PATH`: the engine without HTTP, beside the machine's limits. */
import { writeFileSync } from 'node:fs';
import type { Stored } from '../../backend/cost/cost.js';
import { loadBackend } from '../../backend/load-backend.js';
import { loadModel } from '../../model/load-model.js';
import { cell } from '../text-table.js';
import { calibrate } from './calibrate.js';
import type { BenchEngineOptions } from './engine-options.js';
import { type GridPoint, measureGrid } from './grid.js';
import { InstrumentedEngine } from './instrumented-engine.js';
import { breakdownText, rateTable, reportJson } from './report.js';

/** Prints as it measures. Throws InvalidParameterError, ModelError, MemoryPlanError or NativeError. */
export async function benchEngine(options: BenchEngineOptions): Promise<void> {
  const { batchSizes, inputLens, outputLen } = options;
  const { maxNumBatchedTokens, blockSize, kvCacheDtype } = options;
  const maxModelLen = Math.max(...inputLens) + outputLen;
  const { program, weights } = loadModel(options.model, { ...options, maxModelLen });
  const backend = await loadBackend(options);
  const machine = calibrate(program, weights, backend);
  const engine = new InstrumentedEngine(backend, program, weights, {
    ...{ maxModelLen, maxNumBatchedTokens, blockSize, kvCacheDtype },
    maxNumSeqs: Math.max(...batchSizes),
  });
  const points: GridPoint[] = [];
  try {
    console.log(`${options.model}: ${engine.description}`);
    console.log(
      `limits of this machine, measured: ${cell(machine.flopsPerSecond / 1e9)} GFLOP/s in products ` +
        `of many rows, ${cell(machine.bytesPerSecond / 1e9)} GB/s of weights for one row\n`,
    );
    const { dtype } = weights;
    const storage: Stored['storage'] = (weight) => weights.storage(weight);
    const subject = { engine, program, stored: { dtype, storage, kvCacheDtype }, machine };
    for (const point of measureGrid(subject, options)) {
      points.push(point);
      if (!options.breakdown) continue;
      const name = `batch ${point.batchSize}, ${point.inputLen} tokens in`;
      console.log(`${breakdownText(`${name}, prefill`, point.prefill)}\n`);
      if (point.decode) console.log(`${breakdownText(`${name}, decode`, point.decode)}\n`);
    }
    console.log(rateTable(points, outputLen));
  } finally {
    engine.close();
  }
  if (options.outputJson) {
    const report = reportJson({
      ...{ model: options.model, description: engine.description, dtype: weights.dtype },
      ...{ machine, outputLen, points },
    });
    writeFileSync(options.outputJson, `${JSON.stringify(report, null, 1)}\n`);
  }
}
