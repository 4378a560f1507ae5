import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { intendedTimes, loadWorkload } from '../../src/bench/load-workload.js';
import { SeededRandom } from '../../src/bench/seeded-random.js';
import { BENCH_SERVE_FLAGS } from '../../src/bench/serve-flags.js';
import { serveOptions } from '../../src/bench/serve-options.js';
import { mean } from '../../src/bench/statistics.js';
import { drawLength, parseLengths } from '../../src/bench/workloads/lengths.js';
import { UsageError } from '../../src/flags/flag.js';
import { parseFlags } from '../../src/flags/parse-flags.js';
import { root } from '../helpers/root.js';

const folder = mkdtempSync(join(tmpdir(), 'millrace-workloads-'));
after(() => rmSync(folder, { recursive: true }));

function file(name: string, text: string): string {
  const path = join(folder, name);
  writeFileSync(path, text);
  return path;
}

function optionsOf(...flags: string[]) {
  return serveOptions(parseFlags(BENCH_SERVE_FLAGS, ['--url', 'http://127.0.0.1:1', ...flags]));
}

async function load(...flags: string[]) {
  const options = optionsOf(...flags);
  const workload = await loadWorkload(options);
  const prompts = workload.requests.map(({ prompt }) => prompt());
  return { ...workload, prompts, times: intendedTimes(workload.requests, options) };
}

const RANDOM = ['--num-prompts', '40', '--random-input-len', 'normal:60:20'];

test('The same seed gives the same prompts, lengths and times, another seed others', async () => {
  const flags = [...RANDOM, '--request-rate', '5', '--random-output-len', 'lognormal:30:20'];
  const [a, b, c] = [
    await load(...flags, '--seed', '3'),
    await load(...flags, '--seed', '3'),
    await load(...flags, '--seed', '4'),
  ];
  assert.deepEqual(a.prompts, b.prompts);
  assert.deepEqual(a.times, b.times);
  assert.deepEqual(
    a.requests.map(({ outputTokens }) => outputTokens),
    b.requests.map(({ outputTokens }) => outputTokens),
  );
  assert.notDeepEqual(a.prompts, c.prompts);
  assert.notDeepEqual(a.times, c.times);
});

test('Random prompts are as long as said, below the vocabulary, and differ', async () => {
  const { requests, prompts } = await load(...RANDOM, '--vocab-size', '500');
  for (const [i, prompt] of prompts.entries()) {
    assert.equal(prompt.length, requests[i].inputTokens);
    assert.ok((prompt as number[]).every((id) => id >= 0 && id < 500 && Number.isInteger(id)));
  }
  assert.equal(new Set(prompts.map((prompt) => prompt.slice(0, 8).toString())).size, 40);
});

test('A share of each prompt is a prefix that others have too', async () => {
  const { prompts } = await load(
    ...['--num-prompts', '30', '--random-input-len', '100', '--random-prefix-share', '0.6'],
    ...['--random-num-prefixes', '3'],
  );
  const heads = prompts.map((prompt) => prompt.slice(0, 60).toString());
  assert.equal(new Set(heads).size, 3);
  assert.equal(new Set(prompts.map((prompt) => prompt.slice(60).toString())).size, 30);
});

test('--random-prefix-len comes on top, as in vLLM', async () => {
  const { prompts } = await load(
    ...['--num-prompts', '5', '--random-input-len', '10', '--random-prefix-len', '32'],
  );
  for (const prompt of prompts) {
    assert.equal(prompt.length, 42);
    assert.deepEqual(prompt.slice(0, 32), prompts[0].slice(0, 32));
  }
});

test('Lengths have the mean and deviation of their distribution', () => {
  const random = new SeededRandom(5);
  const forms = [
    ['uniform:50:150', 100, 29.15],
    ['normal:200:20', 200, 20],
    ['lognormal:100:60', 100, 60],
  ] as const;
  for (const [form, middle, deviation] of forms) {
    const lengths = parseLengths(form, 'x');
    const drawn = Array.from({ length: 20_000 }, () => drawLength(lengths, random));
    const spread = Math.sqrt(mean(drawn.map((value) => (value - mean(drawn)) ** 2)));
    assert.ok(Math.abs(mean(drawn) - middle) < middle * 0.02, `${form}: mean ${mean(drawn)}`);
    assert.ok(Math.abs(spread - deviation) < deviation * 0.06, `${form}: deviation ${spread}`);
    assert.ok(drawn.every((value) => Number.isInteger(value) && value >= 1));
  }
  for (const wrong of [
    '',
    '0',
    'x',
    'uniform:5',
    'uniform:9:5',
    'normal:1:2:3',
    '-4',
    'zipf:1:2',
  ]) {
    assert.throws(() => parseLengths(wrong, 'random-input-len'), /--random-input-len/, wrong);
  }
});

