// What the launcher gives the prefill kernels, and their parameters for each head size.
#pragma once
#include "attention_plan.h"

namespace millrace::cuda {

struct PrefillArgs {
  const void* q;
  void* out;
  int64_t qStride, outStride;
  const void* keys;
  const void* values;
  const int* blockTables;
  const int* blockTableStart;
  const int* queryStart;
  const int* contextLens;
  const PrefillItem* items;
  float* partials;
  int* counters;
  int kvHeads, group;
  int headDim, headStride, blockTiles, window;
  float scaleLog2;
};

// A kernel of a list of alternatives; `0` is the product's choice (dev/attention.md has the times).
struct PrefillKernel {
  const void* function = nullptr;
  int threads, rows, keys;  // of a block; of queries and of keys of a tile
  size_t sharedBytes;
  const char* name = nullptr;
  // For so many items; `resident` blocks run at a time.
  void (*run)(PrefillArgs, int items, int resident, cudaStream_t);
};
// dim: 64, 128 or 256, at least headStride. function is null where there is no such variant.
PrefillKernel prefillKernel(Elem elem, bool fp8, int dim, int variant);
// By the products of Hopper (hopperAvailable), dim 64 or 128.
PrefillKernel hopperPrefillKernel(Elem elem, bool fp8, int dim);

}  // namespace millrace::cuda
