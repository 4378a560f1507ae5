import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { test } from 'node:test';
import { promisify } from 'node:util';
import { root } from './helpers/root.js';

async function example(name: string, ...args: string[]): Promise<string> {
  const file = join(root, 'dist/examples', `${name}.js`);
  const run = promisify(execFile);
  return (await run(process.execPath, [file, ...args], { cwd: root, timeout: 180_000 })).stdout;
}

test('The library example writes sixteen stories and a chat', async () => {
  const out = await example('library');
  assert.match(out, /^16 of 16 stories, \d+ tok\/s$/m);
  assert.match(out, /^Once upon a time.+\[(stop|length)\]$/m);
});

test('The scoring example finds words in disorder far less likely', async () => {
  const out = await example('score');
  const [ordered, shuffled] = [...out.matchAll(/^perplexity +([\d.]+)/gm)].map(([, value]) =>
    Number(value),
  );
  assert.ok(ordered < 3 && shuffled > 100 * ordered, out);
});

test('The example of the OpenAI client runs against millrace serve as the README starts it', async () => {
  const args = ['serve', 'models/stories-7m', '--served-model-name', 'stories-7m', '--port', '0'];
  const server = spawn(process.execPath, [join(root, 'bin/millrace.js'), ...args], {
    cwd: root,
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  try {
    let said = '';
    for await (const chunk of server.stdout) {
      said += chunk;
      if (said.includes('listening on')) break;
    }
    const url = said.match(/listening on (\S+)/)?.[1];
    const out = await example('openai-client', `${url}/v1`);
    assert.match(out, /^\[16 \+ \d+ tokens\]$/m);
    assert.match(out, /^2: ./m);
    assert.match(out, /^400 temperature: /m);
  } finally {
    server.kill('SIGKILL');
    await once(server, 'close');
  }
});
