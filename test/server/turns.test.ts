import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ownTurn } from '../../src/server/turns.js';

test('requests of a burst get a turn of the event loop each, in order, with others in between', async () => {
  let turn = 0;
  let counting = true;
  const count = () => {
    turn++;
    if (counting) setImmediate(count);
  };
  setImmediate(count);
  const turns: number[] = [];
  await Promise.all(Array.from({ length: 20 }, () => ownTurn().then(() => turns.push(turn))));
  counting = false;
  assert.equal(new Set(turns).size, 20);
  assert.deepEqual(
    turns,
    turns.toSorted((a, b) => a - b),
  );
});
