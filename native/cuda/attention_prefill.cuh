// What the launcher gives the prefill kernel, and the kernel's parameters for each head size.
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

struct PrefillKernel {
  void (*function)(PrefillArgs);
  int warps, rows, keys;  // rows of queries and keys of a tile
  size_t sharedBytes;
  const char* name;
};
// dim: 64, 128 or 256, at least headStride. function is null where there is no such variant.
PrefillKernel prefillKernel(Elem elem, bool fp8, int dim, int variant);

}  // namespace millrace::cuda
