/**
 * An engine thread on a fake runner; a prompt that begins with token 63 kills the thread. With
 * `overlap` in its data the runner overlaps, and the device is lost at token 62.
 */
import { parentPort, workerData } from 'node:worker_threads';
import type { EngineInfo } from '../../src/engine/api.js';
import { EngineCore } from '../../src/engine/engine-core.js';
import { serveEngine } from '../../src/engine/engine-loop.js';
import { FakeRunner } from './fake-runner.js';
import { OverlappingRunner } from './overlapping-runner.js';

export const DEADLY_TOKEN = 63;

const info: EngineInfo = {
  ...{ model: 'fake', backend: 'fake', dtype: 'none', plan: [], kvCacheBytes: 0 },
  ...{ vocabSize: 64, blockSize: 16, maxModelLen: 128, numBlocks: 32 },
  ...{ maxNumSeqs: 4, maxNumBatchedTokens: 64, enablePrefixCaching: true },
  ...workerData,
};
const overlap = workerData?.overlap === true;
const fake = new FakeRunner({
  ...info,
  maxTokens: info.maxNumBatchedTokens,
  maxSeqs: info.maxNumSeqs,
  throwToken: overlap ? 62 : undefined,
});
const runner = overlap ? new OverlappingRunner(fake) : fake;
const core = new EngineCore(runner, { ...info, schedulingPolicy: 'fcfs', eosTokenIds: [] });
const step = core.step.bind(core);
let deadly = false;
const add = core.add.bind(core);
core.add = (request) => {
  deadly ||= request.prompt[0] === DEADLY_TOKEN;
  add(request);
};
core.step = () => {
  if (deadly) throw new Error('the thread dies');
  return step();
};
serveEngine(parentPort!, core, () => runner.close());
parentPort!.postMessage({ type: 'ready', info });
