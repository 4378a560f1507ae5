import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { STORIES } from '../helpers/goldens.js';
import { root } from '../helpers/root.js';
import { temporaryModel } from '../helpers/tiny-model.js';

function millrace(...args: string[]): { status: number | null; stdout: string; stderr: string } {
  const command = [join(root, 'bin/millrace.js'), ...args];
  return spawnSync(process.execPath, command, { encoding: 'utf8', timeout: 200_000 });
}

test('quantize writes a checkpoint and eval says what it lost', (t) => {
  const folder = temporaryModel(t, {});
  const [target, report] = [join(folder, 'int8'), join(folder, 'report.json')];
  const made = millrace('quantize', STORIES, target, '--scheme', 'int8');
  assert.equal(made.status, 0, made.stderr);
  assert.match(made.stdout, /56 matrices to int8 \(rtn\).*13\.3 MiB before, 7\.7 MiB after/);
  const args = ['--against', STORIES, '--max-tokens', '2000', '--output-json', report];
  const judged = millrace('eval', target, ...args);
  assert.equal(judged.status, 0, judged.stderr);
  assert.match(judged.stdout, /mean KL, nats/);
  assert.match(judged.stdout, /weights, MiB +7\.8 +of base 13\.3/);
  assert.match(judged.stdout, /KV tokens per GiB +262144 +of base 262144/);
  const { klMean, tokens, perplexityIncrease, memory, baseMemory, kvCacheDtype, device } =
    JSON.parse(readFileSync(report, 'utf8'));
  assert.deepEqual([kvCacheDtype, device], ['auto', 'cpu']);
  assert.ok(memory.weightBytes < 0.6 * baseMemory.weightBytes);
  assert.ok(tokens > 1900);
  assert.ok(klMean.value > 0 && klMean.value < 0.004, `KL ${klMean.value}`);
  assert.ok(Math.abs(perplexityIncrease.value) < 0.01);
  const refused = millrace('eval', target, ...args, '--max-quality-loss', 'kl=1e-6');
  assert.equal(refused.status, 1);
  assert.match(refused.stderr, /mean KL divergence of 0\.00\d+ .*above the 0\.00000100/);
});

/** A few held-out stories: enough to tell a loss of some percent, quick on a slow machine. */
function fewStories(folder: string): string {
  const lines = readFileSync(join(STORIES, 'heldout-stories.jsonl'), 'utf8').split('\n');
  const path = join(folder, 'few.jsonl');
  writeFileSync(path, lines.slice(0, 20).join('\n'));
  return path;
}

test('quantize deletes a checkpoint that lost more than it may', (t) => {
  const folder = temporaryModel(t, {});
  const target = join(folder, 'int4');
  const args = ['--scheme', 'int4-g128', '--method', 'rtn', '--max-quality-loss', 'ppl=0.1%'];
  args.push('--eval-text', fewStories(folder));
  const refused = millrace('quantize', STORIES, target, ...args);
  assert.equal(refused.status, 1, refused.stderr);
  assert.match(refused.stderr, /rise in perplexity of \d+\.\d+ %.*above the 0\.10 %.*was deleted/);
  assert.equal(existsSync(target), false);
});

test('serve and bench engine refuse a model that lost more than it may, with the number', (t) => {
  const args = ['--quantization', 'int4', '--max-quality-loss', 'kl=0.001'];
  args.push('--quality-text', fewStories(temporaryModel(t, {})));
  for (const command of [
    ['serve', STORIES, '--port', '0'],
    ['bench', 'engine', STORIES],
  ]) {
    const refused = millrace(...command, ...args);
    assert.equal(refused.status, 1, refused.stdout);
    assert.match(refused.stderr, /mean KL divergence of 0\.0\d+/);
    assert.doesNotMatch(refused.stdout, /listening|limits of this machine/);
  }
  const idle = millrace('serve', STORIES, '--max-quality-loss', 'kl=0.1', '--port', '0');
  assert.equal(idle.status, 2);
  assert.match(idle.stderr, /--quality-base/);
});

test('A wrong command line is named and ends with 2', () => {
  const usage = (expected: RegExp, ...args: string[]) => {
    const { status, stderr } = millrace(...args);
    assert.equal(status, 2, stderr);
    assert.match(stderr, expected);
  };
  usage(/Usage: millrace quantize/, 'quantize', STORIES);
  const idle = (flags: string[], ...command: string[]) =>
    usage(new RegExp(`${flags[0]} does nothing without`), ...command, ...flags);
  const quantize = ['quantize', STORIES, '/nowhere/x', '--scheme', 'int8'];
  idle(['--calibration', 'text.txt'], ...quantize);
  idle(['--calibration-tokens', '1000'], ...quantize);
  idle(['--eval-text', 'text.txt'], ...quantize);
  idle(['--quality-text', 'text.txt'], 'bench', 'engine', STORIES);
  idle(['--quality-base', STORIES], 'bench', 'engine', STORIES);
  usage(
    /^--text \/nowhere\/text.txt: ENOENT.*'\/nowhere\/text.txt'$/m,
    ...['eval', STORIES, '--against', STORIES, '--text', '/nowhere/text.txt'],
  );
  usage(
    /a file that can be written for --output-json .*\/nowhere/,
    ...['eval', STORIES, '--against', STORIES, '--output-json', '/nowhere/report.json'],
  );
  usage(/int8-g32/, 'quantize', STORIES, '/nowhere/x', '--scheme', 'int8-g32');
  usage(/Usage: millrace eval/, 'eval', STORIES);
  usage(
    /Expected int8 or int4.* for --quantization/,
    'bench',
    'engine',
    STORIES,
    '--quantization',
    '8',
  );
  usage(/Unknown bench command "engin"/, 'bench', 'engin');
  usage(
    /kl=NATS or ppl=PERCENT% for --max-quality-loss/,
    'eval',
    STORIES,
    '--against',
    STORIES,
    '--max-quality-loss',
    '5',
  );
});
