/**
 * The one check every executor runs before a step. A batch is built by our own engine, so a failure
 * here is a bug, never a user's mistake: a plain error that names the array and the index. Without
 * it a wrong id would read or write foreign memory in native code.
 *
 * Cost: one pass over tokens and block tables; tens of microseconds at 64 long sequences.
 */
import type { Program } from '../model/program.js';
import { MAX_LOGPROBS, type RunnerOptions, type SamplingBatch, type StepBatch } from './backend.js';

/**
 * Throws `RangeError` if executing `batch` could touch memory outside what `options` allocated.
 * `previousRows` are the rows whose drawn tokens the batch may name (`ModelRunner.submit`).
 */
export function checkBatch(
  program: Program,
  options: RunnerOptions,
  batch: StepBatch,
  previousRows = 0,
): void {
  const { numTokens, numSeqs, numRows, numCopies } = batch;
  count('numTokens', numTokens, 1, options.maxTokens);
  count('numSeqs', numSeqs, 1, Math.min(options.maxSeqs, numTokens));
  count('numRows', numRows, 0, options.maxTokens);
  count('numCopies', numCopies, 0, options.numBlocks);
  atLeast('tokens', batch.tokens, numTokens);
  atLeast('positions', batch.positions, numTokens);
  atLeast('slots', batch.slots, numTokens);
  atLeast('queryStart', batch.queryStart, numSeqs + 1);
  atLeast('contextLens', batch.contextLens, numSeqs);
  atLeast('blockTableStart', batch.blockTableStart, numSeqs + 1);
  atLeast('rows', batch.rows, numRows);
  atLeast('copies', batch.copies, 2 * numCopies);
  checkSequences(program, options, batch, previousRows);
  checkRows(batch);
  for (let i = 0; i < 2 * numCopies; i++) inRange('copies', i, batch.copies[i], options.numBlocks);
  checkSampling(program.vocabSize, numRows, batch.sampling);
}

function checkSequences(
  program: Program,
  options: RunnerOptions,
  batch: StepBatch,
  previousRows: number,
): void {
  const { blockSize, numBlocks, maxModelLen } = options;
  const { tokens, positions, slots, queryStart, contextLens, blockTables, blockTableStart } = batch;
  if (queryStart[0] !== 0) fail('queryStart', 0, queryStart[0], '0');
  if (blockTableStart[0] !== 0) fail('blockTableStart', 0, blockTableStart[0], '0');
  for (let seq = 0; seq < batch.numSeqs; seq++) {
    const from = queryStart[seq];
    const to = queryStart[seq + 1];
    if (to <= from) fail('queryStart', seq + 1, to, `more than ${from}`);
    if (to > batch.numTokens) fail('queryStart', seq + 1, to, `at most ${batch.numTokens}`);
    const context = contextLens[seq];
    if (context < to - from || context > maxModelLen) {
      fail('contextLens', seq, context, `${to - from} to ${maxModelLen}`);
    }
    const table = blockTableStart[seq];
    const tableEnd = blockTableStart[seq + 1];
    const needed = Math.ceil(context / blockSize);
    if (tableEnd - table < needed) {
      fail('blockTableStart', seq + 1, tableEnd, `at least ${table + needed}`);
    }
    if (tableEnd > blockTables.length) {
      fail('blockTableStart', seq + 1, tableEnd, `at most ${blockTables.length}`);
    }
    for (let i = table; i < tableEnd; i++) inRange('blockTables', i, blockTables[i], numBlocks);
    for (let t = from; t < to; t++) {
      const token = tokens[t];
      if (token < -previousRows || token >= program.vocabSize) {
        fail('tokens', t, token, `${-previousRows} to ${program.vocabSize - 1}`);
      }
      const position = context - to + t;
      if (positions[t] !== position) fail('positions', t, positions[t], String(position));
      const block = blockTables[table + Math.floor(position / blockSize)];
      const slot = block * blockSize + (position % blockSize);
      if (slots[t] !== slot) fail('slots', t, slots[t], `${slot}, in the sequence's block table`);
    }
  }
  if (queryStart[batch.numSeqs] !== batch.numTokens) {
    fail('queryStart', batch.numSeqs, queryStart[batch.numSeqs], String(batch.numTokens));
  }
}

