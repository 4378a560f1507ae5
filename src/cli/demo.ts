/**
 * `millrace demo`: serves the bundled model, sends it the same 64 prompts one at a time and then
 * all at once, and shows in one table what batching gains. Then it keeps serving until Ctrl-C.
 */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { closedLoop } from '../bench/closed-loop.js';
import { LiveLine } from '../bench/live-line.js';
import { type RequestRecord, tpot, ttft } from '../bench/request-record.js';
import { percentile } from '../bench/statistics.js';
import { keepAliveAgent, streamRequest } from '../bench/streaming-client.js';
import { cell, textTable } from '../bench/text-table.js';
import { now } from '../engine/api.js';
import { ServerFailedError } from '../errors.js';
import { ENGINE_FLAGS } from '../flags/engine-flags.js';
import { UsageError } from '../flags/flag.js';
import { flagHelp } from '../flags/flag-help.js';
import { HELP_FLAG, integer, toggle } from '../flags/kinds.js';
import { parseFlags } from '../flags/parse-flags.js';
import { type ServerProcess, startServerProcess } from './server-process.js';

const PROMPTS = 64;
const MAX_TOKENS = 128;
/** Exit code after a signal, as shells have it: 128 + SIGINT. */
const INTERRUPTED = 130;
const MODEL = fileURLToPath(new URL('../../../models/stories-7m', import.meta.url));
const MODEL_NAME = 'stories-7m';
/** The same for all prompts, so that the prefix cache has something to share. */
const SYSTEM_PROMPT =
  'You tell short stories. Every story is for small children, has a beginning, a problem and a happy end, and uses simple words.';

const FLAGS = {
  exit: toggle({ group: 'Options', help: 'Stop after the table.', default: false }),
  port: integer({
    group: 'Options',
    help: 'Port to serve on; 0 picks a free one.',
    default: 8000,
    max: 65535,
  }),
  threads: { ...ENGINE_FLAGS.threads, group: 'Options', help: 'Compute threads.' },
  help: { ...HELP_FLAG, group: 'Options' },
};

const HELP = `Usage: millrace demo [options]

Serves the bundled ${MODEL_NAME}, answers ${PROMPTS} prompts one at a time and then all at once,
prints what batching gains, and keeps serving until Ctrl-C.

${flagHelp(FLAGS)}`;

export async function demo(argv: string[]): Promise<number> {
  const { values: flags, positionals } = parseFlags(FLAGS, argv);
  if (flags.help) {
    console.log(HELP);
    return 0;
  }
  if (positionals.length > 0) throw new UsageError(`demo takes no ${positionals[0]}`);
  const serveArgs = [MODEL, '--served-model-name', MODEL_NAME, '--port', String(flags.port)];
  if (flags.threads !== undefined) serveArgs.push('--threads', String(flags.threads));
  const server = await startServerProcess(serveArgs);
  try {
    await compare(server);
    if (flags.exit) return 0;
    console.log(`\nTry it yourself:\n\n${curl(server.url)}\n\nServing until Ctrl-C.`);
    return await server.exited;
  } catch (error) {
    // Ctrl-C in the middle: what failed because of it is no news.
    if (server.interrupted) return INTERRUPTED;
    throw error;
  } finally {
    await server.stop();
  }
}

/** Both rounds and the table. */
async function compare(server: ServerProcess): Promise<void> {
  const prompts = readPrompts();
  await sendAll(server, prompts.slice(0, 4), { concurrency: 4, label: 'warm-up', salt: 'warm-up' });
  const single = await sendAll(server, prompts, {
    concurrency: 1,
    label: 'one at a time',
    salt: '1',
  });
  const batched = await sendAll(server, prompts, {
    concurrency: PROMPTS,
    label: 'all at once',
    salt: '2',
  });

  console.log(`\n${PROMPTS} stories of at most ${MAX_TOKENS} tokens from ${MODEL_NAME}, greedy\n`);
  console.log(textTable(['', 'one at a time', 'all at once', 'gain'], tableRows(single, batched)));
  const same = batched.records.filter((record, index) =>
    equalTokens(record.tokenIds, single.records[index].tokenIds),
  ).length;
  console.log(`\nThe same tokens in both rounds: ${same} of ${PROMPTS} stories.`);
}

interface Round {
  records: RequestRecord[];
  /** Seconds from the first request to the last token. */
  seconds: number;
  peakKvUsage: number;
  prefixQueries: number;
  prefixHits: number;
}

