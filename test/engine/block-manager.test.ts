import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockManager } from '../../src/engine/block-manager.js';
import { samplingParams } from '../../src/engine/sampling-params.js';
import { Request, Sequence } from '../../src/engine/sequence.js';

const BLOCK = 4;
let handles = 0;

function sequence(tokens: number[], cacheSalt = ''): Sequence {
  const params = samplingParams({ maxTokens: 50 }, { vocabSize: 1000, maxNumSeqs: 8 });
  const prompt = Int32Array.from(tokens);
  const input = { handle: handles++, prompt, params, priority: 0, cacheSalt, arrival: 1 };
  return new Sequence(new Request(input, handles, 1n), 0, 1000);
}

function manager(numBlocks: number, enablePrefixCaching = true): BlockManager {
  return new BlockManager({ numBlocks, blockSize: BLOCK, enablePrefixCaching });
}

/** Admits a sequence and computes all its tokens. */
function compute(blocks: BlockManager, one: Sequence): void {
  assert.ok(blocks.admit(one, blocks.blocksFor(one.numTokens), 0));
  assert.ok(blocks.grow(one, one.numTokens));
  one.numComputed = one.numTokens;
  blocks.commit(one, one.numComputed);
}

const count = (length: number, from = 0) => Array.from({ length }, (_, i) => from + i);

test('A second prompt shares the full blocks of a common prefix and computes only the rest', () => {
  const blocks = manager(16);
  const first = sequence([...count(10), 100]);
  compute(blocks, first);
  const second = sequence([...count(10), 200, 201]);
  assert.ok(blocks.admit(second, 3, 0));
  assert.equal(second.numComputed, 8);
  assert.deepEqual([...second.blocks.subarray(0, 2)], [...first.blocks.subarray(0, 2)]);
  blocks.verify([first, second]);
});

test('Of a fully cached prompt only the last token is computed, in a copy while others use the block', () => {
  const blocks = manager(16);
  const first = sequence(count(8));
  compute(blocks, first);
  const second = sequence(count(8));
  assert.ok(blocks.admit(second, 2, 0));
  assert.equal(second.numComputed, 7);
  assert.ok(blocks.grow(second, 8));
  assert.deepEqual(blocks.copies, [first.blocks[1], second.blocks[1]]);
  blocks.verify([first, second]);

  blocks.free(first);
  blocks.free(second);
  blocks.copies.length = 0;
  const alone = sequence(count(8));
  assert.ok(blocks.admit(alone, 2, 0));
  assert.equal(alone.numComputed, 7);
  assert.ok(blocks.grow(alone, 8));
  assert.deepEqual(blocks.copies, [], 'a block without other owners is written in place');
});

test('Prefixes are not shared across salts, nor with prefix caching off', () => {
  const blocks = manager(16);
  compute(blocks, sequence(count(9), 'a'));
  const other = sequence(count(9), 'b');
  assert.ok(blocks.admit(other, 3, 0));
  assert.equal(other.numComputed, 0);
  const same = sequence(count(9), 'a');
  assert.ok(blocks.admit(same, 3, 0));
  assert.equal(same.numComputed, 8);

  const off = manager(16, false);
  compute(off, sequence(count(9)));
  const again = sequence(count(9));
  assert.ok(off.admit(again, 3, 0));
  assert.equal(again.numComputed, 0);
});

test('Equal tokens after different beginnings are different content', () => {
  const blocks = manager(16);
  compute(blocks, sequence([1, 2, 3, 4, 9, 9, 9, 9, 0]));
  const other = sequence([5, 6, 7, 8, 9, 9, 9, 9, 0]);
  assert.ok(blocks.admit(other, 3, 0));
  assert.equal(other.numComputed, 0);
});

test('Unreferenced cached blocks are reused least recently used first, the end of a prefix before its beginning', () => {
  const blocks = manager(6);
  const [old, recent] = [sequence(count(9)), sequence(count(9, 50))];
  compute(blocks, old);
  compute(blocks, recent);
  blocks.free(old);
  blocks.free(recent);
  // Two blocks never got full: they go first, then the second block of the older prefix.
  const taker = sequence(count(12, 500));
  compute(blocks, taker);
  blocks.free(taker);
  const hits = (tokens: number[]) => {
    const probe = sequence(tokens);
    assert.ok(blocks.admit(probe, 3, 0));
    const { numComputed } = probe;
    blocks.free(probe);
    return numComputed;
  };
  assert.equal(hits(count(9)), 4);
  assert.equal(hits(count(9, 50)), 8);
});

test('Forked choices share every block until they write, then the writer copies only the last', () => {
  const blocks = manager(16);
  const leader = sequence(count(6));
  compute(blocks, leader);
  const fork = sequence(count(6));
  blocks.fork(leader, fork);
  assert.equal(blocks.numFree, 14);
  leader.expect(0);
  leader.settle(7);
  fork.expect(0);
  fork.settle(8);
  assert.ok(blocks.grow(leader, 7));
  assert.deepEqual(blocks.copies, [fork.blocks[1], leader.blocks[1]]);
  assert.ok(blocks.grow(fork, 7));
  assert.equal(blocks.copies.length, 2, 'the last owner writes in place');
  assert.equal(leader.blocks[0], fork.blocks[0]);
  blocks.verify([leader, fork]);
});

test('What does not fit changes nothing', () => {
  const blocks = manager(4);
  const first = sequence(count(9));
  compute(blocks, first);
  const second = sequence(count(9, 100));
  assert.equal(blocks.admit(second, 3, 0), false);
  assert.equal(blocks.admit(second, 1, 1), false, 'a reserved block is not given away');
  assert.equal(second.numBlocks, 0);
  assert.equal(blocks.grow(first, 100), false);
  blocks.verify([first]);
});

test('Content that is forgotten is not found again', () => {
  const blocks = manager(8);
  const bad = sequence(count(9));
  compute(blocks, bad);
  blocks.forget(bad);
  blocks.free(bad);
  const again = sequence(count(9));
  assert.ok(blocks.admit(again, 3, 0));
  assert.equal(again.numComputed, 0);
  blocks.verify([again]);
});