test('The Azure trace keeps its times to a tenth of a millisecond, and speeds up', async () => {
  const path = file(
    'azure.csv',
    'TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44\r\n2023-11-16 18:15:50.9951690,396,109\r\n2023-11-16 18:15:51.0000000,0,7',
  );
  const { requests, prompts, times, notes } = await load(
    ...['--dataset-name', 'azure', '--dataset-path', path, '--speedup', '2'],
  );
  assert.deepEqual(
    prompts.map((prompt) => prompt.length),
    [374, 396],
  );
  assert.deepEqual(
    requests.map(({ outputTokens }) => outputTokens),
    [44, 109],
  );
  assert.equal(times?.[0], 0);
  assert.ok(Math.abs((times?.[1] ?? 0) - 4314.579 / 2) < 0.01);
  assert.deepEqual(notes, ['1 rows without tokens left out']);
});

test('BurstGPT is read in either version, its failures left out', async () => {
  const one = file(
    'burst1.csv',
    'Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,47,18,65,API log\n45.5,GPT-4,10,23,33,API log\n46,GPT-4,10,0,10,API log\n',
  );
  const two = file(
    'burst2.csv',
    'Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n5.0,a,2,ChatGPT,47,18,65,API log\n45.5,b,3,GPT-4,10,23,33,API log\n',
  );
  for (const path of [one, two]) {
    const { prompts, times } = await load('--dataset-name', 'burstgpt', '--dataset-path', path);
    assert.deepEqual(times, [0, 40_500]);
    assert.deepEqual(
      prompts.map((prompt) => prompt.length),
      [47, 10],
    );
  }
});

const mooncakeLine = (timestamp: number, inputLength: number, ids: number[]) =>
  JSON.stringify({ timestamp, input_length: inputLength, output_length: 5, hash_ids: ids });

test('Mooncake’s equal hash ids become equal tokens', async () => {
  const lines = [
    mooncakeLine(0, 1100, [0, 1, 2]),
    mooncakeLine(0, 1100, [0, 1, 3]),
    mooncakeLine(3000, 700, [0, 9]),
  ];
  const path = file('moon.jsonl', `${lines.join('\n')}\n`);
  const flags = ['--dataset-name', 'mooncake', '--dataset-path', path];
  const { prompts, times, notes, requests } = await load(...flags);
  const byLength = requests.map(({ inputTokens }, i) => ({ inputTokens, prompt: prompts[i] }));
  const [a, b] = byLength.filter(({ inputTokens }) => inputTokens === 1100);
  const c = byLength.find(({ inputTokens }) => inputTokens === 700)!;
  for (const { inputTokens, prompt } of byLength) assert.equal(prompt.length, inputTokens);
  assert.deepEqual(a.prompt.slice(0, 1024), b.prompt.slice(0, 1024));
  assert.notDeepEqual(a.prompt.slice(1024), b.prompt.slice(1024));
  assert.deepEqual(a.prompt.slice(0, 512), c.prompt.slice(0, 512));
  assert.notDeepEqual(a.prompt.slice(512, 700), c.prompt.slice(512));

  // Times quantised to 3 s are spread over those 3 s, in order, the same each time.
  assert.deepEqual(notes, ['times jittered by 0 to 3 s']);
  assert.deepEqual(
    times,
    [...times!].sort((x, y) => x - y),
  );
  assert.ok(times![0] === 0 && times![1] > 0 && times![1] < 3000 && times![2] < 6000);
  assert.deepEqual((await load(...flags)).times, times);
  const still = await load(...flags, '--trace-jitter', '0');
  assert.deepEqual(still.times, [0, 0, 3000]);
});

