/**
 * What streaming costs the server: CPU time of the server's process per token, from the engine's
 * delta to the bytes in the socket (stop check, detokenisation, JSON, write, metrics), with many
 * streaming clients in another process. The engine is scripted, so nothing else computes.
 *
 *     node dist/bench/streaming-cost.js [--clients 64,256] [--tokens 256] [--rounds 7] [--step-ms 5]
 */
import { fork } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { startServer } from '../src/server/server.js';
import { loadTokenizer } from '../src/tokenizer/load-tokenizer.js';
import { FakeEngine } from '../test/helpers/fake-engine.js';

interface Job {
  port: number;
  clients: number;
  path: string;
  body: string;
}

const BODIES: Record<string, { path: string; body: Record<string, unknown> }> = {
  completions: { path: '/v1/completions', body: { prompt: 'Once' } },
  chat: {
    path: '/v1/chat/completions',
    body: {
      messages: [{ role: 'user', content: 'Once' }],
      stream_options: { include_usage: true },
    },
  },
  'chat, 2 stop strings': {
    path: '/v1/chat/completions',
    body: { messages: [{ role: 'user', content: 'Once' }], stop: ['###', '\n\n\n'] },
  },
  'completions, token ids': {
    path: '/v1/completions',
    body: { prompt: 'Once', return_token_ids: true },
  },
};

if (process.argv[2] === 'clients') await runClients();
else await main();

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: {
      clients: { type: 'string', default: '64,256' },
      tokens: { type: 'string', default: '256' },
      rounds: { type: 'string', default: '7' },
      'step-ms': { type: 'string', default: '5' },
    },
  });
  const tokens = Number(values.tokens);
  const model = fileURLToPath(new URL('../../models/stories-7m', import.meta.url));
  const tokenizer = await loadTokenizer(model);
  const story = tokenizer.encode(readFileSync(`${model}/heldout-stories.jsonl`, 'utf8'));
  const engine = new FakeEngine({
    script: () => story,
    stepMs: Number(values['step-ms']),
    info: { vocabSize: tokenizer.vocabSize },
  });
  const server = await startServer({ engine, tokenizer, modelNames: ['fake'] });
  const port = Number(new URL(server.url).port);

  console.log('| stream | clients | us CPU/token, median | least | most |');
  console.log('|---|---:|---:|---:|---:|');
  for (const clients of values.clients.split(',').map(Number)) {
    for (const [name, { path, body }] of Object.entries(BODIES)) {
      const full = { ...body, stream: true, max_tokens: tokens, temperature: 0 };
      const job = { port, clients, path, body: JSON.stringify(full) };
      const costs: number[] = [];
      await measure(job, tokens);
      for (let i = 0; i < Number(values.rounds); i++) costs.push(await measure(job, tokens));
      costs.sort((a, b) => a - b);
      const cells = [costs[costs.length >> 1], costs[0], costs[costs.length - 1]];
      console.log(`| ${name} | ${clients} | ${cells.map((c) => c.toFixed(1)).join(' | ')} |`);
    }
  }
  await server.close({ timeoutMs: 1000 });
}

/** Microseconds of this process's CPU a token, request handling included. */
async function measure(job: Job, tokens: number): Promise<number> {
  const child = fork(fileURLToPath(import.meta.url), ['clients']);
  await once(child, 'message');
  const before = process.cpuUsage();
  child.send(job);
  const [events] = (await once(child, 'message')) as [number];
  const { user, system } = process.cpuUsage(before);
  child.kill();
  await once(child, 'exit');
  const expected = job.clients * tokens;
  if (events < expected * 0.9) throw new Error(`${events} events came, expected about ${expected}`);
  return (user + system) / expected;
}

/** The other process: plain sockets that count events, cheaply. */
async function runClients(): Promise<void> {
  process.send?.('ready');
  const [job] = (await once(process, 'message')) as [Job];
  const counts = await Promise.all(Array.from({ length: job.clients }, () => readStream(job)));
  process.send?.(counts.reduce((sum, count) => sum + count, 0));
}

function readStream({ port, path, body }: Job): Promise<number> {
  return new Promise((resolve, reject) => {
    const socket = connect(port, '127.0.0.1');
    socket.write(
      `POST ${path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
    );
    let events = 0;
    socket.on('data', (chunk) => {
      for (let at = chunk.indexOf('data: {'); at >= 0; at = chunk.indexOf('data: {', at + 7)) {
        events++;
      }
    });
    socket.on('end', () => resolve(events));
    socket.on('error', reject);
  });
}