function checkRows({ rows, numRows, numTokens }: StepBatch): void {
  for (let r = 0; r < numRows; r++) {
    inRange('rows', r, rows[r], numTokens);
    if (r > 0 && rows[r] < rows[r - 1]) fail('rows', r, rows[r], `at least ${rows[r - 1]}`);
  }
}

function checkSampling(vocabSize: number, rows: number, sampling: SamplingBatch): void {
  for (const name of PER_ROW) atLeast(`sampling.${name}`, sampling[name], rows);
  atLeast('sampling.seed', sampling.seed, 2 * rows);
  for (let r = 0; r < rows; r++) {
    if (!(sampling.temperature[r] >= 0 && sampling.temperature[r] < Infinity)) {
      fail('sampling.temperature', r, sampling.temperature[r], 'a finite number, 0 or more');
    }
    if (!(sampling.repetitionPenalty[r] > 0)) {
      fail('sampling.repetitionPenalty', r, sampling.repetitionPenalty[r], 'more than 0');
    }
    if (sampling.topK[r] < 0) fail('sampling.topK', r, sampling.topK[r], '0 or more');
    if (!(sampling.topP[r] > 0)) fail('sampling.topP', r, sampling.topP[r], 'more than 0');
    if (!(sampling.minP[r] >= 0 && sampling.minP[r] <= 1)) {
      fail('sampling.minP', r, sampling.minP[r], '0 to 1');
    }
    if (sampling.logprobs[r] < -1 || sampling.logprobs[r] > MAX_LOGPROBS) {
      fail('sampling.logprobs', r, sampling.logprobs[r], `-1 to ${MAX_LOGPROBS}`);
    }
    if (sampling.targets[r] < -1 || sampling.targets[r] >= vocabSize) {
      fail('sampling.targets', r, sampling.targets[r], `-1 to ${vocabSize - 1}`);
    }
  }
  const { historyStart, historyTokens, historyCounts, biasStart, biasTokens, biasValues } =
    sampling;
  checkRagged('history', rows, vocabSize, historyStart, historyTokens, historyCounts);
  checkRagged('bias', rows, vocabSize, biasStart, biasTokens, biasValues);
}

const PER_ROW = [
  'temperature',
  'topK',
  'topP',
  'minP',
  'draw',
  'repetitionPenalty',
  'presencePenalty',
  'frequencyPenalty',
  'logprobs',
  'targets',
] as const;

/** Row r owns entries `start[r] .. start[r + 1]` of `tokens` and `values`. */
function checkRagged(
  name: string,
  rows: number,
  vocabSize: number,
  start: Int32Array,
  tokens: Int32Array,
  values: { readonly length: number },
): void {
  atLeast(`sampling.${name}Start`, start, rows + 1);
  if (start[0] !== 0) fail(`sampling.${name}Start`, 0, start[0], '0');
  for (let r = 0; r < rows; r++) {
    if (start[r + 1] < start[r]) {
      fail(`sampling.${name}Start`, r + 1, start[r + 1], `at least ${start[r]}`);
    }
  }
  atLeast(`sampling.${name}Tokens`, tokens, start[rows]);
  atLeast(`sampling.${name} values`, values, start[rows]);
  for (let i = 0; i < start[rows]; i++) {
    inRange(`sampling.${name}Tokens`, i, tokens[i], vocabSize);
  }
}

function count(name: string, value: number, min: number, max: number): void {
  if (!Number.isInteger(value) || value < min || value > max) {
    throw new RangeError(`Malformed batch: ${name} is ${value}, expected ${min} to ${max}`);
  }
}

function atLeast(name: string, array: { readonly length: number }, length: number): void {
  if (array.length < length) {
    throw new RangeError(
      `Malformed batch: ${name} has ${array.length} elements, expected at least ${length}`,
    );
  }
}

function inRange(name: string, index: number, value: number, end: number): void {
  if (value < 0 || value >= end) fail(name, index, value, `0 to ${end - 1}`);
}

function fail(name: string, index: number, value: number, expected: string): never {
  throw new RangeError(`Malformed batch: ${name}[${index}] is ${value}, expected ${expected}`);
}
