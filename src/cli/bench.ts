/** `millrace bench serve | engine | compare`: measures servers and the engine, compares measurements. */
import { compareFiles } from '../bench/compare.js';
import { benchEngine } from '../bench/engine/bench-engine.js';
import { benchServe } from '../bench/serve.js';
import { InvalidParameterError } from '../errors.js';

const HELP = `millrace bench <command>

  serve --url URL [flags]    measures an OpenAI-compatible server (serve --help lists the flags)
  engine PATH [flags]        measures the engine without HTTP (engine --help lists the flags)
  compare A.json B.json      ratios of two measurements, with intervals
`;

/** Returns the exit code. Throws InvalidParameterError for a wrong command line. */
export async function bench(argv: string[]): Promise<number> {
  const [command, ...rest] = argv;
  switch (command) {
    case 'serve':
      return benchServe(rest);
    case 'engine':
      return benchEngine(rest);
    case 'compare': {
      if (rest.length !== 2) {
        throw InvalidParameterError.expected('two JSON reports', 'bench compare', rest.join(' '));
      }
      console.log(compareFiles(rest[0], rest[1]));
      return 0;
    }
    case undefined:
    case 'help':
    case '--help':
      console.log(HELP);
      return 0;
    default:
      throw InvalidParameterError.expected('serve, engine or compare', 'bench', command);
  }
}