async function sendAll(
  server: ServerProcess,
  prompts: readonly string[],
  round: { concurrency: number; label: string; salt: string },
): Promise<Round> {
  const agent = keepAliveAgent();
  const before = await readMetrics(server.url);
  let peakKvUsage = 0;
  let ended = false;
  const watch = (async () => {
    while (!ended) {
      peakKvUsage = Math.max(peakKvUsage, (await readMetrics(server.url)).kvUsage);
      await new Promise((resolve) => setTimeout(resolve, 100));
    }
  })();
  // It is awaited below; until then a rejection must not count as unhandled.
  watch.catch(() => {});

  const start = now();
  const live = new LiveLine(prompts.length, { title: round.label });
  const records = await closedLoop({
    count: prompts.length,
    concurrency: round.concurrency,
    send: (index) => {
      live.onSend();
      return streamRequest({
        url: `${server.url}/v1/chat/completions`,
        agent,
        intended: now(),
        onTokens: live.onTokens,
        body: {
          model: MODEL_NAME,
          messages: [
            { role: 'system', content: SYSTEM_PROMPT },
            { role: 'user', content: prompts[index] },
          ],
          temperature: 0,
          max_tokens: MAX_TOKENS,
          return_token_ids: true,
          // A salt of its own for each round: the second must not live off the first one's cache.
          cache_salt: round.salt,
        },
      });
    },
    onDone: live.onDone,
  });
  const seconds = (now() - start) / 1000;
  live.end();
  ended = true;
  await watch;
  agent.destroy();

  const failed = records.find((record) => record.error);
  if (failed?.error) throw new ServerFailedError(`A request failed: ${failed.error.message}`);
  const after = await readMetrics(server.url);
  return {
    records,
    seconds,
    peakKvUsage,
    prefixQueries: after.prefixQueries - before.prefixQueries,
    prefixHits: after.prefixHits - before.prefixHits,
  };
}

function tableRows(single: Round, batched: Round): string[][] {
  const requests = (round: Round) => round.records.length / round.seconds;
  const tokens = (round: Round) =>
    round.records.reduce((sum, record) => sum + record.outputTokens, 0) / round.seconds;
  const ttfts = (p: number) => (round: Round) => percentile(round.records.map(ttft), p);
  const tpots = (p: number) => (round: Round) =>
    percentile(round.records.filter((record) => record.outputTokens > 1).map(tpot), p);
  const share = (of: (round: Round) => number, round: Round) => `${(of(round) * 100).toFixed(1)} %`;
  const hits = (round: Round) => round.prefixHits / round.prefixQueries;
  const ratio = (of: (round: Round) => number) => `${(of(batched) / of(single)).toFixed(1)} x`;
  const both = (of: (round: Round) => number, unit = '') => [
    cell(of(single), unit),
    cell(of(batched), unit),
  ];
  return [
    ['requests/s', ...both(requests), ratio(requests)],
    ['output tok/s', ...both(tokens), ratio(tokens)],
    ['TTFT p50', ...both(ttfts(50), ' ms')],
    ['TTFT p99', ...both(ttfts(99), ' ms')],
    ['TPOT p50', ...both(tpots(50), ' ms')],
    ['TPOT p99', ...both(tpots(99), ' ms')],
    [
      'peak KV use',
      share((round) => round.peakKvUsage, single),
      share((round) => round.peakKvUsage, batched),
    ],
    ['prefix-cache hits', share(hits, single), share(hits, batched)],
  ];
}

function readPrompts(): string[] {
  const lines = readFileSync(`${MODEL}/story-prompts.jsonl`, 'utf8').split('\n', PROMPTS);
  return lines.map((line) => (JSON.parse(line) as { prompt: string }).prompt);
}

async function readMetrics(
  url: string,
): Promise<{ kvUsage: number; prefixQueries: number; prefixHits: number }> {
  const text = await (await fetch(`${url}/metrics`)).text();
  const value = (name: string) => {
    const found = text.match(new RegExp(`^vllm:${name}(?:\\{[^}]*\\})? (\\S+)$`, 'm'));
    if (!found) throw new ServerFailedError(`The server's /metrics has no vllm:${name}`);
    return Number(found[1]);
  };
  return {
    kvUsage: value('kv_cache_usage_perc'),
    prefixQueries: value('prefix_cache_queries_total'),
    prefixHits: value('prefix_cache_hits_total'),
  };
}

function equalTokens(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((token, index) => token === b[index]);
}

function curl(url: string): string {
  return `  curl ${url}/v1/chat/completions -H 'content-type: application/json' -d '{"model": "${MODEL_NAME}", "messages": [{"role": "user", "content": "Write a story about a dragon and a cake."}], "stream": true}'`;
}
