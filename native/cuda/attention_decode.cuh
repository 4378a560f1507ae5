// What the launcher gives the decode kernel, and the kernel's parameters for each head size.
#pragma once
#include "attention_plan.h"

namespace millrace::cuda {

struct DecodeArgs {
  const void* q;
  void* out;
  int64_t qStride, outStride;
  const void* keys;
  const void* values;
  const int* blockTables;
  const int* blockTableStart;
  const DecodeWorker* workers;
  const DecodeEntry* entries;
  float* partials;
  int* counters;
  int kvHeads, group, passes, passRows;
  int headDim, headStride, blockTiles, window;
  float scaleLog2;
};

// A kernel of a list of alternatives; `0` is the product's choice (dev/attention.md has the times).
struct DecodeKernel {
  void (*function)(DecodeArgs);
  int warps;
  size_t sharedBytes;
  const char* name;
};
// dim: 64, 128 or 256, at least headStride. function is null where there is no such variant.
DecodeKernel decodeKernel(const AttentionShape& shape, int dim, int variant);

}  // namespace millrace::cuda
