import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { test } from 'node:test';
import { root } from '../helpers/root.js';

async function runDemo(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const child = spawn(process.execPath, [join(root, 'bin/millrace.js'), 'demo', ...args]);
  let out = '';
  let err = '';
  child.stdout.setEncoding('utf8').on('data', (chunk: string) => {
    out += chunk;
  });
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    err += chunk;
  });
  const [code] = (await once(child, 'close')) as [number];
  return { code, out, err };
}

test('the demo answers the same prompts one at a time and all at once and prints what it gained', async () => {
  const { code, out, err } = await runDemo('--exit', '--port', '0');
  assert.equal(code, 0, err);
  const number = String.raw`\s+([\d,.]+)`;
  const [, single, batched] = out.match(new RegExp(`output tok/s${number}${number}`)) ?? [];
  assert.ok(Number(single.replaceAll(',', '')) > 0, out);
  assert.ok(Number(batched.replaceAll(',', '')) > 0, out);
  for (const row of ['requests/s', 'TTFT p50', 'TTFT p99', 'TPOT p50', 'TPOT p99']) {
    assert.match(out, new RegExp(`^${row}${number}(?: ms)?${number}`, 'm'));
  }
  const [, hits] = out.match(/^prefix-cache hits\s+([\d.]+) %/m) ?? [];
  assert.ok(Number(hits) > 30, 'the shared system prompt comes from the cache');
  assert.match(out, /The same tokens in both rounds: 64 of 64 stories/);
  assert.match(err, /all at once: 64\/64/);
  assert.doesNotMatch(err, /Warning|SIGTERM/);
});

test('the demo refuses an unknown flag with a hint instead of a stack', async () => {
  const { code, err } = await runDemo('--exot');
  assert.equal(code, 2);
  assert.match(err, /--exot/);
  assert.doesNotMatch(err, /\n\s+at /);
});

test('Ctrl-C in the middle of the demo ends it and its server at once, with nothing but progress said', async () => {
  // A process group of its own, as a terminal gives it one.
  const child = spawn(
    process.execPath,
    [join(root, 'bin/millrace.js'), 'demo', '--port', '0', '--threads', '1'],
    { detached: true, stdio: ['ignore', 'ignore', 'pipe'] },
  );
  let err = '';
  let interrupted = false;
  child.stderr.setEncoding('utf8').on('data', (chunk: string) => {
    err += chunk;
    if (interrupted || !err.includes('one at a time: 16/64')) return;
    interrupted = true;
    process.kill(-(child.pid as number), 'SIGINT');
  });
  const [code] = await once(child, 'close');
  assert.equal(code, 130, err);
  assert.doesNotMatch(err, /Error|failed/);
});
