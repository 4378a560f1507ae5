import assert from 'node:assert/strict';
import { test } from 'node:test';
import { QueueMeter } from '../../src/engine/queue-meter.js';

test('The wait is the time the excess needs at the pace of the last ten seconds', () => {
  const queue = new QueueMeter();
  for (let i = 0; i < 60; i++) queue.enter(100);
  assert.equal(queue.retryAfter(5, 0, 0), 1, 'nothing has left yet: try soon');
  // Two requests of 100 tokens a second.
  for (let i = 0; i <= 20; i++) queue.leave(100, 1000 + i * 500);
  assert.deepEqual([queue.requests, queue.tokens], [39, 3900]);
  assert.equal(queue.retryAfter(10, 0, 11_000), 5);
  assert.equal(queue.retryAfter(0, 2000, 11_000), 10);
  assert.equal(queue.retryAfter(10_000, 0, 11_000), 60, 'never longer than a minute');
});

test('A pace of long ago is forgotten', () => {
  const queue = new QueueMeter();
  for (let i = 0; i < 100; i++) queue.enter(1);
  for (let i = 0; i < 100; i++) queue.leave(1, i);
  assert.equal(queue.retryAfter(50, 0, 60_000), 1);
});
