// What blocks of a chain of products say to each other, and the way of their sums to the results. C, a
// kernel's configuration, has what hopper_tiles.cuh wants, and kAdders (threads that multiply).
#pragma once
#include "hopper.cuh"
#include "hopper.h"
#include "hopper_chain.h"
#include "hopper_tiles.cuh"

namespace millrace::cuda::hopper::chain {

using T = __nv_bfloat16;
constexpr int kColumns = kTileWidth / sizeof(T);  // of k in a tile
// Blocks that have done with each phase, then blocks that have left.
constexpr int kCounters = kChainPhases + 1;
constexpr size_t kCounterBytes = 256;

struct Phase {
  CUtensorMap weight, x;
  int columns;    // of out
  int inputs;     // k
  int steps;      // tiles of k
  int tiles;      // of results, row tiles of the same outputs one after the other
  int splitShift;  // 2 to this power blocks of a cluster share a sum over k
  int arrivals;   // blocks that have a part in it
  int parts;      // sums of squares in a row of the phase before
  bool gated, scaled;
  float eps;
  const float *bias, *normWeight;
  const T* residual;
  T *out, *normed;
  int64_t residualStride, outStride, normedStride;
};

struct Work {
  Phase phases[kChainPhases];
  int count, rows, rowTiles, cluster;  // cluster: a power of two
  unsigned int* counters;
  float* squares[2];  // [rows, parts], of phases in turn
};

// ---------------------------------------------------------------- between blocks

__device__ __forceinline__ void arriveAt(unsigned int* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
__device__ __forceinline__ void awaitCount(const unsigned int* counter, unsigned int count) {
  unsigned int seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
  } while (seen < count);
}
// The copy engine, too, reads what this thread has been told is stored in global memory.
__device__ __forceinline__ void fenceGlobalForAsync() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

// ---------------------------------------------------------------- results

__device__ __forceinline__ Share shareOf(const Work& work, const Phase& phase) {
  Share share;
  const int shift = phase.splitShift;
  share.splits = 1 << shift;
  share.tile = blockIdx.x >> shift;
  share.tilesAtOnce = gridDim.x >> shift;
  share.split = blockIdx.x & (share.splits - 1);
  share.firstBlock = (blockIdx.x & (work.cluster - 1)) - share.split;
  share.begin = phase.steps * share.split >> shift;
  share.steps = (phase.steps * (share.split + 1) >> shift) - share.begin;
  return share;
}

// A tile's place in the results, and what its sums are to become.
struct Tile {
  const Work& work;
  const Phase& phase;
  const Share& share;
  int row, output;
  const float* scales;  // null: as they are
  float* squares;
  __device__ __forceinline__ float scaleOf(int row) const { return scales ? scales[row] : 1.0f; }
};

// Adds the sums of blocks kFrom .. kTo - 1, which lie `rows` rows behind one another, of eight outputs of a row.
template <class C, int kFrom, int kTo>
__device__ __forceinline__ void addSums(const float* sums, int rows, int row, int output,
                                        float (&values)[8]) {
#pragma unroll
  for (int block = kFrom; block < kTo; block++) {
#pragma unroll
    for (int j = 0; j < 8; j += 4) {
      float four[4];
      loadFloats<4>(sums + sumsAt<C>(block * rows + row, output + j), four);
#pragma unroll
      for (int i = 0; i < 4; i++) values[j + i] += four[i];
    }
  }
}

// A thread's share of a block's part of a tile: in each round eight results of a row, always of the same columns.
// One code in a loop for every way to divide a product: attention drives a chain's instructions out of the
// caches between one layer and the next, and those that are executed once are waited for.
template <class C>
class Part {
 public:
  // Biases and the norm's weights are on their way from here on.
  __device__ __forceinline__ explicit Part(const Tile& tile)
      : tile_(tile),
        rows_(C::kRows >> tile.phase.splitShift),
        lanesShift_((C::kOutputs == 128 ? 4 : 3) - tile.phase.gated),
        column_((threadIdx.x & ((1 << lanesShift_) - 1)) * N),
        output_((tile.phase.gated ? tile.output / 2 : tile.output) + column_),
        first_(threadIdx.x >> lanesShift_),
        step_(C::kAdders >> lanesShift_),
        row_(tile.row + tile.share.split * rows_ + first_) {
    const Phase& phase = tile.phase;
#pragma unroll
    for (int i = 0; i < N; i++) bias_[i] = more_[i] = 0.0f;
    if (output_ >= phase.columns) return;
    const float* const ofUps = phase.bias ? phase.bias + phase.columns : nullptr;
    const float* const more = phase.gated ? ofUps : phase.normWeight;
    if (phase.bias) loadFloats<N>(phase.bias + output_, bias_);
    if (more) loadFloats<N>(more + output_, more_);
  }

