import assert from 'node:assert/strict';
import { test } from 'node:test';
import { philox4x32, uniform, type Words } from '../../../src/backend/reference/philox.js';

// From kat_vectors of Random123, the authors' own implementation: counter, key, result.
const KNOWN_ANSWERS: [Words, [number, number], Words][] = [
  [
    [0, 0, 0, 0],
    [0, 0],
    [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
  ],
  [
    [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
    [0xffffffff, 0xffffffff],
    [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
  ],
  [
    [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
    [0xa4093822, 0x299f31d0],
    [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
  ],
];

test("Philox4x32-10 gives the authors' known answers", () => {
  for (const [counter, key, words] of KNOWN_ANSWERS) {
    assert.deepEqual(philox4x32(counter, key), words);
  }
});

test('Uniform numbers cover [0, 1) and never reach 1', () => {
  assert.equal(uniform([0, 0, 0, 0]), 0);
  assert.equal(uniform([0xffffffff, 0xffffffff, 0, 0]), 1 - 2 ** -53);
  assert.equal(uniform([0x80000000, 0, 0, 0]), 0.5);
});
