import assert from 'node:assert/strict';
import { test } from 'node:test';
import { agreement, describeAgreement } from '../../../bench/rivals/agreement.js';
import { type Contender, type Settings, TooSlowError } from '../../../bench/rivals/contender.js';
import {
  describeSettings,
  rankSettings,
  rivalChoices,
} from '../../../bench/rivals/fastest-settings.js';
import { race } from '../../../bench/rivals/race.js';
import { raceReport } from '../../../bench/rivals/race-report.js';
import { lengthened, rates } from '../../../bench/rivals/rates.js';

test('Rates count decode tokens while all streams decode, and all of them end to end', () => {
  const times = [
    [10, 20, 30, 40],
    [20, 30, 40, 50],
  ];
  const found = rates({ start: 0, tokens: times, times }, 40);
  // From the last first token (20) to the first end (40): 30, 40 and 30, 40.
  assert.equal(found.decode, (4 / 20) * 1000);
  assert.equal(found.endToEnd, (8 / 50) * 1000);
  assert.equal(found.prefill, (40 / 20) * 1000);
  const apart = rates(
    {
      start: 0,
      tokens: [],
      times: [
        [1, 2],
        [3, 4],
      ],
    },
    2,
  );
  assert.ok(Number.isNaN(apart.decode), 'streams that never overlap have no such rate');
});

test('Agreement counts tokens up to the first difference and tells how close a call it was', () => {
  const ours = {
    start: 0,
    times: [],
    tokens: [
      [1, 2, 3],
      [4, 5, 6],
    ],
    margins: [
      [1, 1, 1],
      [2, 0.01, 2],
    ],
  };
  const found = agreement(ours, {
    start: 0,
    times: [],
    tokens: [
      [1, 2, 3],
      [4, 9, 6],
    ],
  });
  assert.deepEqual(found, {
    ...{ sequences: 2, equal: 1, equalTokens: 4, tokens: 6 },
    partings: [{ sequence: 1, token: 1, margin: 0.01 }],
  });
  assert.match(describeAgreement('rival', found), /1 of 2 .* 4 of 6 .* 0\.010 nats/);
});

/** A contender of one stream that generates a token every `gap` ms, after as long for the prompt. */
function paced(gap: (settings: Settings, run: number) => number, calls: string[] = []): Contender {
  let runs = 0;
  return {
    description: 'scripted',
    async prepare(streams, settings) {
      calls.push(`prepare ${streams} ${describeSettings(settings)}`);
    },
    async run({ outputTokens }, settings: Settings) {
      calls.push('run');
      const step = gap(settings, runs++);
      const times = Array.from({ length: outputTokens }, (_, i) => (i + 1) * step);
      return { start: 0, tokens: [times.map(() => 1)], times: [times] };
    },
    close: async () => {},
  };
}

const TRIAL = { trial: { prompts: [[1]], outputTokens: 2 }, outputTokens: 8 };

test('One setting after the other is settled, each made ready before it is timed', async () => {
  const calls: string[] = [];
  const speed = ({ threads, batchSize, flashAttention }: Settings) =>
    (threads === 1 ? 4 : threads) * (flashAttention ? 1 : 2) * (batchSize === 512 ? 1.5 : 1);
  const contender = paced((settings) => 100 / speed(settings), calls);
  const choices = rivalChoices(3, 1000);
  assert.deepEqual(choices.threads, [1, 2, 3]);
  const [{ settings: best }, ...fallbacks] = await rankSettings(contender, choices, TRIAL);
  assert.deepEqual(best, { threads: 1, batchSize: 512, flashAttention: false });
  // With flash attention as in their trials: 100 / 4.5 and 100 / 3 ms a token.
  assert.deepEqual(
    fallbacks.map(({ settings, rate }) => [settings, Math.round(rate)]),
    [
      [{ ...best, threads: 3 }, 45],
      [{ ...best, threads: 2 }, 30],
    ],
  );
  assert.deepEqual(calls.slice(0, 2), [
    'prepare 1 1 thread, batches of 512, flash attention on',
    'run',
  ]);
  // Nothing left a doubt, so that there were two rounds of each.
  assert.equal(calls.length, 2 * (2 * 3 + 2 * 2 + 2 * 2));
  assert.deepEqual(rivalChoices(2, 512), {
    ...{ threads: [1, 2], flashAttention: [true, false], batchSize: [512] },
  });
  assert.deepEqual(rivalChoices(1, 1000).threads, [1]);
});

