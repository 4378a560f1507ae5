import assert from 'node:assert/strict';
import { test } from 'node:test';
import { loadModel } from '../../src/model/load-model.js';
import { segments } from '../../src/quant/segments.js';
import { readGolden } from '../helpers/goldens.js';

for (const name of ['llama-tiny', 'qwen3-moe-mixed']) {
  test(`Calibration goes through every matrix of ${name} but the head, half a layer at a time`, () => {
    const { program } = loadModel(readGolden(name).path);
    const found = segments(program);
    const products = (ops: typeof program.ops) =>
      ops
        .filter(({ kind }) => kind === 'linear' || kind === 'moe')
        .map(({ kind, ...op }) => ({
          kind,
          weight: 'weight' in op ? op.weight : 'gateUp' in op ? op.gateUp : undefined,
        }));
    // Those on rows that a step may want are no exception.
    assert.deepEqual(products(found.flatMap(({ ops }) => ops)), products(program.ops).slice(0, -1));
    // Two halves of each layer, and the norm before the head.
    assert.equal(found.length, 2 * program.kvLayers.length + 1);
    found.slice(1).forEach(({ input }, n) => {
      assert.deepEqual(input, found[n].output);
    });
  });
}