  // And these, once what other blocks have stored is there.
  __device__ __forceinline__ void loadResiduals() {
#pragma unroll
    for (int round = 0; round < 2; round++) residual_[round] = residualOf(round);
  }

  __device__ __forceinline__ void store(const float* sums) {
    const Phase& phase = tile_.phase;
    const int parts = (phase.columns + C::kOutputs - 1) / C::kOutputs;
#pragma unroll 1
    for (int round = 0; __any_sync(~0u, there(round)); round++) {
      const int inPart = min(first_ + round * step_, rows_ - 1);  // lanes without a row read another's
      const int row = min(row_ + round * step_, tile_.work.rows - 1);
      const float scale = tile_.scaleOf(row);
      float values[N], others[N];
      load(sums, inPart, column_, values);
      if (phase.gated) {
        load(sums, inPart, C::kOutputs / 2 + column_, others);
#pragma unroll
        for (int i = 0; i < N; i++) {
          values[i] = silu<T>(values[i] * scale + bias_[i]) * (others[i] * scale + more_[i]);
        }
      } else {
        unpack<T, N>(residual_[0], others);  // zeros without a residual
        residual_[0] = residual_[1];
        residual_[1] = residualOf(round + 2);
#pragma unroll
        for (int i = 0; i < N; i++) values[i] = values[i] * scale + bias_[i] + others[i];
      }
      const Raw<T, N> rounded = pack<T, N>(values);
      if (there(round)) storeRaw<T, N>(phase.out + row * phase.outStride + output_, rounded);
      if (!phase.normed) continue;
      unpack<T, N>(rounded, values);
      float squares = 0.0f;
#pragma unroll
      for (int i = 0; i < N; i++) {
        squares += values[i] * values[i];
        values[i] *= more_[i];
      }
      if (!there(round)) squares = 0.0f;
      else storeRaw<T, N>(phase.normed + row * phase.normedStride + output_, pack<T, N>(values));
#pragma unroll
      for (int apart = C::kOutputs / N / 2; apart > 0; apart /= 2) {
        squares += __shfl_xor_sync(~0u, squares, apart);
      }
      if (there(round) && column_ == 0) {
        tile_.squares[row * parts + tile_.output / C::kOutputs] = squares;
      }
    }
  }

 private:
  static constexpr int N = 8;
  static_assert(C::kOutputs == 64 || C::kOutputs == 128);

  __device__ __forceinline__ bool there(int round) const {
    return output_ < tile_.phase.columns && first_ + round * step_ < rows_ &&
           row_ + round * step_ < tile_.work.rows;
  }
  // Past this SM's first cache: other blocks may have written them since the kernel began.
  __device__ __forceinline__ Raw<T, N> residualOf(int round) const {
    const Phase& phase = tile_.phase;
    if (!phase.residual || !there(round)) return {};
    const T* from = phase.residual + (row_ + round * step_) * phase.residualStride + output_;
    return __ldcg(reinterpret_cast<const Raw<T, N>*>(from));
  }
  __device__ __forceinline__ void load(const float* sums, int row, int output, float (&values)[N]) const {
    const int splits = tile_.share.splits;
#pragma unroll
    for (int i = 0; i < N; i++) values[i] = 0.0f;
    addSums<C, 0, 1>(sums, rows_, row, output, values);
    if (splits > 1) addSums<C, 1, 2>(sums, rows_, row, output, values);
    if (splits > 2) addSums<C, 2, 4>(sums, rows_, row, output, values);
    if (splits > 4) addSums<C, 4, 8>(sums, rows_, row, output, values);
  }

  const Tile& tile_;
  const int rows_, lanesShift_;  // of the part; 2 to this power lanes have a row
  const int column_, output_, first_, step_, row_;
  float bias_[N], more_[N];  // more: the ups' biases, or the weights of the norm
  Raw<T, N> residual_[2];    // of the next rounds
};

// The sums of a tile become results.
template <class C>
__device__ __forceinline__ void finish(const float (&sums)[1][C::kRows / 2], Part<C>& part, const Tile& tile,
                                       float* handed, uint32_t summed, uint32_t scaled) {
  part.loadResiduals();
  if (tile.share.splits == 1) {
    syncAdders<C::kAdders>();  // all have read what was here before
    keepSums<C>(sums, handed, 0, C::kRows);
    syncAdders<C::kAdders>();
  } else {
    sendSums<C>(sums, handed, summed, tile.share);
    barrierWait(summed, 0);
  }
  if (tile.scales) barrierWait(scaled, 0);
  part.store(handed);
}

}  // namespace millrace::cuda::hopper::chain
