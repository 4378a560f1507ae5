import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Worker } from 'node:worker_threads';
import type { Delta, Engine, EngineInfo, EngineRequest, StepReport } from '../../src/engine/api.js';
import { BATCH_DELAY_MS, type Batching } from '../../src/engine/policy.js';
import { type SamplingParams, samplingParams } from '../../src/engine/sampling-params.js';
import { connectEngine, startEngine } from '../../src/engine/start-engine.js';
import type { RequestLimits } from '../../src/engine/threaded-engine.js';
import { InvalidParameterError, ModelError, QueueFullError } from '../../src/errors.js';
import { root } from '../helpers/root.js';

const WORKER = new URL('../helpers/fake-engine-worker.js', import.meta.url);
const PROMPT = Array.from({ length: 20 }, (_, i) => i);

/** Requests that nobody sees the end of, however much faster the engine's thread is than this one. */
const ENDLESS = { ignoreEos: true, maxTokens: undefined };
/** The token at which an overlapping fake device is lost. */
const NOT_62 = new Map([[62, -100]]);
const ENDLESS_CONTEXT: Partial<EngineInfo> = { maxModelLen: 2 ** 20, numBlocks: 2 ** 19 };

async function withEngine(
  use: (engine: Engine) => Promise<void>,
  limits: RequestLimits = {},
  info: Partial<EngineInfo> & { overlap?: boolean; batching?: Batching } = {},
): Promise<void> {
  const engine = await connectEngine(new Worker(WORKER, { workerData: info }), limits);
  try {
    await use(engine);
  } finally {
    await engine.close();
  }
}

function request(
  engine: Engine,
  id: string,
  params: Partial<SamplingParams> = {},
  prompt: number[] = PROMPT,
): EngineRequest {
  const complete = samplingParams({ temperature: 0, maxTokens: 8, ...params }, engine.info);
  return { id, prompt, params: complete };
}

const never = (): void => assert.fail('a delta of a request that was refused');

/** Resolves with the first report of a step for which `holds`; rejects if the engine dies before. */
function stepWhere(engine: Engine, holds: (report: StepReport) => boolean): Promise<unknown> {
  const reported = new Promise<StepReport>((resolve) => {
    const stop = engine.onStep((report) => {
      if (!holds(report)) return;
      stop();
      resolve(report);
    });
  });
  return Promise.race([reported, engine.failed]);
}

/** Runs a request to its last finish. */
function complete(engine: Engine, one: EngineRequest): Promise<Delta[]> {
  return new Promise((resolve) => {
    const deltas: Delta[] = [];
    let open = one.params.n;
    engine.generate(one, (delta) => {
      deltas.push(delta);
      if (delta.finish && --open === 0) resolve(deltas);
    });
  });
}

test('Tokens arrive one by one as they are made, and the finish has times in order', async () => {
  await withEngine(async (engine) => {
    const reports: StepReport[] = [];
    const stop = engine.onStep((report) => reports.push(report));
    const deltas = await complete(engine, request(engine, 'a'));
    assert.deepEqual(
      deltas.map(({ tokens }) => tokens.length),
      Array.from({ length: 8 }, () => 1),
    );
    const { timing, reason, promptTokens } = deltas.at(-1)!.finish!;
    assert.equal(reason, 'length');
    assert.equal(promptTokens, 20);
    assert.ok(timing.arrival <= timing.scheduled && timing.scheduled <= timing.firstToken);
    assert.ok(timing.firstToken <= timing.finished);
    assert.deepEqual(
      deltas.map(({ firstToken }) => firstToken),
      [timing.firstToken, ...Array.from({ length: 7 }, () => undefined)],
    );
    await engine.idle();
    assert.equal(reports.length, 8);
    assert.equal(reports[0].tokens, 20);
    assert.ok(reports.every(({ stepMs, hostMs }) => hostMs >= 0 && hostMs <= stepMs));
    assert.equal(engine.stats().generationTokens, 8);
    stop();
  });
});

test('A wrong request is refused at once and leaves nothing behind', async () => {
  await withEngine(async (engine) => {
    const refuse = (change: Partial<EngineRequest>, error: object) =>
      assert.throws(() => engine.generate({ ...request(engine, 'x'), ...change }, never), error);
    refuse({ prompt: [] }, { code: 'invalid_parameter', param: 'prompt' });
    refuse({ prompt: [64] }, { code: 'invalid_parameter', param: 'prompt' });
    refuse({ prompt: [1.5] }, { code: 'invalid_parameter', param: 'prompt' });
    refuse({ prompt: new Array(128).fill(1) }, { code: 'context_length_exceeded' });
    refuse({ priority: Number.NaN }, { param: 'priority' });
    const { params } = request(engine, 'x');
    refuse({ params: { ...params, topP: 7 } }, { param: 'top_p' });
    engine.generate(request(engine, 'twice'), () => {});
    assert.throws(() => engine.generate(request(engine, 'twice'), never), { param: 'id' });
    await engine.idle();
    assert.equal(
      (await complete(engine, request(engine, 'twice'))).length,
      8,
      'ids can come again',
    );
  });
});

