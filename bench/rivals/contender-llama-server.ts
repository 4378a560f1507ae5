/**
 * The side of llama.cpp's own server, whose binary the caller brings. Measured through its
 * `/completion` stream (tools/server/README.md of llama.cpp), so its figures hold the cost of HTTP,
 * which the in-process contenders do not pay; a slot per stream, prompts as token ids, no reuse of
 * cached prompts. It is started anew for each setting, since threads and batches are its flags.
 *
 * It sends text: a token that ends within a character is not sent, and its text comes with the next
 * one. `tokens_predicted`, which counts all, tells of those.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { request } from 'node:http';
import { createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { SseParser } from '../../src/bench/sse-parser.js';
import { keepAliveAgent } from '../../src/bench/streaming-client.js';
import { now } from '../../src/engine/api.js';
import {
  CONTEXT,
  type Contender,
  type Settings,
  type Streams,
  serveContender,
  UNSEEN,
  type Workload,
} from './contender.js';
import { keepPrepared } from './keep-prepared.js';

const [binary, modelPath] = process.argv.slice(2);
const START_LIMIT_MS = 60_000;
const agent = keepAliveAgent();

/** The fields read of an event of `/completion`. */
interface StreamEvent {
  tokens?: number[];
  /** So far, this event's included. */
  tokens_predicted?: number;
  stop?: boolean;
}

interface Server {
  child: ChildProcess;
  port: number;
}
let running: ChildProcess | undefined;
/**
 * Servers that can keep a slot's old prompt in RAM do so whenever the slot gets a new one, in the
 * time that is measured, though no prompt here comes twice.
 */
let withoutPromptCache: Record<string, number> = {};
process.once('exit', () => running?.kill());

await serveContender(async (): Promise<Contender> => {
  if (answerOf(binary, '--help').includes('--cache-ram')) withoutPromptCache = { '--cache-ram': 0 };
  return keepPrepared(`llama.cpp server: ${versionOf(binary)}`, {
    make: startServer,
    run: ({ port }, workload) => run(port, workload),
    async dispose({ child }) {
      if (child.exitCode !== null) return;
      const exited = new Promise((resolve) => child.once('exit', resolve));
      child.kill();
      await exited;
    },
  });
});

/** It is printed to stderr, by some builds after lines about the machine. */
function versionOf(path: string): string {
  const lines = answerOf(path, '--version').split('\n');
  return lines.find((line) => /version/.test(line))?.trim() ?? 'of unknown version';
}

function answerOf(path: string, flag: string): string {
  const { error, stdout, stderr } = spawnSync(path, [flag], { encoding: 'utf8' });
  if (error) throw error;
  return `${stdout}\n${stderr}`;
}

async function startServer(
  streams: number,
  { threads, batchSize, flashAttention }: Settings,
): Promise<Server> {
  const port = await freePort();
  const flags = {
    '--model': modelPath,
    '--host': '127.0.0.1',
    '--port': port,
    '--parallel': streams,
    '--ctx-size': streams * CONTEXT,
    '--threads': threads,
    '--batch-size': batchSize,
    '--ubatch-size': batchSize,
    '--flash-attn': flashAttention ? 'on' : 'off',
    ...withoutPromptCache,
  };
  const child = spawn(binary, Object.entries(flags).flat().map(String), {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  running = child;
  let log = '';
  child.stderr?.on('data', (bytes: Buffer) => {
    log = (log + bytes.toString()).slice(-2000);
  });
  child.on('error', (error) => {
    log += error.message;
  });
  for (const limit = now() + START_LIMIT_MS; now() < limit; await sleep(100)) {
    if (child.exitCode !== null || child.pid === undefined) break;
    const healthy = await fetch(`http://127.0.0.1:${port}/health`).catch(() => undefined);
    if (healthy?.ok) return { child, port };
  }
  child.kill();
  throw new Error(`${binary} did not start; its last words:\n${log}`);
}

async function run(port: number, { prompts, outputTokens }: Workload): Promise<Streams> {
  const start = now();
  const streams = await Promise.all(prompts.map((prompt) => stream(port, prompt, outputTokens)));
  return {
    start,
    tokens: streams.map(({ tokens }) => tokens),
    times: streams.map(({ times }) => times),
  };
}

function stream(
  port: number,
  prompt: readonly number[],
  outputTokens: number,
): Promise<{ tokens: number[]; times: number[] }> {
  const body = JSON.stringify({
    prompt,
    n_predict: outputTokens,
    temperature: 0,
    ignore_eos: true,
    cache_prompt: false,
    stream: true,
    return_tokens: true,
  });
  const tokens: number[] = [];
  const times: number[] = [];
  return new Promise((resolve, reject) => {
    const outgoing = request(
      {
        host: '127.0.0.1',
        port,
        path: '/completion',
        method: 'POST',
        agent,
        headers: {
          'content-type': 'application/json',
          'content-length': Buffer.byteLength(body),
        },
      },
      (response) => {
        let arrived = 0;
        let text = '';
        const parser = new SseParser((data) => {
          const { stop, tokens: sent = [], ...event } = JSON.parse(data) as StreamEvent;
          const shown = stop ? [] : sent;
          const count = event.tokens_predicted ?? tokens.length + shown.length;
          const unseen = new Array<number>(Math.max(0, count - tokens.length - shown.length));
          tokens.push(...unseen.fill(UNSEEN), ...shown);
          while (times.length < tokens.length) times.push(arrived);
        });
        response.on('data', (bytes: Buffer) => {
          arrived = now();
          if (response.statusCode !== 200) text += bytes.toString();
          else parser.push(bytes.toString('latin1'));
        });
        response.on('error', reject);
        response.on('close', () => {
          if (tokens.length === outputTokens) resolve({ tokens, times });
          else {
            const got = `${tokens.length} of ${outputTokens} tokens`;
            reject(new Error(`the server answered ${response.statusCode} ${text} and ${got}`));
          }
        });
      },
    );
    outgoing.on('error', reject);
    outgoing.end(body);
  });
}

function freePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const probe = createServer().once('error', reject);
    probe.listen(0, '127.0.0.1', () => {
      const address = probe.address();
      probe.close(() => resolve(typeof address === 'object' && address ? address.port : 0));
    });
  });
}
