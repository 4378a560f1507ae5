/** `millrace serve PATH`: loads a model and serves it until a signal. */
import { once } from 'node:events';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import type { Engine } from '../engine/api.js';
import type { EngineOptions } from '../engine/engine-options.js';
import { startEngine } from '../engine/start-engine.js';
import type { InvalidParameterError } from '../errors.js';
import { asUsage } from '../flags/engine-flags.js';
import { type FlagValues, UsageError } from '../flags/flag.js';
import { flagHelp } from '../flags/flag-help.js';
import { parseFlags } from '../flags/parse-flags.js';
import { loadModel } from '../model/load-model.js';
import { createLog } from '../server/log.js';
import { type RunningServer, startServer } from '../server/server.js';
import { loadTokenizer } from '../tokenizer/load-tokenizer.js';
import type { Tokenizer } from '../tokenizer/tokenizer.js';
import { checkQuality } from './check-quality.js';
import { SERVE_FLAGS } from './serve-flags.js';
import { readVersion } from './version.js';

type ServeFlags = FlagValues<typeof SERVE_FLAGS>;

const HELP = `Usage: millrace serve PATH [options]

Serves the model in the folder or GGUF file PATH over the OpenAI-compatible HTTP API until SIGTERM
or SIGINT. Exit code: 0 after a clean shutdown, 1 after an error or a shutdown that dropped requests,
2 for a wrong command line.

${flagHelp(SERVE_FLAGS)}`;

/** Names an option that is wrong by its flag. */
const refuse = (error: unknown): never => asUsage(SERVE_FLAGS, error);

export async function serve(argv: string[]): Promise<number> {
  const { values: flags, positionals } = parseFlags(SERVE_FLAGS, argv);
  if (flags.help) {
    console.log(HELP);
    return 0;
  }
  if (positionals.length !== 1) {
    throw new UsageError('Usage: millrace serve PATH [options]; --help tells the options');
  }
  const [path] = positionals;
  await checkAddress(flags.host, flags.port);
  const { generationDefaults } = loadModel(path, {
    dtype: flags.dtype,
    loadFormat: flags['load-format'],
  });
  const tokenizer = flags['skip-tokenizer-init'] ? undefined : await loadTokenizer(path);
  const chatTemplate = await readChatTemplate(flags, tokenizer);
  const options = engineOptions(path, flags);
  await checkQuality(options, flags).catch(refuse);
  console.log(`Loading ${path}`);
  const engine = await startEngine(options, {
    onProgress: loadingProgress(),
  }).catch(refuse);
  // Not before: while the model loads there is nothing to finish, and a signal ends the process at once.
  const signals = listenForSignals();
  try {
    for (const line of engine.info.plan) console.log(`  ${line}`);
    const names = flags['served-model-name'];
    const server = await startServer({
      engine,
      tokenizer,
      modelNames: names.length > 0 ? names : [path],
      host: flags.host,
      port: flags.port,
      apiKeys: flags['api-key'],
      generationDefaults: flags['generation-config'] === 'vllm' ? {} : generationDefaults,
      chatTemplate,
      trustRequestChatTemplate: flags['trust-request-chat-template'],
      maxBodySize: flags['max-body-size'],
      log: createLog(flags['log-level']),
      version: readVersion(),
    });
    console.log(`listening on ${server.url}`);
    return await untilStopped(engine, server, signals, flags['shutdown-timeout']);
  } finally {
    await engine.close();
  }
}