test('One lucky trial does not choose what is slow in most', async () => {
  // Two threads are fast in the first of three runs, then wait for each other.
  let twos = 0;
  const contender = paced(({ threads }) => (threads === 1 ? 10 : twos++ === 0 ? 5 : 100));
  const choices = { ...rivalChoices(2, 1), flashAttention: [true] };
  const [best, fallback] = await rankSettings(contender, choices, TRIAL);
  assert.equal(best.settings.threads, 1);
  assert.deepEqual([fallback.settings.threads, Math.round(fallback.rate)], [2, 10]);
  assert.equal(twos, 3);
});

test('Settings whose trial had to be given up are not tried again, nor measured', async () => {
  const limits: (number | undefined)[] = [];
  const quick = paced(() => 10);
  const stuck: Contender = {
    ...quick,
    async run(task, settings, limitMs) {
      if (settings.threads === 1) return quick.run(task, settings);
      limits.push(limitMs);
      throw new TooSlowError('stuck');
    },
  };
  const choices = { ...rivalChoices(2, 1), flashAttention: [true] };
  const [best, given] = await rankSettings(stuck, choices, TRIAL);
  assert.deepEqual([best.settings.threads, given.settings.threads, given.rate], [1, 2, 0]);
  assert.deepEqual(limits, [5000]);
  const contenders = new Map([['rival', stuck]]);
  const [found] = await race(contenders, {
    ...{ streamCounts: [1], inputTokens: 3, outputTokens: 40, runs: 1, vocabSize: 100 },
    choices: () => choices,
  });
  assert.deepEqual([found.settings.threads, Math.round(found.endToEnd)], [1, 100]);
});

test('A measured run that had to be given up is made with the other settings', async () => {
  const quick = paced(({ threads }) => (threads === 1 ? 10 : 6));
  let limit: number | undefined;
  const stuck: Contender = {
    ...quick,
    async run(task, settings, limitMs) {
      if (settings.threads === 1 || task.outputTokens <= 24) return quick.run(task, settings);
      limit = limitMs;
      throw new TooSlowError('stuck');
    },
  };
  const [found] = await race(new Map([['rival', stuck]]), {
    ...{ streamCounts: [1], inputTokens: 3, outputTokens: 4000, runs: 1, vocabSize: 100 },
    choices: () => ({ ...rivalChoices(2, 1), flashAttention: [true] }),
  });
  assert.deepEqual([found.settings.threads, Math.round(found.endToEnd)], [1, 100]);
  // Four times the 24 s that its trials promised.
  assert.ok(Math.abs(limit! - 96_000) < 100, `${limit}`);
});

test('A trial promises the rate of the whole workload: what is longer goes at the rate of decoding', () => {
  // 100 ms for the prompt's token, then one each 10 ms: 10 tokens in 190 ms, 100 in 1,090 ms.
  const times = [Array.from({ length: 10 }, (_, i) => 100 + i * 10)];
  const found = rates({ start: 0, tokens: times, times }, 1);
  assert.ok(Math.abs(lengthened(found, 10, 100) - 100 / 1.09) < 1e-9);
  assert.equal(lengthened({ ...found, decode: Number.NaN }, 10, 100), found.endToEnd);
});

