import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, mock, test } from 'node:test';
import { benchServe, EXIT } from '../../src/bench/serve.js';
import { sweep } from '../../src/bench/sweep.js';
import { Target } from '../../src/bench/target.js';
import { startFakeServer } from '../helpers/fake-openai-server.js';

const folder = mkdtempSync(join(tmpdir(), 'millrace-sweep-'));
after(() => rmSync(folder, { recursive: true }));

interface Point {
  name: string;
  offered_rate: number | null;
  over_saturated: boolean;
  steady_request_throughput: number;
  median_ttft_ms: number;
  completed: number;
}

// Side by side: they wait for timers most of the time.
describe('Sweeps and interruptions', { concurrency: true }, () => {
  test('A sweep finds the saturation of a server with four slots and stops where its queue grows', async () => {
    // 4 slots of 40 ms each: 100 requests a second, less what timers are late.
    const server = await startFakeServer({
      script: () => ({ tokens: 3, firstDelay: 20, gap: 10 }),
      slots: 4,
    });
    const path = join(folder, 'sweep.json');
    const log = mock.method(console, 'log', () => {});
    const code = await benchServe([
      ...['--url', server.url, '--num-prompts', '500', '--random-input-len', '4'],
      ...['--random-output-len', '3', '--max-concurrency', '32', '--seed', '1'],
      ...['--sweep', '--sweep-points', '2', '--sweep-seconds', '3', '--output-json', path],
      ...['--output-html', join(folder, 'sweep.html')],
      ...['--output-requests', join(folder, 'sweep.jsonl')],
    ]);
    const text = log.mock.calls.map((call) => call.arguments.join(' ')).join('\n');
    log.mock.restore();
    await server.close();
    assert.ok(code === EXIT.ok || code === EXIT.clientBottleneck);
    const report = JSON.parse(readFileSync(path, 'utf8'));
    const points = report.sweep as Point[];
    const saturation = report.saturation_request_throughput as number;
    const [idle, saturated, low, past] = points;
    assert.equal(idle.name, 'idle');
    // A busy machine slows one slot and four alike.
    const gain = saturation / idle.steady_request_throughput;
    assert.ok(saturation < 101 && gain > 2.5 && gain < 6, `saturation ${saturation}, gain ${gain}`);
    assert.ok(idle.median_ttft_ms < 40);
    assert.equal(saturated.name, 'saturated');
    assert.ok(saturated.median_ttft_ms > 4 * idle.median_ttft_ms, 'saturated requests queue');
    assert.equal(low.over_saturated, false);
    assert.ok(Math.abs(past.offered_rate! / saturation - 1.1) < 1e-6);
    const lines = readFileSync(join(folder, 'sweep.jsonl'), 'utf8').trim().split('\n');
    const names = lines.map((line) => (JSON.parse(line) as { point: string }).point);
    for (const { name, completed } of points) {
      assert.equal(names.filter((one) => one === name).length, completed);
    }
    assert.match(text, /saturation: /);
    assert.match(readFileSync(join(folder, 'sweep.html'), 'utf8'), /Latency over throughput/);
  });

  test('A point far past what the server can do is cut short, and the sweep ends there', async (t) => {
    // From some 150 requests a second to 8 once saturation has been measured, so that the rates
    // tried are too high even where a busy machine measured a third of it.
    let slow = false;
    const server = await startFakeServer({
      script: () => ({ tokens: 2, firstDelay: slow ? 500 : 20, gap: 1 }),
      slots: 4,
    });
    const target = new Target({
      url: server.url,
      endpoint: '/v1/completions',
      model: 'm',
      extraBody: {},
      timeout: 150_000,
    });
    t.after(async () => {
      target.close();
      await server.close();
    });
    const names: string[] = [];
    const points = sweep({
      target,
      requests: [{ prompt: () => 'x', outputTokens: 2 }],
      points: 2,
      seconds: 5,
      burstiness: 1,
      saturatingConcurrency: 16,
      seed: 1,
    });
    for await (const point of points) {
      names.push(point.name);
      if (point.name === 'saturated') slow = true;
      else if (point.name !== 'idle') assert.equal(point.overSaturated, true);
    }
    assert.equal(names.length, 3);
  });

  test('A sweep of a server that refuses everything ends at once, with its report', async () => {
    const script = () => ({ status: 500, tokens: 0, firstDelay: 0, gap: 0 });
    const server = await startFakeServer({ script });
    const path = join(folder, 'refused.json');
    const code = await benchServe([
      ...['--url', server.url, '--random-input-len', '4', '--sweep', '--output-json', path],
    ]);
    await server.close();
    assert.equal(code, EXIT.nothingCompleted);
    const { sweep: points } = JSON.parse(readFileSync(path, 'utf8'));
    assert.equal(points.length, 1);
    assert.equal(points[0].errors_by_kind.server_error, server.seen.length);
    assert.ok(server.seen.length < 30, `${server.seen.length} requests`);
  });

  test('SIGINT ends a run with a report of what was measured', async () => {
    const server = await startFakeServer({ script: () => ({ tokens: 4, firstDelay: 10, gap: 5 }) });
    const path = join(folder, 'partial.json');
    const command = new URL('../../src/cli/bench.js', import.meta.url).href;
    const flags = ['serve', '--url', server.url, '--num-prompts', '100000', '--request-rate', '50'];
    // Who has sent 30 requests has the answers of 26, however slow this process is to see them.
    flags.push('--max-concurrency', '4');
    const argv = JSON.stringify([...flags, '--random-input-len', '4', '--output-json', path]);
    const code = `import('${command}').then(async ({ bench }) => process.exit(await bench(${argv})))`;
    const child = spawn(process.execPath, ['-e', code], { stdio: ['ignore', 'pipe', 'inherit'] });
    let text = '';
    child.stdout.on('data', (piece) => {
      text += piece;
    });
    const exited = new Promise((resolve) => child.on('exit', resolve));
    let ended = false;
    void exited.then(() => {
      ended = true;
    });
    while (server.seen.length < 30 && !ended) await new Promise((next) => setTimeout(next, 20));
    child.kill('SIGINT');
    const status = await exited;
    await server.close();
    assert.equal(status, EXIT.interrupted);
    assert.match(text, /INTERRUPTED/);
    const report = JSON.parse(readFileSync(path, 'utf8'));
    assert.equal(report.partial, true);
    assert.ok(report.completed >= 26 && report.completed < 100_000);
    assert.ok((report.errors_by_kind.aborted ?? 0) <= 4);
  });
});
