/** The `millrace` command: finds the command, loads only its code, and turns errors into exit codes. */
import { InvalidParameterError, MillraceError } from '../errors.js';
import { UsageError } from '../flags/flag.js';
import { nearest } from '../nearest.js';
import { readVersion } from './version.js';

interface Command {
  summary: string;
  /** Loads the command: argv after its name to the exit code. */
  load(): Promise<(argv: string[]) => Promise<number>>;
}

const COMMANDS: Readonly<Record<string, Command>> = {
  serve: {
    summary: 'serve a model over the OpenAI-compatible HTTP API',
    load: async () => (await import('./serve.js')).serve,
  },
  demo: {
    summary: 'serve the bundled model and show what batching gains',
    load: async () => (await import('./demo.js')).demo,
  },
  bench: {
    summary: 'measure a server or the engine, compare measurements',
    load: async () => (await import('./bench.js')).bench,
  },
  quantize: {
    summary: 'write a quantized checkpoint',
    load: async () => (await import('./quantize.js')).quantize,
  },
  eval: {
    summary: 'measure what a model has lost against another',
    load: async () => (await import('./eval.js')).evalCommand,
  },
};

const USAGE = `Usage: millrace COMMAND [options]

Commands:
${Object.entries(COMMANDS)
  .map(([name, { summary }]) => `  ${name.padEnd(10)}${summary}`)
  .join('\n')}

millrace COMMAND --help tells the options of a command; millrace --version the version.`;

async function run(argv: readonly string[]): Promise<number> {
  const [name, ...rest] = argv;
  if (name === '--version') {
    console.log(readVersion());
    return 0;
  }
  if (name === '--help' || name === '-h' || name === 'help') {
    console.log(USAGE);
    return 0;
  }
  if (name === undefined) throw new UsageError(USAGE);
  if (!Object.hasOwn(COMMANDS, name)) {
    const close = nearest(name, Object.keys(COMMANDS));
    throw new UsageError(
      `Unknown command ${JSON.stringify(name)}${close ? `; did you mean ${close}?` : ''}\n\n${USAGE}`,
    );
  }
  const command = await COMMANDS[name].load();
  return command(rest);
}

/** 2 for a wrong command line, 1 for everything else. Only defects of ours show a stack. */
function report(error: unknown): number {
  const usage = error instanceof UsageError || error instanceof InvalidParameterError;
  if (usage) {
    console.error(error.message);
    return 2;
  }
  const known = error instanceof MillraceError || isSystemError(error);
  console.error(known ? `Error: ${error.message}` : error);
  return 1;
}

/** EADDRINUSE, EACCES and the like: the message says it all. */
function isSystemError(error: unknown): error is Error {
  return error instanceof Error && /^E[A-Z0-9]+$/.test(errorCode(error));
}

function errorCode(error: Error): string {
  return (error as NodeJS.ErrnoException).code ?? '';
}

process.exitCode = await run(process.argv.slice(2)).catch(report);
