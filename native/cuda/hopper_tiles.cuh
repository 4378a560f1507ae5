// What products by wgmma with outputs as rows of its tile have in common: the ring, and the way of the
// sums to where they go. C, a kernel's configuration, has kRows (of x), kWarpgroups, kBlocks (of 64
// outputs, for each warpgroup), kOutputs (of all of them), and for storeSums kKeptRows (rows that are
// turned around at a time, a multiple of eight).
#pragma once
#include "elements.h"
#include "hopper.cuh"

namespace millrace::cuda::hopper {

constexpr int kWarpgroup = 128;
// Bytes of shared memory of an SM, and what of it the system takes for each block.
constexpr int kSharedOfSm = 228 * 1024, kSharedOfBlock = 1024;
// For the barriers of a ring of up to 16 stages, and the one for other blocks' sums behind them.
constexpr int kRingBarrierBytes = 256 + 16;

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
// sum: none is written to before. `summed` is for `sumBytes` that these send each other.
template <int kStages>
__device__ __forceinline__ void startRing(uint32_t full, uint32_t empty, int emptiers, uint32_t summed,
                                          int sumBytes, int splits) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; i++) {
      barrierInit(full + 8 * i, 1);
      barrierInit(empty + 8 * i, emptiers);
    }
    barrierInit(summed, 1);
    barrierExpect(summed, sumBytes);
    barrierInitFence();
  }
  if (splits > 1) {
    clusterMeet();
  } else {
    __syncthreads();
  }
}

template <int kThreads>
__device__ __forceinline__ void syncAdders() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

// Where four sums lie in shared memory, of a row and of outputs from a multiple of four on: eight rows are
// turned around so that the same outputs of all are in banks of their own.
template <class C>
__device__ __forceinline__ int sumsAt(int row, int output) {
  return row * C::kOutputs + (output ^ (row & 7) << 2);
}

// Of the four lanes that differ in bits 2 and 3, v[i] of the j-th becomes v[j] of the i-th.
__device__ __forceinline__ void transpose(float (&v)[4]) {
  const int lane = threadIdx.x;
  const auto exchange = [&](bool upper, float& first, float& second, int apart) {
    const float got = __shfl_xor_sync(~0u, upper ? first : second, apart);
    (upper ? first : second) = got;
  };
  exchange(lane & 4, v[0], v[1], 4);
  exchange(lane & 4, v[2], v[3], 4);
  exchange(lane & 8, v[0], v[2], 8);
  exchange(lane & 8, v[1], v[3], 8);
}

// The outputs of a block of 64 begin with these for a warp's lanes.
template <class C>
__device__ __forceinline__ int firstOutputOf(int block) {
  const int warp = threadIdx.x / 32;
  return (warp / 4 * C::kBlocks + block) * 64 + warp % 4 * 16;
}

// Sums of rows first .. first + count, to be finished by this block. The numbers of rows are constants.
template <class C>
__device__ __forceinline__ void keepSums(const float (&sums)[C::kBlocks][C::kRows / 2], float* to,
                                         int first, int count) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int block = 0; block < C::kBlocks; block++) {
    int at[4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
      at[j] = sumsAt<C>(lane % 4 * 2 + j % 2, firstOutputOf<C>(block) + lane / 4 + j / 2 * 8);
    }
#pragma unroll
    for (int j = 0; j < count / 2; j++) {
      to[at[j % 4] + j / 4 * 8 * C::kOutputs] = sums[block][first / 2 + j];
    }
  }
}

// Blocks next to each other in a cluster that share a sum over k.
struct Sharers {
  int splits, split;  // how many, and which of them this is
  int firstBlock;     // in the cluster
};

