#include "batch.h"

#include <stdexcept>
#include <string>

namespace millrace {
namespace {

[[noreturn]] void fail(const char* name, const char* what) {
  throw std::invalid_argument(std::string("batch.") + name + " " + what);
}

template <class T>
void atLeast(const Span<T>& span, size_t size, const char* name) {
  if (span.size < size) fail(name, "is too short");
}

void within(const Span<int32_t>& span, size_t count, int low, int high, const char* name) {
  atLeast(span, count, name);
  for (size_t i = 0; i < count; i++) {
    if (span[i] < low || span[i] >= high) fail(name, "holds a number out of range");
  }
}

// Starts of `count` consecutive runs, from 0; returns the total.
size_t checkStarts(const Span<int32_t>& starts, size_t count, const char* name) {
  atLeast(starts, count + 1, name);
  if (starts[0] != 0) fail(name, "does not start at 0");
  for (size_t i = 0; i < count; i++) {
    if (starts[i + 1] < starts[i]) fail(name, "decreases");
  }
  return starts[count];
}

void checkSequences(const Batch& b, const BatchLimits& limits) {
  const size_t tokens = checkStarts(b.queryStart, b.numSeqs, "queryStart");
  if (tokens != static_cast<size_t>(b.numTokens)) fail("queryStart", "does not end at numTokens");
  const size_t blocks = checkStarts(b.blockTableStart, b.numSeqs, "blockTableStart");
  within(b.blockTables, blocks, 0, limits.numBlocks, "blockTables");
  within(b.contextLens, b.numSeqs, 0, limits.maxModelLen + 1, "contextLens");
  for (int s = 0; s < b.numSeqs; s++) {
    const int queries = b.queryStart[s + 1] - b.queryStart[s];
    const int64_t room = int64_t(b.blockTableStart[s + 1] - b.blockTableStart[s]) * limits.blockSize;
    if (queries < 1 || b.contextLens[s] < queries) fail("contextLens", "is less than the queries");
    if (b.contextLens[s] > room) fail("blockTables", "are shorter than a context");
  }
}

void checkSampling(const Batch& b, int vocab) {
  const size_t rows = b.numRows;
  atLeast(b.temperature, rows, "sampling.temperature");
  atLeast(b.topK, rows, "sampling.topK");
  atLeast(b.topP, rows, "sampling.topP");
  atLeast(b.minP, rows, "sampling.minP");
  atLeast(b.seed, 2 * rows, "sampling.seed");
  atLeast(b.draw, rows, "sampling.draw");
  atLeast(b.repetitionPenalty, rows, "sampling.repetitionPenalty");
  atLeast(b.presencePenalty, rows, "sampling.presencePenalty");
  atLeast(b.frequencyPenalty, rows, "sampling.frequencyPenalty");
  const size_t seen = checkStarts(b.historyStart, rows, "sampling.historyStart");
  within(b.historyTokens, seen, 0, vocab, "sampling.historyTokens");
  atLeast(b.historyCounts, seen, "sampling.historyCounts");
  const size_t biased = checkStarts(b.biasStart, rows, "sampling.biasStart");
  within(b.biasTokens, biased, 0, vocab, "sampling.biasTokens");
  atLeast(b.biasValues, biased, "sampling.biasValues");
  within(b.logprobs, rows, -1, kMaxLogprobs + 1, "sampling.logprobs");
  within(b.targets, rows, -1, vocab, "sampling.targets");
}

}  // namespace

void checkBatch(const Batch& b, const BatchLimits& limits, int vocab, int previousRows) {
  if (b.numTokens < 0 || b.numTokens > limits.maxTokens) fail("numTokens", "is out of range");
  if (b.numSeqs < 0 || b.numSeqs > limits.maxSeqs) fail("numSeqs", "is out of range");
  if (b.numRows < 0 || b.numRows > limits.maxTokens) fail("numRows", "is out of range");
  if (b.numCopies < 0) fail("numCopies", "is negative");
  within(b.tokens, b.numTokens, -previousRows, vocab, "tokens");
  within(b.positions, b.numTokens, 0, limits.maxModelLen, "positions");
  // The cache is less than 2^31 tokens: the runner sees to it.
  within(b.slots, b.numTokens, 0, limits.numBlocks * limits.blockSize, "slots");
  within(b.rows, b.numRows, 0, b.numTokens, "rows");
  within(b.copies, 2 * static_cast<size_t>(b.numCopies), 0, limits.numBlocks, "copies");
  checkSequences(b, limits);
  checkSampling(b, vocab);
}

}  // namespace millrace