test('A priority is refused where requests are served in the order they come', async () => {
  await withEngine(async (engine) => {
    assert.throws(() => engine.generate({ ...request(engine, 'x'), priority: 1 }, never), {
      code: 'invalid_parameter',
      param: 'priority',
    });
    await engine.idle();
  });
  await withEngine(
    async (engine) => {
      await new Promise<void>((resolve) => {
        engine.generate({ ...request(engine, 'x'), priority: 1 }, ({ finish }) => {
          if (finish) resolve();
        });
      });
    },
    { schedulingPolicy: 'priority' },
  );
});

test('The queue takes what an idle engine has seats for and as many more as may wait', async () => {
  await withEngine(
    async (engine) => {
      const finished: Promise<Delta[]>[] = [];
      const all = engine.info.maxNumSeqs + 3;
      for (let i = 0; i < all; i++) finished.push(complete(engine, request(engine, `${i}`)));
      assert.throws(
        () => engine.generate(request(engine, 'more'), never),
        (error) => error instanceof QueueFullError && error.retryAfter >= 1,
      );
      await Promise.all(finished);
      for (let i = 0; i < all; i++) finished.push(complete(engine, request(engine, `${i}`)));
      await Promise.all(finished);
    },
    { maxNumQueuedReqs: 3 },
  );
  await withEngine(
    async (engine) => {
      const allRun = stepWhere(engine, ({ stats }) => stats.running === 4);
      for (let i = 0; i < 4; i++) engine.generate(request(engine, `${i}`, ENDLESS), () => {});
      await allRun;
      for (let i = 4; i < 7; i++) engine.generate(request(engine, `${i}`, ENDLESS), () => {});
      assert.throws(() => engine.generate(request(engine, '7'), never), QueueFullError);
      for (let i = 0; i < 7; i++) engine.abort(`${i}`);
      await engine.idle();
    },
    { maxNumQueuedReqs: 3 },
    ENDLESS_CONTEXT,
  );
  await withEngine(
    async (engine) => {
      engine.generate(request(engine, 'a'), () => {});
      engine.generate(request(engine, 'b'), () => {});
      assert.throws(() => engine.generate(request(engine, 'c'), never), QueueFullError);
      engine.generate(request(engine, 'd', {}, PROMPT.slice(0, 5)), () => {});
      engine.abort('d');
      await engine.idle();
      const long = Array.from({ length: 60 }, () => 1);
      assert.equal((await complete(engine, request(engine, 'e', {}, long))).length, 8);
    },
    { maxNumQueuedTokens: 45 },
  );
});

test('An abort ends a request, waiting or running, and its blocks are free', async () => {
  await withEngine(
    async (engine) => {
      const all = Array.from({ length: 8 }, (_, i) =>
        complete(engine, request(engine, `${i}`, ENDLESS)),
      );
      for (let i = 0; i < 8; i++) engine.abort(`${i}`);
      engine.abort('unknown');
      for (const deltas of await Promise.all(all)) {
        assert.equal(deltas.at(-1)?.finish?.reason, 'abort');
      }
      await engine.idle();
      assert.equal(engine.stats().freeBlocks, engine.info.numBlocks);
    },
    {},
    ENDLESS_CONTEXT,
  );
});

test('Closing ends what is in flight with abort and refuses what comes later', async () => {
  await withEngine(
    async (engine) => {
      const deltas = complete(engine, request(engine, 'a', ENDLESS));
      await engine.close();
      assert.equal((await deltas).at(-1)?.finish?.reason, 'abort');
      assert.throws(() => engine.generate(request(engine, 'b'), never), {
        code: 'engine_closed',
      });
      engine.abort('a');
      await engine.idle();
      await engine.close();
    },
    {},
    ENDLESS_CONTEXT,
  );
});

test('When the thread dies every request ends with an error and `failed` rejects', async () => {
  const engine = await connectEngine(new Worker(WORKER, { workerData: ENDLESS_CONTEXT }));
  const innocent = complete(engine, request(engine, 'a', { ...ENDLESS, n: 2, temperature: 1 }));
  const guilty = complete(engine, request(engine, 'b', {}, [63, 1]));
  await assert.rejects(engine.failed, /the thread dies/);
  const ends = (await innocent).filter(({ finish }) => finish);
  assert.deepEqual(
    ends.map(({ finish }) => [finish?.reason, finish?.error?.code]),
    [
      ['error', 'engine_failed'],
      ['error', 'engine_failed'],
    ],
  );
  assert.equal((await guilty).at(-1)?.finish?.reason, 'error');
  assert.throws(() => engine.generate(request(engine, 'c'), never), {
    code: 'engine_closed',
  });
  await engine.idle();
  await engine.close();
});