// Each finishes a part of the rows, for which all send it their sums; `summed` counts them. They lie one
// block's behind the other's, in the order of blocks: results do not depend on who came when.
template <class C>
__device__ __forceinline__ void sendSums(const float (&sums)[C::kBlocks][C::kRows / 2], float* to,
                                         uint32_t summed, const Sharers& sharers) {
  const int lane = threadIdx.x % 32, kept = lane / 4 % 4;
  const int row = lane % 4 * 2 + kept % 2;  // of eight
  const int part = C::kRows / sharers.splits;
  const bool whole = part >= 8;  // parts of less than eight rows divide eight
  const uint32_t here = static_cast<uint32_t>(__cvta_generic_to_shared(to));
#pragma unroll
  for (int block = 0; block < C::kBlocks; block++) {
    const int output = firstOutputOf<C>(block) + kept / 2 * 8 + lane / 16 * 4;
    const int at = sumsAt<C>(sharers.split * part + (whole ? row : row & (part - 1)), output);
#pragma unroll
    for (int j = 0; j < C::kRows / 2; j += 4) {
      float v[4] = {sums[block][j], sums[block][j + 1], sums[block][j + 2], sums[block][j + 3]};
      transpose(v);
      const int eight = 2 * j;  // the first of them
      const int of = (whole ? eight : eight + row) * sharers.splits / C::kRows;
      const int before = whole ? eight - of * part : 0;
      const uint32_t there = sharers.firstBlock + of;
      storeThere(blockAddress(here + 4 * (at + before * C::kOutputs), there), v,
                 blockAddress(summed, there));
    }
  }
}

// N outputs of a row of this block's part.
template <class C, int N>
__device__ __forceinline__ void loadSums(const float* from, int splits, int row, int output,
                                         float (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) values[i] = 0.0f;
#pragma unroll
  for (int split = 0; split < splits; split++) {
#pragma unroll
    for (int j = 0; j < N; j += 4) {
      float four[4];
      loadFloats<4>(from + sumsAt<C>(split * (C::kRows / splits) + row, output + j), four);
#pragma unroll
      for (int i = 0; i < 4; i++) values[j + i] += four[i];
    }
  }
}

// The results of a tile whose sums this block has alone. `kept` is for kKeptRows of them.
template <class C>
__device__ __forceinline__ void storeSums(const float (&sums)[C::kBlocks][C::kRows / 2], float* kept,
                                          const Tiles& work, const Results& results, int firstRow,
                                          int firstOutput) {
  constexpr int kThreads = kWarpgroup * C::kWarpgroups, kPacks = C::kOutputs / 8;
#pragma unroll
  for (int first = 0; first < C::kRows; first += C::kKeptRows) {
    if (firstRow + first >= work.rows) break;
    syncAdders<kThreads>();  // all have read what was here before
    keepSums<C>(sums, kept, first, C::kKeptRows);
    syncAdders<kThreads>();
    for (int item = threadIdx.x; item < C::kKeptRows * kPacks; item += kThreads) {
      const int row = item / kPacks, column = item % kPacks * 8;
      if (firstRow + first + row >= work.rows || firstOutput + column >= work.n) continue;
      float values[8];
      loadSums<C>(kept, 1, row, column, values);
      finish(results, firstRow + first + row, firstOutput + column, values);
    }
  }
}

// The same where blocks share sums. `shared` is where the ring was, for kRows * kOutputs floats; all
// threads that multiply come here, and one clusterMeet() of the others with them.
template <class C>
__device__ __forceinline__ void storeSharedSums(const float (&sums)[C::kBlocks][C::kRows / 2],
                                                uint8_t* shared, uint32_t summed, const Tiles& work,
                                                const Results& results, int split, int firstRow,
                                                int firstOutput) {
  constexpr int kThreads = kWarpgroup * C::kWarpgroups, kPacks = C::kOutputs / 8;
  float* const handed = reinterpret_cast<float*>(shared);
  clusterMeet();  // nobody reads a ring any more
  sendSums<C>(sums, handed, summed, {work.splits, split, 0});
  barrierWait(summed, 0);
  const int rowsEach = C::kRows / work.splits;
  for (int item = threadIdx.x; item < rowsEach * kPacks; item += kThreads) {
    const int row = item / kPacks, column = item % kPacks * 8;
    const int64_t outRow = firstRow + split * rowsEach + row;
    const int output = firstOutput + column;
    if (outRow >= work.rows || output >= work.n) continue;
    float values[8];
    loadSums<C>(handed, work.splits, row, column, values);
    finish(results, outRow, output, values);
  }
}

}  // namespace millrace::cuda::hopper
