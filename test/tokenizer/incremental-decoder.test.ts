import assert from 'node:assert/strict';
import { test } from 'node:test';
import { IncrementalDecoder } from '../../src/tokenizer/incremental-decoder.js';
import { loadTokenizer } from '../../src/tokenizer/load-tokenizer.js';
import { byteTokenizer } from '../helpers/byte-tokenizer.js';
import { randomSource as random } from '../helpers/random.js';

const stories = await loadTokenizer('models/stories-7m');
const bytes = byteTokenizer(['<end>']);

function decodeAll(decoder: IncrementalDecoder, ids: readonly number[]): string[] {
  return [...ids.map((id) => decoder.push(id)), decoder.flush()];
}

test('the deltas of random token sequences join to the full decode, with and without special tokens', () => {
  const next = random(1);
  for (let round = 0; round < 2000; round++) {
    const ids = Array.from({ length: 1 + Math.floor(next() * 40) }, () =>
      // Every other round mostly single-byte tokens, whose text is seldom whole code points.
      Math.floor(next() * (round % 2 ? stories.vocabSize + 2 : 270)),
    );
    for (const skipSpecialTokens of [true, false]) {
      const deltas = decodeAll(new IncrementalDecoder(stories, { skipSpecialTokens }), ids);
      assert.equal(deltas.join(''), stories.decode(ids, { skipSpecialTokens }));
    }
  }
});

test('no delta of a text splits a code point, however many tokens it spans', () => {
  const text = 'Zażółć 日本語 🙂👨‍👩‍👧 é';
  const deltas = decodeAll(new IncrementalDecoder(bytes), bytes.encode(text));
  assert.equal(deltas.join(''), text);
  for (const delta of deltas) assert.doesNotMatch(delta, /\ufffd|\p{Surrogate}/u);
  assert.equal(deltas.filter((delta) => delta !== '').length, [...text].length);
});

test('random bytes decode like the platform decoder, whatever is malformed about them', () => {
  const next = random(2);
  const interesting = [
    0xc0, 0xc3, 0xe0, 0xe2, 0xed, 0xf0, 0xf4, 0xf5, 0xff, 0x80, 0x9f, 0xa0, 0xbf,
  ];
  for (let round = 0; round < 5000; round++) {
    const ids = Array.from({ length: 1 + Math.floor(next() * 12) }, () =>
      next() < 0.8
        ? interesting[Math.floor(next() * interesting.length)]
        : Math.floor(next() * 256),
    );
    const deltas = decodeAll(new IncrementalDecoder(bytes), ids);
    assert.equal(
      deltas.join(''),
      new TextDecoder('utf-8', { ignoreBOM: true }).decode(Uint8Array.from(ids)),
    );
  }
});

test('an unfinished code point is held until the flush and then becomes one replacement character', () => {
  const decoder = new IncrementalDecoder(bytes);
  assert.equal(decoder.push(0xe2) + decoder.push(0x82), '');
  assert.equal(decoder.flush(), '\ufffd');
});

test('a special token between the halves of a code point is skipped without breaking it', () => {
  const decoder = new IncrementalDecoder(bytes);
  assert.deepEqual(
    [0xc3, 256, 0xa9].map((id) => decoder.push(id)),
    ['', '', 'é'],
  );
});

/** The plain definition: of all matches the one that ends first, of those the longest. */
function cut(text: string, stop: readonly string[], include: boolean): [string, string?] {
  for (let end = 1; end <= text.length; end++) {
    const matches = stop.filter((s) => text.slice(0, end).endsWith(s));
    if (matches.length > 0) {
      const longest = matches.reduce((a, b) => (b.length > a.length ? b : a));
      return [text.slice(0, include ? end : end - longest.length), longest];
    }
  }
  return [text, undefined];
}

test('stop strings cut random texts where the plain definition does, and no delta shows a part of one', () => {
  const next = random(3);
  const pick = (length: number, alphabet: string[]): string =>
    Array.from({ length }, () => alphabet[Math.floor(next() * alphabet.length)]).join('');
  for (let round = 0; round < 5000; round++) {
    const alphabet = ['a', 'b', 'é', '🙂'].slice(0, 2 + Math.floor(next() * 3));
    const text = pick(Math.floor(next() * 30), alphabet);
    const stop = Array.from({ length: 1 + Math.floor(next() * 3) }, () =>
      pick(1 + Math.floor(next() * 5), alphabet),
    );
    const include = next() < 0.3;
    const decoder = new IncrementalDecoder(bytes, { stop, includeStopStrInOutput: include });
    const [expected, matched] = cut(text, stop, include);
    let shown = '';
    for (const id of bytes.encode(text)) {
      shown += decoder.push(id);
      assert.ok(expected.startsWith(shown), `${shown} shows more than ${expected}`);
    }
    assert.equal(shown + decoder.flush(), expected);
    assert.equal(decoder.stopped, matched);
  }
});

test('a stop string is found at every position and over every split into real tokens', () => {
  const text = 'Once upon a time there was a dragon. The end of it.';
  const ids = stories.encode(text, { addSpecialTokens: false });
  for (let from = 0; from < text.length; from++) {
    for (const length of [1, 2, 5, 11]) {
      const stop = text.slice(from, from + length);
      const decoder = new IncrementalDecoder(stories, { stop: [stop] });
      assert.equal(decodeAll(decoder, ids).join(''), text.slice(0, text.indexOf(stop)));
      assert.equal(decoder.stopped, stop);
    }
  }
});

test('what could begin a stop string is held back and given out when it does not', () => {
  const decoder = new IncrementalDecoder(bytes, { stop: ['END'] });
  assert.deepEqual(
    [...'xENxEND'].map((c) => decoder.push(c.charCodeAt(0))),
    ['x', '', '', 'ENx', '', '', ''],
  );
  assert.equal(decoder.stopped, 'END');
  assert.equal(decoder.push(0x41), '', 'nothing comes after the stop');
});

test('the flush gives out what was held back for a stop string that never came', () => {
  const decoder = new IncrementalDecoder(bytes, { stop: ['END'] });
  assert.equal(decoder.push(0x45) + decoder.push(0x4e), '');
  assert.equal(decoder.flush(), 'EN');
});

test('a stop string that ends within minTokens tokens is passed over, one that ends after is not', () => {
  const run = (minTokens: number): string =>
    decodeAll(
      new IncrementalDecoder(bytes, { stop: ['aa'], minTokens }),
      bytes.encode('aaab aa c'),
    ).join('');
  assert.equal(run(0), '');
  assert.equal(run(2), 'a', 'the match of the second and third a ends after two tokens');
  assert.equal(run(3), 'aaab ');
  assert.equal(run(9), 'aaab aa c');
});
