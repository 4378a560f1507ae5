/** `millrace bench engine PATH`: the engine without HTTP, beside the machine's limits. */
import { writeFileSync } from 'node:fs';
import { loadModel } from '../../model/load-model.js';
import { cell } from '../text-table.js';
import { calibrate } from './calibrate.js';
import { BENCH_ENGINE_HELP, parseBenchEngineOptions } from './engine-options.js';
import { type GridPoint, measureGrid } from './grid.js';
import { InstrumentedEngine } from './instrumented-engine.js';
import { breakdownText, rateTable, reportJson } from './report.js';

/** Returns the exit code. Throws InvalidParameterError, ModelError, MemoryPlanError or NativeError. */
export async function benchEngine(argv: readonly string[]): Promise<number> {
  if (argv.includes('--help')) {
    console.log(BENCH_ENGINE_HELP);
    return 0;
  }
  const options = parseBenchEngineOptions(argv);
  const { batchSizes, inputLens, outputLen, threads, isa, maxNumBatchedTokens, blockSize } =
    options;
  const maxModelLen = Math.max(...inputLens) + outputLen;
  const { program, weights } = loadModel(options.model, { ...options, maxModelLen });
  const machine = calibrate(program, weights.dtype, { threads, isa });
  const engine = new InstrumentedEngine(program, weights, {
    ...{ threads, isa, maxModelLen, maxNumBatchedTokens, blockSize },
    maxNumSeqs: Math.max(...batchSizes),
  });
  const points: GridPoint[] = [];
  try {
    console.log(`${options.model}: ${engine.description}`);
    console.log(
      `limits of this machine, measured: ${cell(machine.flopsPerSecond / 1e9)} GFLOP/s in products ` +
        `of 512 rows, ${cell(machine.bytesPerSecond / 1e9)} GB/s of weights for one row\n`,
    );
    const subject = { engine, program, dtype: weights.dtype, machine };
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
  return 0;
}