test('A rival that falls behind what other settings promised runs again with them, and the better counts', async () => {
  // Two threads win every trial and collapse in the first measured run.
  let long = 0;
  const rival = paced(({ threads }) => (threads === 1 ? 10 : 6));
  const collapsing: Contender = {
    ...rival,
    async run(task, settings) {
      const result = await rival.run(task, settings);
      const slow = task.outputTokens > 24 && settings.threads === 2 && long++ === 0 ? 20 : 1;
      return { ...result, times: result.times.map((stream) => stream.map((at) => at * slow)) };
    },
  };
  const contenders = new Map([
    ['ours', paced(() => 1)],
    ['rival', collapsing],
  ]);
  const one = { threads: [2], flashAttention: [true], batchSize: [512] };
  const notes: string[] = [];
  const measurements = await race(contenders, {
    ...{ streamCounts: [1], inputTokens: 3, outputTokens: 40, runs: 2, vocabSize: 100 },
    choices: (name) => (name === 'ours' ? one : { ...one, threads: [2, 1] }),
    onProgress: (text) => notes.push(text),
  });
  const found = measurements.filter(({ contender }) => contender === 'rival');
  assert.deepEqual(
    found.map(({ settings, endToEnd }) => [settings.threads, Math.round(endToEnd)]),
    [
      [1, 100],
      [2, 167],
    ],
  );
  assert.equal(notes.filter((note) => note.includes('fell behind')).length, 1);
  assert.match(
    raceReport(measurements),
    /rival, 1 streams: 1 thread, .*; 1 of 2 runs 2 threads, batches of 512/,
  );
});

/** Every token takes `gap` ms, for all streams at once; the first is the prompt's first plus `shift`. */
function scripted(gap: number, shift: number, log: string[], name: string): Contender {
  return {
    description: name,
    async run({ prompts, outputTokens }) {
      log.push(`${name} ${prompts[0].join()}`);
      const steps = Array.from({ length: outputTokens }, (_, i) => i + 1);
      return {
        start: 0,
        tokens: prompts.map(([first]) => steps.map((step) => first + step + shift)),
        times: prompts.map(() => steps.map((step) => step * gap)),
      };
    },
    close: async () => {},
  };
}

test('A race gives all the same prompts in turn, each with its settings, and the table shows their ratio', async () => {
  const log: string[] = [];
  const contenders = new Map([
    ['ours', scripted(5, 0, log, 'ours')],
    ['rival', scripted(10, 1, log, 'rival')],
  ]);
  const slow = { threads: 2, batchSize: 2048, flashAttention: false };
  const fast = { threads: 2, batchSize: 512, flashAttention: true };
  const only = ({ threads, batchSize, flashAttention }: Settings) => ({
    threads: [threads],
    batchSize: [batchSize],
    flashAttention: [flashAttention],
  });
  const measurements = await race(contenders, {
    ...{ streamCounts: [1, 2], inputTokens: 3, outputTokens: 4, runs: 2, vocabSize: 100 },
    choices: (name) => only(name === 'ours' ? slow : fast),
  });
  assert.equal(measurements.length, 8);
  const runs = log.slice(-8);
  for (let i = 0; i < 8; i += 2) {
    const [a, b] = [runs[i], runs[i + 1]].map((line) => line.split(' '));
    assert.equal(a[1], b[1], 'both had the same prompts');
    assert.deepEqual([a[0], b[0]], i < 4 ? ['ours', 'rival'] : ['rival', 'ours']);
  }
  assert.equal(new Set(runs.map((line) => line.split(' ')[1])).size, 4);
  const [ours, rival] = measurements;
  assert.deepEqual([ours.settings, rival.settings], [slow, fast]);
  assert.deepEqual([ours.firstTokensEqual, rival.firstTokensEqual], [1, 0]);
  assert.deepEqual([ours.endToEnd, rival.endToEnd], [200, 100]);
  const report = raceReport(measurements);
  assert.match(report, /rival, 2 streams: 2 threads, batches of 512, flash attention on/);
  assert.match(report, /rival: first token equals ours for 0 of 6 prompts/);
  // Two streams: 400 tokens a second and 200, twice as many, decoding and end to end.
  assert.match(
    report,
    /^2 +400 \(400 - 400\) +200 \(200 - 200\) +2\.00 .* 400 .* 2\.00 \(2\.00 - 2\.00\)$/m,
  );
});
