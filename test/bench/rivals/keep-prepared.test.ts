import assert from 'node:assert/strict';
import { test } from 'node:test';
import { keepPrepared } from '../../../bench/rivals/keep-prepared.js';

test('What a rival prepared is kept for runs like it, and made anew when streams or settings change', async () => {
  const events: string[] = [];
  let made = 0;
  const contender = keepPrepared<number>('rival', {
    async make(streams, { threads }) {
      events.push(`make ${++made} for ${streams} streams, ${threads} threads`);
      return made;
    },
    async run(what) {
      events.push(`run ${what}`);
      return { start: 0, tokens: [], times: [] };
    },
    async dispose(what) {
      events.push(`dispose ${what}`);
    },
  });
  const settings = { threads: 1, batchSize: 8, flashAttention: true };
  const workload = { prompts: [[1], [2]], outputTokens: 1 };
  await contender.prepare(2, settings);
  await contender.run(workload, { ...settings });
  await contender.run(workload, { ...settings, threads: 2 });
  await contender.close();
  await contender.close();
  assert.deepEqual(events, [
    'make 1 for 2 streams, 1 threads',
    'run 1',
    'dispose 1',
    'make 2 for 2 streams, 2 threads',
    'run 2',
    'dispose 2',
  ]);
});
