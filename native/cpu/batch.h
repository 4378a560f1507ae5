// One step's input as it arrives from JavaScript, and the checks that memory safety stands on.
#pragma once
#include "kernels.h"
#include "program.h"
#include "sample.h"

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

  Step step() const {
    return {numTokens,       numSeqs,          numRows,          tokens.data,
            positions.data,  slots.data,       queryStart.data,  contextLens.data,
            blockTables.data, blockTableStart.data, rows.data};
  }
  SampleParams sampling() const {
    return {temperature.data,   topK.data,          topP.data,          minP.data,
            seed.data,          draw.data,          repetitionPenalty.data, presencePenalty.data,
            frequencyPenalty.data, historyStart.data, historyTokens.data, historyCounts.data,
            biasStart.data,     biasTokens.data,    biasValues.data,    logprobs.data,
            targets.data};
  }
};

// Throws std::invalid_argument if an array is too short or an index out of bounds. The same checks
// with better messages stand in src/backend/check-batch.ts; these keep the process alive should a
// caller go around them.
void checkBatch(const Batch& batch, const Limits& limits, int vocab);

}  // namespace millrace