test('A trace with fine times is not jittered, and --request-rate replaces its times', async () => {
  const lines = [0, 137, 1204].map((time) => mooncakeLine(time, 10, [time]));
  const path = file('fine.jsonl', lines.join('\n'));
  const flags = ['--dataset-name', 'mooncake', '--dataset-path', path];
  assert.deepEqual((await load(...flags)).times, [0, 137, 1204]);
  const constant = [...flags, '--request-rate', '10', '--burstiness', 'inf'];
  assert.deepEqual((await load(...constant)).times, [100, 200, 300]);
  assert.equal((await load(...flags, '--request-rate', 'inf')).times, undefined);
  assert.equal((await load(...flags, '--limit', '2')).requests.length, 2);
});

test('Prompts from a file go to the route that takes them', async () => {
  const text = file('p.jsonl', '{"prompt":"Hi","output_tokens":3}\n\n{"prompt":[4,5]}\n');
  const a = await load('--dataset-name', 'custom', '--dataset-path', text, '--output-len', '9');
  assert.deepEqual(a.prompts, ['Hi', [4, 5]]);
  assert.deepEqual(
    a.requests.map(({ outputTokens }) => outputTokens),
    [3, 9],
  );
  assert.equal(a.endpoint, '/v1/completions');
  assert.equal(a.ignoreEos, false);
  const chat = file('m.jsonl', '{"messages":[{"role":"user","content":"Hi"}]}');
  const flags = ['--dataset-name', 'custom', '--dataset-path', chat, '--num-prompts', '3'];
  const b = await load(...flags);
  assert.equal(b.endpoint, '/v1/chat/completions');
  assert.equal(b.requests.length, 3);
  assert.deepEqual(b.notes, ['1 prompts in the file, repeated to 3']);
});

test('MT-bench and ShareGPT give their questions', async () => {
  const bench = file('q.jsonl', '{"question_id":81,"category":"writing","turns":["One?","Two?"]}');
  const a = await load('--dataset-name', 'mt-bench', '--dataset-path', bench);
  assert.deepEqual(a.prompts, [[{ role: 'user', content: 'One?' }]]);
  assert.equal(a.endpoint, '/v1/chat/completions');
  const conversations = [
    { from: 'human', value: 'Why?' },
    { from: 'gpt', value: 'Because of this.' },
  ];
  const gpt = file('s.json', JSON.stringify([{ conversations }, { conversations: [] }]));
  const b = await load('--dataset-name', 'sharegpt', '--dataset-path', gpt);
  assert.deepEqual(b.prompts, ['Why?']);
  assert.equal(b.requests[0].outputTokens, 4);
  assert.equal(b.notes[0], '1 conversations of fewer than two turns left out');
});

test('Files that are something else are refused with their line', async () => {
  const wrong: [string, string, RegExp][] = [
    ['azure', 'a,b\n1,2\n', /"TIMESTAMP" in line 1/],
    ['azure', 'TIMESTAMP,ContextTokens,GeneratedTokens\nnow,1,2\n', /line 2/],
    ['burstgpt', 'Timestamp,Request tokens,Response tokens\n1,2\n', /line 2/],
    ['mooncake', '{"timestamp":0}\n', /line 1/],
    ['custom', '{"prompt":"a"}\n{"text":"b"}\n', /line 2/],
    ['custom', 'hello\n', /line 1/],
    ['mt-bench', '{"turns":[]}\n', /line 1/],
    ['sharegpt', '{}', /no list/],
  ];
  for (const [dataset, text, message] of wrong) {
    const path = file('wrong', text);
    const flags = ['--dataset-name', dataset, '--dataset-path', path];
    await assert.rejects(load(...flags), { name: 'InvalidParameterError', message }, dataset);
  }
  const gone = join(folder, 'gone');
  await assert.rejects(load('--dataset-name', 'azure', '--dataset-path', gone), /--dataset-path/);
});