function engineOptions(path: string, flags: ServeFlags): EngineOptions {
  return {
    model: path,
    dtype: flags.dtype,
    quantization: flags.quantization,
    quantizationOverrides: flags['quantization-overrides'],
    loadFormat: flags['load-format'],
    seed: flags.seed,
    maxModelLen: flags['max-model-len'],
    device: flags.device,
    gpuMemoryUtilization: flags['gpu-memory-utilization'],
    enforceEager: flags['enforce-eager'],
    threads: flags.threads,
    cpuIsa: flags['cpu-isa'],
    blockSize: flags['block-size'],
    maxNumSeqs: flags['max-num-seqs'],
    maxNumBatchedTokens: flags['max-num-batched-tokens'],
    kvCacheMemory: flags['kv-cache-memory'],
    kvCacheDtype: flags['kv-cache-dtype'],
    enablePrefixCaching: flags['enable-prefix-caching'],
    schedulingPolicy: flags['scheduling-policy'],
    maxNumQueuedReqs: flags['max-num-queued-reqs'],
    maxNumQueuedTokens: flags['max-num-queued-tokens'],
  };
}

/** Loading may take minutes: a taken port should show before. */
async function checkAddress(host: string, port: number): Promise<void> {
  const probe = createServer();
  try {
    await once(probe.listen({ host, port }), 'listening');
  } catch (error) {
    if (error instanceof Error && (error as NodeJS.ErrnoException).code === 'EADDRINUSE') {
      error.message = `Port ${port} of ${host} is in use; choose another with --port (0 picks a free one)`;
    }
    throw error;
  }
  probe.close();
  await once(probe, 'close');
}

/** Reads and tries the template, so that a mistake in it shows now and not in the first request. */
async function readChatTemplate(
  flags: ServeFlags,
  tokenizer: Tokenizer | undefined,
): Promise<string | undefined> {
  const file = flags['chat-template'];
  if (file === undefined) return undefined;
  if (!tokenizer)
    throw new UsageError('--chat-template needs a tokenizer; drop --skip-tokenizer-init');
  let template: string;
  try {
    template = await readFile(file, 'utf8');
  } catch (cause) {
    throw new UsageError(`--chat-template: ${(cause as Error).message}`);
  }
  try {
    tokenizer.applyChatTemplate([{ role: 'user', content: 'Hello' }], { template });
  } catch (error) {
    // A template may well refuse this message; it may not be malformed.
    if ((error as InvalidParameterError).param === 'chat_template') {
      throw new UsageError(`--chat-template ${file}: ${(error as Error).message}`);
    }
  }
  return template;
}

/** One live line on a terminal; where there is none, a line every quarter. */
function loadingProgress(): (share: number) => void {
  let shown = 0;
  return (share) => {
    const quarters = Math.floor(share * 4);
    if (process.stdout.isTTY) {
      process.stdout.write(`\r  weights ${Math.round(share * 100)} %${share >= 1 ? '\n' : ''}`);
    } else if (quarters > shown) {
      shown = quarters;
      console.log(`  weights ${quarters * 25} %`);
    }
  };
}

/** Resolves with the first SIGTERM or SIGINT; the second ends the process at once. */
function listenForSignals(): Promise<NodeJS.Signals> {
  return new Promise((resolve) => {
    let signalled = false;
    const onSignal = (signal: NodeJS.Signals): void => {
      if (signalled) process.exit(1);
      signalled = true;
      resolve(signal);
    };
    process.on('SIGTERM', onSignal);
    process.on('SIGINT', onSignal);
  });
}

async function untilStopped(
  engine: Engine,
  server: RunningServer,
  signals: Promise<NodeJS.Signals>,
  timeoutMs: number,
): Promise<number> {
  const reason = await Promise.race([
    signals,
    engine.failed.catch((error: unknown) =>
      error instanceof Error ? error : new Error(`${error}`),
    ),
  ]);
  if (reason instanceof Error) {
    console.error(`Error: the engine failed: ${reason.message}`);
    await server.close({ timeoutMs: 0 });
    return 1;
  }
  if (server.pending > 0) {
    console.error(
      `${reason}: finishing ${requests(server.pending)}, at most ${timeoutMs / 1000} s`,
    );
  }
  const dropped = await server.close({ timeoutMs });
  if (dropped === 0) return 0;
  console.error(`Dropped ${requests(dropped)} that did not finish in time`);
  return 1;
}

function requests(count: number): string {
  return `${count} request${count === 1 ? '' : 's'}`;
}
