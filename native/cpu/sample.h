// The sampler: one row of logits becomes one token. The arithmetic is that of docs/sampling.md, the
// same as the reference's, so that both draw the same tokens from the same logits.
// Declarations and plain data only, as in attention.h and for the same reason.
#pragma once
#include <cstddef>
#include <cstdint>

#include "../batch.h"

namespace millrace {

// SamplingBatch of src/backend/backend.ts, checked: token ids are in the vocabulary.
struct SampleParams {
  const float* temperature;        // [R] 0: greedy
  const int32_t* topK;             // [R] 0: off
  const float* topP;               // [R] 1: off
  const float* minP;               // [R] 0: off
  const uint32_t* seed;            // [2R] low, high word
  const uint32_t* draw;            // [R]
  const float* repetitionPenalty;  // [R] 1: off
  const float* presencePenalty;    // [R] 0: off
  const float* frequencyPenalty;   // [R] 0: off
  const int32_t* historyStart;     // [R + 1]
  const int32_t* historyTokens;
  const int32_t* historyCounts;
  const int32_t* biasStart;        // [R + 1]
  const int32_t* biasTokens;
  const float* biasValues;
  const int32_t* logprobs;         // [R] -1: none
  const int32_t* targets;          // [R] -1: sample
};

// StepResult of src/backend/backend.ts. Every row is written: NaN, 0, -1 and NaN stand in what was
// not asked for (logprobs and targets -1), in the places of the top list not filled, and in all
// of a failed row.
struct SampleResult {
  int32_t* tokens;     // [R] -1: the row failed (docs/sampling.md, 1)
  float* logprobs;     // [R]
  int32_t* ranks;      // [R]
  int32_t* topTokens;  // [R * kMaxLogprobs]
  float* topLogprobs;  // [R * kMaxLogprobs]
};

struct SampleKernels {
  // Bytes of scratch, 64-byte aligned, that one thread needs.
  size_t (*scratchBytes)(int vocab);
  // Samples row `row` from its raw logits `[vocab]`, which are left as they are.
  void (*sampleRow)(const float* logits, int vocab, const SampleParams& params, int row,
                    const SampleResult& result, uint8_t* scratch);
};

}  // namespace millrace
