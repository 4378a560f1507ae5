// One step's input as it arrives from JavaScript, and the checks that memory safety stands on.
#pragma once
#include <cstddef>
#include <cstdint>

namespace millrace {

template <class T>
struct Span {
  const T* data = nullptr;
  size_t size = 0;
  const T& operator[](size_t i) const { return data[i]; }
};

// StepBatch of src/backend/backend.ts. Arrays may be longer than what counts.
struct Batch {
  int numTokens, numSeqs, numRows, numCopies;
  Span<int32_t> tokens, positions, slots, queryStart, contextLens, blockTables, blockTableStart,
      rows, copies;
  Span<float> temperature, topP, minP, repetitionPenalty, presencePenalty, frequencyPenalty,
      biasValues;
  Span<int32_t> topK, historyStart, historyTokens, historyCounts, biasStart, biasTokens, logprobs,
      targets;
  Span<uint32_t> seed, draw;
};

// Sizes that an executor fixes when it is made: RunnerOptions of src/backend/backend.ts.
struct BatchLimits {
  int blockSize, numBlocks, maxTokens, maxSeqs, maxModelLen;
};

// Most alternatives a row may ask for: MAX_LOGPROBS in src/backend/backend.ts.
constexpr int kMaxLogprobs = 20;

// Throws std::invalid_argument if an array is too short or an index out of bounds. The same checks
// with better messages stand in src/backend/check-batch.ts; these keep the process alive should a
// caller go around them. Tokens from -previousRows on name rows of the step before.
void checkBatch(const Batch& batch, const BatchLimits& limits, int vocab, int previousRows = 0);

}  // namespace millrace
