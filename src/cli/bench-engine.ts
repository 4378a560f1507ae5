/** `millrace bench engine PATH`: the engine without HTTP. */
import { benchEngine } from '../bench/engine/bench-engine.js';
import {
  BENCH_ENGINE_FLAGS,
  BENCH_ENGINE_HELP,
  benchEngineOptions,
} from '../bench/engine/engine-options.js';
import { asUsage } from '../flags/engine-flags.js';
import { parseFlags } from '../flags/parse-flags.js';
import { checkQuality } from './check-quality.js';

/** Returns the exit code. */
export async function benchEngineCommand(argv: readonly string[]): Promise<number> {
  const flags = parseFlags(BENCH_ENGINE_FLAGS, argv);
  if (flags.values.help) {
    console.log(BENCH_ENGINE_HELP);
    return 0;
  }
  const options = benchEngineOptions(flags);
  try {
    await checkQuality(options, flags.values);
    await benchEngine(options);
  } catch (error) {
    asUsage(BENCH_ENGINE_FLAGS, error);
  }
  return 0;
}
