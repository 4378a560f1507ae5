/** `millrace bench serve | engine | compare`: measures servers and the engine, compares measurements. */
import { compareFiles } from '../bench/compare.js';
import { benchServe } from '../bench/serve.js';
import { UsageError } from '../flags/flag.js';
import { benchEngineCommand } from './bench-engine.js';

const HELP = `Usage: millrace bench COMMAND

  serve --url URL [flags]    measures an OpenAI-compatible server (serve --help lists the flags)
  engine PATH [flags]        measures the engine without HTTP (engine --help lists the flags)
  compare A.json B.json      ratios of two measurements, with intervals`;

const COMPARE_HELP = `Usage: millrace bench compare A.json B.json

Prints for each figure of two reports of bench serve --output-json both values, the ratio B / A with
its 95 % interval, and whether B is better, worse, or not different by more than chance.`;

/** Returns the exit code. Throws UsageError for a wrong command line. */
export async function bench(argv: string[]): Promise<number> {
  const [command, ...rest] = argv;
  switch (command) {
    case 'serve':
      return benchServe(rest);
    case 'engine':
      return benchEngineCommand(rest);
    case 'compare': {
      if (rest.includes('--help')) {
        console.log(COMPARE_HELP);
        return 0;
      }
      if (rest.length !== 2) throw new UsageError(COMPARE_HELP);
      console.log(compareFiles(rest[0], rest[1]));
      return 0;
    }
    case undefined:
    case 'help':
    case '--help':
      console.log(HELP);
      return 0;
    default:
      throw new UsageError(`Unknown bench command ${JSON.stringify(command)}\n\n${HELP}`);
  }
}
