// What products by wgmma with outputs as rows of its tile have in common: the ring, and the way of the
// sums to where they go. C, a kernel's configuration, has kRows (of x), kWarpgroups, kBlocks (of 64
// outputs, for each warpgroup), kOutputs (of all of them), kPitch (floats between rows of outputs in
// shared memory) and kTurnedRows (rows that are turned around at a time).
#pragma once
#include "elements.h"
#include "hopper.cuh"

namespace millrace::cuda::hopper {

constexpr int kWarpgroup = 128;
// Bytes of shared memory of an SM, and what of it the system takes for each block.
constexpr int kSharedOfSm = 228 * 1024, kSharedOfBlock = 1024;

struct Tiles {
  int n, rows;
  int rowTiles, tiles;
  int splits;  // blocks that share a sum over k, a cluster
};

struct Results {
  const float *weightScales, *xScales, *bias;
  const void* residual;
  void* out;
  int64_t residualStride, outStride;
  Elem elem;
};

__device__ __forceinline__ void add8(Elem elem, const void* from, int64_t at, float (&values)[8]) {
  float more[8];
  if (elem == Elem::BF16) {
    using T = __nv_bfloat16;
    unpack<T, 8>(loadRaw<T, 8>(static_cast<const T*>(from) + at), more);
  } else {
    using T = __half;
    unpack<T, 8>(loadRaw<T, 8>(static_cast<const T*>(from) + at), more);
  }
#pragma unroll
  for (int i = 0; i < 8; i++) values[i] += more[i];
}

__device__ __forceinline__ void store8(Elem elem, void* to, int64_t at, const float (&values)[8]) {
  if (elem == Elem::BF16) {
    storeRaw<__nv_bfloat16, 8>(static_cast<__nv_bfloat16*>(to) + at, pack<__nv_bfloat16, 8>(values));
  } else if (elem == Elem::F16) {
    storeRaw<__half, 8>(static_cast<__half*>(to) + at, pack<__half, 8>(values));
  } else {
    float4* out = reinterpret_cast<float4*>(static_cast<float*>(to) + at);
    out[0] = {values[0], values[1], values[2], values[3]};
    out[1] = {values[4], values[5], values[6], values[7]};
  }
}

__device__ __forceinline__ void finish(const Results& results, int64_t row, int output,
                                       float (&values)[8]) {
  if (results.weightScales) {
    float scales[8];
    loadFloats<8>(results.weightScales + output, scales);
    const float scale = results.xScales[row];
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] *= scale * scales[i];
  }
  if (results.bias) {
    float bias[8];
    loadFloats<8>(results.bias + output, bias);
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] += bias[i];
  }
  if (results.residual) {
    add8(results.elem, results.residual, row * results.residualStride + output, values);
  }
  store8(results.elem, results.out, row * results.outStride + output, values);
}

// The place in the ring, and whether it comes around for the odd time.
template <int kStages>
struct RingPlace {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
  }
};

// The barriers of a ring that one thread fills, at 8 bytes each, and the start of all blocks that share a
// sum: none is written to before.
template <int kStages>
__device__ __forceinline__ void startRing(uint32_t full, uint32_t empty, int emptiers, int splits) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; i++) {
      barrierInit(full + 8 * i, 1);
      barrierInit(empty + 8 * i, emptiers);
    }
    barrierInitFence();
  }
  if (splits > 1) {
    clusterSync();
  } else {
    __syncthreads();
  }
}

template <int kThreads>
__device__ __forceinline__ void syncAdders() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

// The sums of rows first .. first + count of a thread to shared memory, rows of outputs.
template <class C>
__device__ __forceinline__ void turnSums(const float (&sums)[C::kBlocks][C::kRows / 2], float* turned,
                                         int first, int count) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
  for (int block = 0; block < C::kBlocks; block++) {
    const int output = (warp / 4 * C::kBlocks + block) * 64 + warp % 4 * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < count / 2; j++) {
      const int row = j / 4 * 8 + lane % 4 * 2 + j % 2;
      turned[row * C::kPitch + output + j % 4 / 2 * 8] = sums[block][first / 2 + j];
    }
  }
}

template <class C>
__device__ __forceinline__ void storeSums(const float (&sums)[C::kBlocks][C::kRows / 2], float* turned,
                                          const Tiles& work, const Results& results, int firstRow,
                                          int firstOutput) {
  constexpr int kThreads = kWarpgroup * C::kWarpgroups, kPacks = C::kOutputs / 8;
#pragma unroll
  for (int first = 0; first < C::kRows; first += C::kTurnedRows) {
    if (firstRow + first >= work.rows) break;
    syncAdders<kThreads>();  // all have read what was here before
    turnSums<C>(sums, turned, first, C::kTurnedRows);
    syncAdders<kThreads>();
    for (int item = threadIdx.x; item < C::kTurnedRows * kPacks; item += kThreads) {
      const int row = item / kPacks, column = item % kPacks * 8;
      if (firstRow + first + row >= work.rows || firstOutput + column >= work.n) continue;
      float values[8];
      loadFloats<8>(turned + row * C::kPitch + column, values);
      finish(results, firstRow + first + row, firstOutput + column, values);
    }
  }
}

// Sums of blocks that have a share of k each, added in the order of blocks, of which each finishes a
// part of the rows. `shared` is where the ring was, for kRows * kPitch floats; all threads that multiply
// come here, and one clusterSync() of the others with them.
template <class C>
__device__ __forceinline__ void addSplits(const float (&sums)[C::kBlocks][C::kRows / 2], uint8_t* shared,
                                          const Tiles& work, const Results& results, int split,
                                          int firstRow, int firstOutput) {
  constexpr int kThreads = kWarpgroup * C::kWarpgroups, kPacks = C::kOutputs / 8;
  syncAdders<kThreads>();  // all have read the ring
  turnSums<C>(sums, reinterpret_cast<float*>(shared), 0, C::kRows);
  clusterSync();
  const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const int rowsEach = C::kRows / work.splits;
  for (int item = threadIdx.x; item < rowsEach * kPacks; item += kThreads) {
    const int row = split * rowsEach + item / kPacks, column = item % kPacks * 8;
    const int64_t outRow = firstRow + row;
    const int output = firstOutput + column;
    if (outRow >= work.rows || output >= work.n) continue;
    float values[8] = {};
    const uint32_t at = base + 4 * (row * C::kPitch + column);
    for (int block = 0; block < work.splits; block++) {
      const float4 low = loadFromBlock(at, block), high = loadFromBlock(at + 16, block);
      values[0] += low.x, values[1] += low.y, values[2] += low.z, values[3] += low.w;
      values[4] += high.x, values[5] += high.y, values[6] += high.z, values[7] += high.w;
    }
    finish(results, outRow, output, values);
  }
}

}  // namespace millrace::cuda::hopper
