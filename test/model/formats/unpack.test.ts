import assert from 'node:assert/strict';
import { test } from 'node:test';
import {
  AWQ_PLACE,
  orderColumns,
  unpackInputs,
  unpackOutputs,
  unpackRows,
} from '../../../src/model/formats/unpack.js';
import { randomSource } from '../../helpers/random.js';

const random = randomSource(5);
const randomWords = (count: number) =>
  Int32Array.from({ length: count }, () => Math.floor(random() * 2 ** 32) | 0);

/** Code `index` of a word: 0 .. 15, or 8 bits less 128. */
function codeOf(word: number, index: number, bits: 4 | 8): number {
  return ((word >>> (bits * index)) & (2 ** bits - 1)) - (bits === 8 ? 128 : 0);
}

for (const bits of [4, 8] as const) {
  const perWord = 32 / bits;

  test(`Words of ${bits}-bit codes along a row become bytes, whatever the row's length`, () => {
    for (const [rows, width] of [
      [1, 1],
      [3, 13],
      [5, 32],
      [2, perWord + 1],
    ]) {
      const across = Math.ceil(width / perWord);
      const words = randomWords(rows * across);
      const codes = unpackRows(words, rows, width, bits);
      assert.equal(codes.length, rows * width);
      codes.forEach((code, i) => {
        const [row, k] = [Math.floor(i / width), i % width];
        const word = words[row * across + Math.floor(k / perWord)];
        assert.equal(code, codeOf(word, k % perWord, bits), `[${rows}, ${width}] ${i}`);
      });
    }
  });

  test(`Words of ${bits}-bit codes of consecutive inputs become rows`, () => {
    for (const [rows, width] of [
      [1, perWord],
      [16, 2 * perWord],
      [37, 5 * perWord],
    ]) {
      const words = randomWords((rows * width) / perWord);
      unpackInputs(words, rows, width, bits).forEach((code, i) => {
        const [row, k] = [Math.floor(i / width), i % width];
        const word = words[Math.floor(k / perWord) * rows + row];
        assert.equal(code, codeOf(word, k % perWord, bits), `[${rows}, ${width}] ${i}`);
      });
    }
  });
}

test('Words of eight outputs become rows, in the order of AutoAWQ', () => {
  for (const [rows, width] of [
    [8, 4],
    [16, 12],
    [8 * 19, 8],
  ]) {
    const words = randomWords((rows * width) / 8);
    unpackOutputs(words, rows, width).forEach((code, i) => {
      const [row, k] = [Math.floor(i / width), i % width];
      const word = words[k * (rows / 8) + Math.floor(row / 8)];
      assert.equal(code, codeOf(word, AWQ_PLACE[row % 8], 4), `[${rows}, ${width}] ${i}`);
    });
  }
});

test('Columns are put into another order row by row', () => {
  const codes = Int8Array.of(1, 2, 3, 4, 5, 6);
  orderColumns(codes, Int32Array.of(2, 0, 1));
  assert.deepEqual([...codes], [3, 1, 2, 6, 4, 5]);
});