test('Wrong flags are refused by name', () => {
  const wrong: [string[], RegExp][] = [
    [['--request-rate', '0'], /--request-rate/],
    [['--request-rate', 'fast'], /--request-rate/],
    [['--max-concurrency', '1.5'], /--max-concurrency/],
    [['--dataset-name', 'wiki'], /--dataset-name/],
    [['--dataset-name', 'azure'], /--dataset-path/],
    [['--goodput', 'ttfb:3'], /--goodput/],
    [['--extra-body', '[1]'], /--extra-body/],
    [['--header', 'x'], /--header/],
    [['--header', 'é=1'], /--header/],
    [['--endpoint', 'v1/completions'], /--endpoint/],
    [['--ramp-up-strategy', 'linear'], /--ramp-up-start-rps/],
    [['--ramp-up-strategy', 'linear', '--request-rate', '3'], /--request-rate/],
    [['--nonsense'], /nonsense/],
    [['stray'], /stray/],
  ];
  for (const [flags, message] of wrong) {
    assert.throws(
      () => optionsOf(...flags),
      (error: Error) => error instanceof UsageError && message.test(error.message),
      flags.join(' '),
    );
  }
  for (const flags of [[], ['--url', 'ftp://x'], ['--url', 'http://[x']]) {
    assert.throws(
      () => serveOptions(parseFlags(BENCH_SERVE_FLAGS, flags)),
      /http address for --url/,
    );
  }
});

test('A key with a line break is refused without being repeated', () => {
  assert.throws(
    () => optionsOf('--api-key', 'secret\n'),
    (error: Error) => /--api-key/.test(error.message) && !error.message.includes('secret'),
  );
});

test('Flags that would do nothing beside the others are refused', () => {
  const wrong: [string[], RegExp][] = [
    [['--speedup', '2'], /--speedup only with --dataset-name azure, .* received it with random/],
    [['--dataset-path', 'x'], /--dataset-path only with/],
    [['--dataset-name', 'custom', '--dataset-path', 'x', '--random-input-len', '5'], /only with/],
    [['--num-prompts', '2', '--limit', '3'], /--num-prompts or --limit, not both/],
    [['--burstiness', '2'], /--request-rate or --ramp-up-strategy or --sweep beside --burstiness/],
    [['--sweep-points', '3'], /--sweep beside --sweep-points/],
    [['--sweep', '--request-rate', '3'], /--sweep or --request-rate, not both/],
    [['--random-num-prefixes', '3'], /--random-prefix-share beside/],
    [
      ['--random-range-ratio', '0.2', '--random-input-len', 'uniform:1:2'].concat([
        '--random-output-len',
        'normal:9:2',
      ]),
      /fixed length beside --random-range-ratio/,
    ],
  ];
  for (const [flags, message] of wrong) {
    assert.throws(
      () => optionsOf(...flags),
      (error: Error) => error instanceof UsageError && message.test(error.message),
      flags.join(' '),
    );
  }
  assert.equal(optionsOf('--no-sweep', '--request-rate', '3').requestRate, 3);
  assert.equal(optionsOf('--request-rate', 'inf', '--burstiness', '1').burstiness, 1);
});

test('A workload is described with its lengths or its file', async () => {
  const { description } = await load(
    ...['--num-prompts', '2', '--random-input-len', 'uniform:5:9', '--random-output-len', '7'],
    ...['--random-prefix-len', '3', '--random-prefix-share', '0.5', '--random-num-prefixes', '2'],
  );
  assert.equal(
    description,
    'random (uniform:5:9 in, 7 out, after 3 common ones, 2 prefixes of 50 %)',
  );
  const path = file('p.jsonl', '{"prompt":"a"}');
  const flags = ['--dataset-name', 'custom', '--dataset-path', path];
  assert.equal((await load(...flags, '--output-len', '9')).description, 'custom (p.jsonl, 9 out)');
});

test('Objectives are read as vLLM writes them, and as ours', () => {
  const { slos } = optionsOf('--goodput', 'ttft:500', 'tpot:50', 'e2el:9000');
  assert.deepEqual(slos, { ttft: 500, tpot: 50, e2el: 9000 });
  assert.deepEqual(optionsOf('--goodput', 'e2e:1.5').slos, { e2el: 1.5 });
});

test('With a tokenizer random prompts can be sent as text', async () => {
  const { decode, prompts, notes } = await load(
    ...RANDOM,
    '--tokenizer',
    join(root, 'models/stories-7m'),
  );
  const text = decode?.(prompts[0] as number[]) ?? '';
  assert.ok(text.length > prompts[0].length, text);
  assert.match(notes[0], /sent as text/);
});
