import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { type IncomingMessage, request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { test } from 'node:test';
import { root } from '../helpers/root.js';
import { until } from '../helpers/test-server.js';

const MAIN = join(root, 'dist/src/cli/main.js');
const MODEL = join(root, 'models/stories-7m');

/** Starts the command; `out` and `err` grow as it talks. */
function start(...args: string[]) {
  const child = spawn(process.execPath, [MAIN, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  const run = {
    child,
    out: '',
    err: '',
    exited: once(child, 'close').then(([code]) => code as number | null),
  };
  child.stdout.setEncoding('utf8').on('data', (text: string) => (run.out += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (run.err += text));
  return run;
}

async function run(...args: string[]): Promise<{ code: number | null; out: string; err: string }> {
  const started = start(...args);
  return { code: await started.exited, out: started.out, err: started.err };
}

/** Begins to post a completion: once this resolves the server has the header and waits for the body. */
async function beginCompletion(url: string, headers: Record<string, string> = {}) {
  const sent = request(`${url}/v1/completions`, {
    method: 'POST',
    headers: { 'content-type': 'application/json', expect: '100-continue', ...headers },
  });
  sent.flushHeaders();
  await once(sent, 'continue');
  return {
    async finish(body: unknown): Promise<{ status?: number; body: string }> {
      sent.end(JSON.stringify(body));
      const [response] = (await once(sent, 'response')) as [IncomingMessage];
      return { status: response.statusCode, body: await text(response) };
    },
  };
}

/** A server of stories-7m on a free port, small enough to start at once. */
async function startServe(...args: string[]) {
  const server = start(
    'serve',
    MODEL,
    '--port',
    '0',
    '--kv-cache-memory',
    '16MiB',
    '--threads',
    '1',
    ...args,
  );
  const ended = server.exited.then(() => true);
  let url: string | undefined;
  while (!url) {
    if (
      await Promise.race([ended, new Promise<false>((resolve) => setTimeout(resolve, 20, false))])
    ) {
      throw new Error(`The server ended: ${server.err}`);
    }
    url = /listening on (http:\S+)/.exec(server.out)?.[1];
  }
  return { ...server, server, url };
}

test('--version and --help answer with exit code 0', async () => {
  const [version, help, serveHelp] = await Promise.all([
    run('--version'),
    run('--help'),
    run('serve', '--help'),
  ]);
  assert.match(version.out, /^\d+\.\d+\.\d+\n$/);
  assert.match(help.out, /Commands:\n {2}serve .*\n {2}demo /);
  assert.match(serveHelp.out, /--max-num-seqs N/);
  assert.deepEqual([version.code, help.code, serveHelp.code], [0, 0, 0]);
});

test('a wrong command line ends with exit code 2 and a message without a stack', async () => {
  // All at once: none may want a port that another has.
  const SERVE = ['serve', MODEL, '--port', '0'];
  const cases: [string[], RegExp][] = [
    [[], /Usage: millrace COMMAND/],
    [['serv'], /did you mean serve\?/],
    [['serve'], /Usage: millrace serve PATH/],
    [['serve', 'a', 'b'], /Usage: millrace serve PATH/],
    [['serve', MODEL, '--prot', '1'], /did you mean --port\?/],
    [['serve', MODEL, '--port', '99999'], /between 0 and 65535 for --port/],
    [[...SERVE, '--block-size', '17'], /multiple of 16 .*for --block-size/],
    [[...SERVE, '--max-model-len', '9999'], /--max-model-len/],
    [[...SERVE, '--chat-template', 'no-such-file'], /--chat-template: ENOENT/],
    [[...SERVE, '--gpu-memory-utilization', '0.5'], /--gpu-memory-utilization is .* cuda/],
    [[...SERVE, '--device', 'cuda', '--threads', '2'], /--threads is an option of device cpu/],
  ];
  const results = await Promise.all(cases.map(([args]) => run(...args)));
  for (const [i, { code, err, out }] of results.entries()) {
    const [args, pattern] = cases[i];
    assert.equal(code, 2, `${args.join(' ')}: ${err}`);
    assert.match(err, pattern);
    assert.doesNotMatch(err + out, /\n {4}at /);
  }
});

test('a model that cannot be loaded and a port that is taken end with exit code 1', async () => {
  const missing = await run('serve', join(root, 'no-such-model'));
  assert.equal(missing.code, 1);
  assert.match(missing.err, /^Error: .*no-such-model: expected a directory with config\.json/);
  const { url, server } = await startServe();
  const taken = await run(
    'serve',
    MODEL,
    '--port',
    new URL(url).port,
    '--kv-cache-memory',
    '16MiB',
  );
  assert.equal(taken.code, 1);
  assert.match(taken.err, /^Error: Port \d+ of 127\.0\.0\.1 is in use; choose another with --port/);
  assert.doesNotMatch(taken.out, /weights/, 'it shows before anything is loaded');
  server.child.kill('SIGTERM');
  assert.equal(await server.exited, 0);
});

test('serve prints the plan, answers under the name given, and drains on SIGTERM', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'millrace-cli-'));
  const template = join(folder, 'template.jinja');
  await writeFile(template, '{% for m in messages %}{{ m.content }}{% endfor %}');
  const { url, server } = await startServe(
    '--served-model-name',
    'one',
    '--served-model-name',
    'two',
    '--api-key',
    'secret',
    '--log-level',
    'info',
    '--chat-template',
    template,
  );
  try {
    assert.match(server.out, /KV cache 16/);
    const post = (path: string, body: unknown) =>
      fetch(url + path, {
        method: 'POST',
        headers: { 'content-type': 'application/json', authorization: 'Bearer secret' },
        body: JSON.stringify(body),
      });
    assert.equal((await fetch(`${url}/v1/models`)).status, 401);
    const tokens = await post('/tokenize', {
      messages: [{ role: 'user', content: 'Once upon a time' }],
    });
    assert.deepEqual(((await tokens.json()) as { tokens: number[] }).tokens, [397, 400, 264, 371]);
    const body = {
      model: 'two',
      prompt: 'Once upon a time',
      temperature: 0,
      max_tokens: 300,
      ignore_eos: true,
    };
    const running = await beginCompletion(url, { authorization: 'Bearer secret' });
    server.child.kill('SIGTERM');
    await until(() => server.err.includes('SIGTERM'), 'the signal');
    const answer = JSON.parse((await running.finish(body)).body) as { choices: { text: string }[] };
    assert.match(answer.choices[0].text, /^, there was a little girl/);
    assert.equal(await server.exited, 0);
    assert.match(server.err, /^SIGTERM: finishing 1 request, at most 30 s$/m);
    assert.match(server.err, /"event":"request".*"completion_tokens":300/);
  } finally {
    server.child.kill('SIGKILL');
    await rm(folder, { recursive: true });
  }
});

test('requests that outlast --shutdown-timeout are dropped, counted, and make the exit code 1', async () => {
  const { url, server } = await startServe('--shutdown-timeout', '0.1');
  try {
    const body = { prompt: ['a', 'b'], n: 16, max_tokens: 2000, ignore_eos: true };
    const running = (await beginCompletion(url)).finish(body);
    const metrics = async () => (await fetch(`${url}/metrics`)).text();
    while (!/^vllm:num_requests_running\S* [1-9]/m.test(await metrics()));
    server.child.kill('SIGINT');
    assert.equal((await running).status, 503);
    assert.equal(await server.exited, 1);
    assert.match(server.err, /Dropped 1 request that did not finish in time/);
  } finally {
    server.child.kill('SIGKILL');
  }
});

test('a signal while the model loads ends the process at once', async () => {
  const shape = join(root, 'bench/shapes/smol-135m');
  const args = ['--load-format', 'dummy', '--skip-tokenizer-init', '--port', '0'];
  const loading = start('serve', shape, ...args, '--kv-cache-memory', '16MiB');
  await until(() => loading.out.includes('Loading'), 'loading');
  loading.child.kill('SIGINT');
  await loading.exited;
  assert.equal(loading.child.signalCode, 'SIGINT');
  assert.doesNotMatch(loading.out, /listening/);
});
