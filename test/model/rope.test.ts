import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ConfigFields, readJsonObject } from '../../src/model/config-fields.js';
import { parseRope, ropeTable } from '../../src/model/rope.js';
import { GOLDENS } from '../helpers/goldens.js';

interface Case {
  parameters: Record<string, unknown>;
  max_position_embeddings: number;
  head_dim: number;
  inv_freq: number[];
  attention_factor: number;
}

// Made by test/goldens/make-rope.py with transformers' own functions.
const cases = readJsonObject(`${GOLDENS}/rope.json`) as Record<string, Case>;

for (const [name, golden] of Object.entries(cases)) {
  test(`The frequencies of ${name} are those of transformers`, () => {
    const config = new ConfigFields('config.json', { rope_parameters: golden.parameters });
    const table = ropeTable(parseRope(config, golden.max_position_embeddings), golden.head_dim);
    assert.equal(table.invFreq.length, golden.head_dim / 2);
    table.invFreq.forEach((freq, i) => {
      // transformers computes them in float32.
      const error = Math.abs(freq - golden.inv_freq[i]) / golden.inv_freq[i];
      assert.ok(error < 1e-6, `pair ${i}: ${freq} instead of ${golden.inv_freq[i]}`);
    });
    assert.ok(Math.abs(table.scale - golden.attention_factor) < 1e-9, `scale ${table.scale}`);
  });
}
