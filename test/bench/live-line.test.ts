import assert from 'node:assert/strict';
import { mock, type TestContext, test } from 'node:test';
import { LiveLine } from '../../src/bench/live-line.js';
import type { RequestRecord } from '../../src/bench/request-record.js';

const GOOD = {} as RequestRecord;
const FAILED = { error: { kind: 'refused', message: '' } } as RequestRecord;

/** What is written to a stream that is a terminal or not, and a clock that the test moves. */
function setUp(t: TestContext, isTTY = false) {
  const written: string[] = [];
  const stream = { isTTY, write: (text: string) => written.push(text) };
  let time = 1000;
  const clock = mock.method(process.hrtime, 'bigint', () => BigInt(Math.round(time * 1e6)));
  mock.timers.enable({ apis: ['setInterval'] });
  t.after(() => {
    mock.timers.reset();
    clock.mock.restore();
  });
  const pass = (ms: number) => {
    for (let left = ms; left > 0; left -= 50) {
      time += Math.min(50, left);
      mock.timers.tick(Math.min(50, left));
    }
  };
  return { written, pass, stream: stream as unknown as NodeJS.WriteStream };
}

test('Where there is no terminal every quarter has a line, with what is in flight and failed', (t) => {
  const { written, stream } = setUp(t);
  const live = new LiveLine(8, { title: 'idle', stream });
  for (let i = 0; i < 6; i++) live.onSend();
  for (const record of [GOOD, GOOD, GOOD, GOOD, FAILED]) live.onDone(record);
  assert.match(live.text(), /^idle: 5\/8, .* 1 in flight, 1 FAILED, .* to go$/);
  live.end();
  assert.equal(written.length, 2);
  assert.match(written[0], /^idle: 2\/8, .*\n$/);
  assert.match(written[1], /^idle: 4\/8, .*\n$/);
});

test('Answers that end in the same moment give the rate since the start, and none before that means anything', (t) => {
  const { written, pass, stream } = setUp(t);
  const live = new LiveLine(64, { stream });
  for (let i = 0; i < 64; i++) live.onSend();
  assert.match(live.text(), /^0\/64, - req\/s, - tok\/s, 64 in flight, \? to go$/);
  pass(800);
  live.onTokens(64 * 100);
  pass(200);
  for (let i = 0; i < 48; i++) live.onDone(GOOD);
  assert.deepEqual(written, [
    '16/64, 16 req/s, 6,400 tok/s, 48 in flight, 3 s to go\n',
    '32/64, 32 req/s, 6,400 tok/s, 32 in flight, 1 s to go\n',
    '48/64, 48 req/s, 6,400 tok/s, 16 in flight, 0.333 s to go\n',
  ]);
});

test('Rates are of the last five seconds, and tokens count when they come, not when their answer ends', (t) => {
  const { written, pass, stream } = setUp(t, true);
  const live = new LiveLine(1000, { stream });
  for (let second = 0; second < 20; second++) {
    for (let i = 0; i < (second < 10 ? 30 : 10); i++) live.onDone(GOOD);
    live.onTokens(second < 10 ? 100 : 700);
    pass(1000);
  }
  assert.match(live.text(), /^400\/1000, 10 req\/s, 700 tok\/s/);
  assert.equal(written.length, 40);
  assert.ok(written[39].startsWith('\r\x1b[K400/1000, 10 req/s'));
  // 600 more at the 20 a second of the whole run.
  assert.match(live.text(), /30 s to go$/);
});

test('The time to go of an open loop is that of its schedule and of what is due', (t) => {
  const { pass, stream } = setUp(t);
  // A ramp: 10 requests in 10 s, then 90 in the next 10 s.
  const times = Array.from({ length: 100 }, (_, i) =>
    i < 10 ? i * 1000 : 10_000 + (i - 10) * 111,
  );
  const live = new LiveLine(100, { stream, times });
  for (let i = 0; i < 5; i++) {
    live.onDone(GOOD);
    pass(1000);
  }
  // Six are due, and five answered at one a second.
  assert.match(live.text(), /^5\/100, 1 req\/s, .*, 15.9 s to go$/);
});

test('A run whose end nobody knows says every ten seconds that it lives', (t) => {
  const { written, pass, stream } = setUp(t);
  const live = new LiveLine(Number.NaN, { title: 'idle', stream });
  for (let second = 0; second < 25; second++) {
    live.onDone(GOOD);
    pass(1000);
  }
  assert.equal(written.length, 2);
  assert.match(written[0], /^idle: 10, 1 req\/s, 0 tok\/s, -?\d+ in flight\n$/);
});