test('When the device is lost with steps in flight every request ends with an error and `failed` rejects', async () => {
  const workerData = { ...ENDLESS_CONTEXT, overlap: true };
  const engine = await connectEngine(new Worker(WORKER, { workerData }));
  const innocent = complete(engine, request(engine, 'a', { ...ENDLESS, logitBias: NOT_62 }));
  await stepWhere(engine, ({ stats }) => stats.generationTokens > 3);
  const guilty = complete(engine, request(engine, 'b', {}, [62, 1]));
  await assert.rejects(engine.failed, /token 62 cannot be computed/);
  for (const deltas of [await innocent, await guilty]) {
    assert.equal(deltas.at(-1)?.finish?.error?.code, 'engine_failed');
    assert.equal(deltas.filter(({ finish }) => finish).length, 1);
  }
  await engine.close();
});

test('Closing collects what is in flight on a device that overlaps', async () => {
  await withEngine(
    async (engine) => {
      const deltas = complete(engine, request(engine, 'a', { ...ENDLESS, logitBias: NOT_62 }));
      await stepWhere(engine, ({ stats }) => stats.generationTokens > 3);
      await engine.close();
      assert.equal((await deltas).at(-1)?.finish?.reason, 'abort');
      assert.equal(engine.stats().freeBlocks, engine.info.numBlocks);
    },
    {},
    { ...ENDLESS_CONTEXT, overlap: true },
  );
});

test('What is wrong with options or checkpoint rejects the start with its own error', async () => {
  const model = `${root}test/goldens/llama-tiny`;
  await assert.rejects(startEngine({ model: `${root}docs`, device: 'reference' }), ModelError);
  await assert.rejects(
    startEngine({ model, blockSize: 20 }),
    (error) => error instanceof InvalidParameterError && error.param === 'blockSize',
  );
  const misspelt = { model, maxNumSeq: 10 };
  await assert.rejects(startEngine(misspelt), {
    param: 'maxNumSeq',
    message: 'Unknown option maxNumSeq; did you mean maxNumSeqs?',
  });
  await assert.rejects(startEngine({ model, maxNumSeqs: 10, maxNumBatchedTokens: 5 }), {
    param: 'maxNumBatchedTokens',
  });
  await assert.rejects(startEngine({ model, device: 'reference', kvCacheMemory: 100 }), {
    code: 'memory_plan',
  });
});

test('A static batch starts when it is full, or incomplete after a while, and an engine that waits for one sleeps', async () => {
  for (const overlap of [false, true]) {
    const settings = { batching: 'static' as const, overlap };
    await withEngine(
      async (engine) => {
        const params = { ignoreEos: true, maxTokens: 4, logitBias: NOT_62 };
        const times = async (count: number, from: number) => {
          const ids = Array.from({ length: count }, (_, i) => `${from + i}`);
          const all = ids.map((id) => complete(engine, request(engine, id, params)));
          const finishes = (await Promise.all(all)).map((deltas) => deltas.at(-1)!.finish!.timing);
          return finishes.map(({ arrival, scheduled }) => scheduled - arrival);
        };
        let reports = 0;
        engine.onStep(() => reports++);
        // Four seats: six requests are a full batch and two that wait for more.
        const waits = await times(6, 0);
        for (const wait of waits.slice(4)) assert.ok(wait >= BATCH_DELAY_MS - 2, `${wait} ms`);
        assert.ok(reports <= 2 * (4 + 1), `${reports} steps for two batches of 4 tokens`);
        const [alone] = await times(1, 6);
        assert.ok(alone >= BATCH_DELAY_MS - 2, `alone it waited ${alone} ms`);
      },
      {},
      settings,
    );
  }
});

test('While a static batch is gathered a request can be aborted, and the engine closed', async () => {
  await withEngine(
    async (engine) => {
      const finish = (id: string) =>
        complete(engine, request(engine, id)).then((deltas) => deltas.at(-1)!.finish!);
      const ends = [finish('a'), finish('b')];
      engine.abort('a');
      assert.equal((await ends[0]).reason, 'abort');
      assert.equal(engine.stats().steps, 0, 'nothing was computed');
      await engine.close();
      const { reason, timing } = await ends[1];
      assert.equal(reason, 'abort');
      assert.equal(timing.scheduled, 0);
    },
    {},
    { batching: 'static' },
  );
});
