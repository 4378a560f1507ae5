// What a runner allocates, and where in it everything lies: known before anything is allocated.
#pragma once
#include <string>
#include <vector>

#include "program.h"
#include "staging.h"

namespace millrace::cuda {

struct RunnerConfig {
  int device;
  Elem elem;  // of activations, matrices and KV layers that are not fp8
  Limits limits;
  Program program;  // without instructions: they are decoded once the weights are known
  std::vector<double> tokenCode, rowCode;
  std::vector<WeightSpec> weights;
  bool eager;      // no graphs
  bool profiling;  // times every operation; no graphs either
  bool overlap;    // programmatic dependent launch, where there is any
  std::vector<std::string> libraries;  // cuBLASLt, best first
};

// Decodes and checks the program of `config`; gives its attention instructions their shapes.
Program decodeProgram(const RunnerConfig& config, std::vector<AttentionShape>& shapes);

struct MemoryMap {
  size_t weights = 0, workspace = 0, kvCache = 0;  // bytes
  // Byte offsets in the workspace.
  size_t activations, attentionScratch, moeScratch, samplingScratch, ragged, saved, copies, products, int4Wide, int4Scratch, int4Counters,
      int4End, fp8Codes, fp8Scales, chainScratch, chainNormed, chainGates;
  size_t staging[2], outputs[2];  // of the two steps that may be on their way
  std::vector<size_t> ropeTables;
  int raggedEntries;
};
// Pairs of blocks that are copied by one launch.
constexpr int kCopiesAtOnce = 4096;
// Numbers that sampling gives for a row.
constexpr int kOutputsOfRow = 3 + 2 * kMaxLogprobs;

MemoryMap mapMemory(const RunnerConfig& config, const Program& program,
                    const std::vector<AttentionShape>& shapes);

// Bytes of keys, or of values, of one layer.
size_t kvHalfBytes(const KvShape& shape, Elem elem, const BatchLimits& limits);
inline int headStrideOf(int headDim) { return static_cast<int>(alignUp(headDim, 16)); }

}  // namespace millrace::cuda
