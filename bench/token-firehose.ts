/**
 * The server of bench/client-capacity.ts: sends every stream one token each `interval` ms, each in
 * its own write, as cheaply as Node can. Prints its port.
 *
 *     node dist/bench/token-firehose.js TOKENS INTERVAL
 */
import { type AddressInfo, createServer, type Socket } from 'node:net';

const [tokens, interval] = process.argv.slice(2).map(Number);

const head =
  'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n';
const base = {
  id: 'cmpl-0123456789abcdef',
  object: 'text_completion',
  created: 1,
  model: 'firehose',
};
const choice = { index: 0, text: ' word', logprobs: null, finish_reason: null };
const token = Buffer.from(httpChunk(event({ ...base, choices: [choice] })));
const last = Buffer.from(
  httpChunk(
    event({ ...base, choices: [{ ...choice, text: '', finish_reason: 'length' }] }) +
      event({ ...base, choices: [], usage: { prompt_tokens: 64, completion_tokens: tokens } }) +
      'data: [DONE]\n\n',
  ) + httpChunk(''),
);

const live = new Set<{ socket: Socket; left: number }>();

const server = createServer({ noDelay: true }, (socket) => {
  let received = '';
  socket.on('error', () => {});
  socket.on('data', (bytes) => {
    received += bytes.toString('latin1');
    for (;;) {
      const end = received.indexOf('\r\n\r\n');
      if (end < 0) return;
      const length = /content-length: (\d+)/i.exec(received.slice(0, end))?.[1];
      const whole = end + 4 + Number(length ?? 0);
      if (received.length < whole) return;
      received = received.slice(whole);
      socket.write(head);
      live.add({ socket, left: tokens });
    }
  });
});
server.listen(0, '127.0.0.1', () => console.log((server.address() as AddressInfo).port));

setInterval(() => {
  for (const stream of live) {
    if (stream.left-- > 0) {
      stream.socket.write(token);
    } else {
      stream.socket.write(last);
      live.delete(stream);
    }
  }
}, interval);

function event(data: unknown): string {
  return `data: ${JSON.stringify(data)}\n\n`;
}

function httpChunk(text: string): string {
  return `${Buffer.byteLength(text).toString(16)}\r\n${text}\r\n`;
}
