import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { startContender, TooSlowError } from '../../../bench/rivals/contender.js';
import { samplingParams } from '../../../src/engine/sampling-params.js';
import { startEngine } from '../../../src/engine/start-engine.js';
import { root } from '../../helpers/root.js';

const SETTINGS = { threads: 1, batchSize: 512, flashAttention: true };
const stories = join(root, 'models/stories-7m');

test("Millrace's process gives the tokens of the engine, their times and margins", async (t) => {
  const contender = await startContender('./contender-millrace.js', [stories, 'auto', '1']);
  t.after(() => contender.close());
  assert.match(contender.description, /Millrace: cpu/);
  const prompts = [
    [1, 397, 400, 264, 371],
    [1, 489, 360, 500],
  ];
  const found = await contender.run({ prompts, outputTokens: 6, withMargins: true }, SETTINGS);
  const engine = await startEngine({ model: stories, threads: 1, maxModelLen: 512 });
  t.after(() => engine.close());
  const params = samplingParams({ temperature: 0, maxTokens: 6, ignoreEos: true }, engine.info);
  for (const [stream, prompt] of prompts.entries()) {
    const expected: number[] = [];
    engine.generate({ id: `${stream}`, prompt, params }, ({ tokens }) => expected.push(...tokens));
    await engine.idle();
    assert.deepEqual(found.tokens[stream], expected);
    assert.equal(found.times[stream].length, 6);
    assert.ok(found.times[stream].every((at, i, all) => at >= (all[i - 1] ?? found.start)));
    assert.ok(found.margins![stream].every((margin) => margin >= 0));
  }
});

/** Speaks as much of llama.cpp's server as is used; the tokens count up from the prompt's length. */
const FAKE_SERVER = `#!${process.execPath}
const { createServer } = require('node:http');
const flag = (name) => process.argv[process.argv.indexOf(name) + 1];
if (process.argv.includes('--version')) { console.error('load_backend: x\\nversion: fake'); process.exit(0); }
if (process.argv.includes('--help')) { console.log('--cache-ram N'); process.exit(0); }
if (flag('--model') === 'broken') { console.error('no such model'); process.exit(1); }
createServer((request, response) => {
  if (request.url === '/health') return response.end('{"status":"ok"}');
  let text = '';
  request.on('data', (piece) => { text += piece; });
  request.on('end', () => {
    const { prompt, n_predict, ignore_eos, cache_prompt } = JSON.parse(text);
    if (!ignore_eos || cache_prompt || flag('--cache-ram') !== '0') { response.statusCode = 400; return response.end('wrong'); }
    const count = prompt[0] === 99 ? 1 : n_predict;
    const first = 1000 * flag('--parallel') + prompt.length;
    // Never answered.
    if (prompt[0] === 55) return;
    const say = (event) => response.write('data: ' + JSON.stringify(event) + '\\n\\n');
    for (let i = 0; i < count; i++) {
      // Every second token of a prompt that begins with 7 ends within a character.
      if (prompt[0] === 7 && i % 2 === 1) continue;
      say({ tokens: [first + i], tokens_predicted: i + 1, stop: false });
    }
    say({ tokens: [], tokens_predicted: count, stop: true });
    response.end();
  });
}).listen(Number(flag('--port')), '127.0.0.1');
`;

test("llama.cpp's server is started with a slot per stream and read token by token", async (t) => {
  const folder = mkdtempSync(join(tmpdir(), 'fake-llama-'));
  t.after(() => rmSync(folder, { recursive: true }));
  const binary = join(folder, 'llama-server');
  writeFileSync(binary, FAKE_SERVER);
  chmodSync(binary, 0o755);
  const contender = await startContender('./contender-llama-server.js', [binary, 'model.gguf']);
  t.after(() => contender.close());
  assert.match(contender.description, /version: fake/);
  const found = await contender.run({ prompts: [[1, 2], [3]], outputTokens: 3 }, SETTINGS);
  assert.deepEqual(found.tokens, [
    [2002, 2003, 2004],
    [2001, 2002, 2003],
  ]);
  assert.ok(found.times.flat().every((at) => at >= found.start));
  const cut = await contender.run({ prompts: [[7]], outputTokens: 4 }, SETTINGS);
  assert.deepEqual(cut.tokens, [[1001, -1, 1003, -1]]);
  assert.equal(cut.times[0].length, 4);
  assert.equal(cut.times[0][1], cut.times[0][2], 'what was not sent came with the next');
  const stuck = contender.run({ prompts: [[55]], outputTokens: 1 }, SETTINGS, 1000);
  await assert.rejects(stuck, TooSlowError);
  const again = await contender.run({ prompts: [[3]], outputTokens: 2 }, SETTINGS, 60_000);
  assert.deepEqual(again.tokens, [[1001, 1002]], 'it was started anew');
  const short = contender.run({ prompts: [[99]], outputTokens: 3 }, SETTINGS);
  await assert.rejects(short, /1 of 3 tokens/);
});

test('A contender that cannot start says why', async () => {
  const missing = startContender('./contender-llama-server.js', ['/no/such/llama-server', 'm']);
  await assert.rejects(missing, /ENOENT/);
  const model = startContender('./contender-millrace.js', ['/no/such/model', 'auto', '1']);
  await assert.rejects(model, /expected a directory/);
});
