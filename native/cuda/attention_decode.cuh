// What the launcher gives the decode kernel, and the kernel's parameters for each head size.
#pragma once
#include "attention_plan.h"

namespace millrace::cuda {

// Queries, keys and values of the step's tokens as the projection left them: rows by token. Read by
// DecodeKernel::ofFresh; for the other kernel queries are ready and the cache has the keys and values.
struct NewTokens {
  const void* keys;
  const void* values;
  int64_t keyStride, valueStride;
  const float* qNorm;  // or null
  const float* kNorm;
  float eps;
  const float2* cosSin;  // [position][headDim / 2], or null
};

struct DecodeArgs {
  const void* q;
  void* out;
  int64_t qStride, outStride;
  void* keys;
  void* values;
  const int* blockTables;
  const int* blockTableStart;
  const DecodeWorker* workers;
  const DecodeEntry* entries;
  float* partials;
  int* counters;
  int kvHeads, group, passes, passRows;
  int headDim, headStride, blockTiles, window;
  float scaleLog2;
  NewTokens fresh;
};

// A kernel of a list of alternatives; `0` is the product's choice (dev/attention.md has the times).
struct DecodeKernel {
  void (*function)(DecodeArgs) = nullptr;
  void (*ofFresh)(DecodeArgs) = nullptr;  // where DecodeArgs::fresh has something
  int warps = 0;
  size_t sharedBytes = 0;
  const char* name = nullptr;
};
// dim: 64, 128 or 256, at least headStride. mostShared: bytes that a block may have. function is null where
// there is no such variant.
DecodeKernel decodeKernelBf16(const AttentionShape& shape, int dim, size_t mostShared, int variant);
DecodeKernel decodeKernelHalf(const AttentionShape& shape, int dim, size_t mostShared, int variant);
inline DecodeKernel decodeKernel(const AttentionShape& shape, int dim, size_t mostShared, int variant) {
  const auto of = shape.elem == Elem::BF16 ? decodeKernelBf16 : decodeKernelHalf;
  return of(shape, dim, mostShared, variant);
}

}  // namespace millrace::cuda
