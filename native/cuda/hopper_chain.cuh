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

// A thread's share of a block's part of a tile, which is kRows rows of `kColumns` results: in each round
// kWidth of a row, always of the same columns. Rounds that are not all there compute with a row that is.
template <class C, int kSplits, int kColumns>
struct Part {
  static constexpr int kRows = C::kRows / kSplits;
  static constexpr int kWidth = kRows * kColumns / 8 >= C::kAdders ? 8 : 4;
  static constexpr int kLanes = kColumns / kWidth;  // that have a row
  static constexpr int kStep = C::kAdders / kLanes;
  static constexpr int kRounds = (kRows + kStep - 1) / kStep;
  static_assert(kLanes <= 32);
  const Tile& tile;
  const int column, output, first, row;
  const bool wanted;

  __device__ __forceinline__ Part(const Tile& tile, int firstOutput)
      : tile(tile),
        column(threadIdx.x % kLanes * kWidth),
        output(firstOutput + column),
        first(threadIdx.x / kLanes),
        row(tile.row + tile.share.split * kRows + first),
        wanted(output < tile.phase.columns) {}
  __device__ __forceinline__ int inPart(int round) const {
    const int at = first + round * kStep;
    return kRows % kStep == 0 ? at : min(at, kRows - 1);
  }
  __device__ __forceinline__ bool there(int round) const {
    return wanted && first + round * kStep < kRows && row + round * kStep < tile.work.rows;
  }
  // Else the loads of its sums would be in the way of others'.
  __device__ __forceinline__ bool warpTakesPart() const { return __any_sync(~0u, there(0)); }
  __device__ __forceinline__ float scale(int round) const {
    return tile.scaleOf(min(row + round * kStep, tile.work.rows - 1));
  }
  // Where there is no bias, zeros.
  __device__ __forceinline__ void loadBias(int output, float (&values)[kWidth]) const {
#pragma unroll
    for (int i = 0; i < kWidth; i++) values[i] = 0.0f;
    if (wanted) addFloats(tile.phase.bias, output, values);
  }
};

template <class C, int kSplits>
__device__ __forceinline__ void storeGated(const Tile& tile, const float* sums) {
  constexpr int kHalf = C::kOutputs / 2;
  using P = Part<C, kSplits, kHalf>;
  constexpr int N = P::kWidth;
  const P part(tile, tile.output / 2);
  if (!part.warpTakesPart()) return;
  const Phase& phase = tile.phase;
  float gateBias[N], upBias[N];
  part.loadBias(part.output, gateBias);
  part.loadBias(phase.columns + part.output, upBias);
  T* out = phase.out + part.row * phase.outStride + part.output;
  const int64_t step = P::kStep * phase.outStride;
#pragma unroll
  for (int round = 0; round < P::kRounds; round++, out += step) {
    float gate[N], up[N];
    loadSums<C>(sums, kSplits, part.inPart(round), part.column, gate);
    loadSums<C>(sums, kSplits, part.inPart(round), kHalf + part.column, up);
    const float scale = part.scale(round);
#pragma unroll
    for (int i = 0; i < N; i++) {
      gate[i] = silu<T>(gate[i] * scale + gateBias[i]) * (up[i] * scale + upBias[i]);
    }
    if (part.there(round)) storeRaw<T, N>(out, pack<T, N>(gate));
  }
}

// Results that are not gated, with what is added to them and multiplied with them, which is on its way
// before the sums are there.
template <class C, int kSplits>
struct Plain : Part<C, kSplits, C::kOutputs> {
  using P = Part<C, kSplits, C::kOutputs>;
  using P::column, P::inPart, P::kRounds, P::output, P::row, P::there, P::tile, P::wanted;
  static constexpr int N = P::kWidth;
  Raw<T, N> residual[kRounds];
  float bias[N], weight[N];

  __device__ __forceinline__ explicit Plain(const Tile& tile) : P(tile, tile.output) {
    const Phase& phase = tile.phase;
    if (phase.normed && wanted) loadFloats<N>(phase.normWeight + output, weight);
    this->loadBias(output, bias);
    const T* from = phase.residual + row * phase.residualStride + output;
    const int64_t step = P::kStep * phase.residualStride;
#pragma unroll
    for (int round = 0; round < kRounds; round++, from += step) {
      residual[round] = {};
      // Past this SM's first cache: other blocks may have written them since the kernel began.
      if (phase.residual && there(round)) residual[round] = __ldcg(reinterpret_cast<const Raw<T, N>*>(from));
    }
  }

  template <bool kNormed>
  __device__ __forceinline__ void store(const float* sums) const {
    if (!this->warpTakesPart()) return;
    const Phase& phase = tile.phase;
    const int parts = (phase.columns + C::kOutputs - 1) / C::kOutputs;
    T* out = phase.out + row * phase.outStride + output;
    T* normed = phase.normed + row * phase.normedStride + output;
    float* squaresTo = tile.squares + row * parts + tile.output / C::kOutputs;
    const int64_t step = P::kStep * phase.outStride, normedStep = P::kStep * phase.normedStride;
#pragma unroll
    for (int round = 0; round < kRounds; round++) {
      float values[N], more[N];
      loadSums<C>(sums, kSplits, inPart(round), column, values);
      unpack<T, N>(residual[round], more);  // zeros without a residual
      const float scale = this->scale(round);
#pragma unroll
      for (int i = 0; i < N; i++) values[i] = values[i] * scale + bias[i] + more[i];
      const Raw<T, N> rounded = pack<T, N>(values);
      if (there(round)) storeRaw<T, N>(out + round * step, rounded);
      if constexpr (kNormed) {
        float squares = 0.0f;
        unpack<T, N>(rounded, values);
#pragma unroll
        for (int i = 0; i < N; i++) {
          squares += values[i] * values[i];
          values[i] *= weight[i];
        }
        if (there(round)) storeRaw<T, N>(normed + round * normedStep, pack<T, N>(values));
        if (!there(round)) squares = 0.0f;
        // All lanes of a warp come here.
#pragma unroll
        for (int apart = P::kLanes / 2; apart > 0; apart /= 2) {
          squares += __shfl_xor_sync(~0u, squares, apart);
        }
        if (there(round) && column == 0) squaresTo[round * P::kStep * parts] = squares;
      }
    }
  }
};

// The sums of a tile become results.
template <class C, int kSplits>
__device__ __forceinline__ void finish(const float (&sums)[1][C::kRows / 2], const Tile& tile, float* handed,
                                       uint32_t summed, uint32_t scaled) {
  const auto exchange = [&] {
    if constexpr (kSplits == 1) {
      syncAdders<C::kAdders>();  // all have read what was here before
      keepSums<C>(sums, handed, 0, C::kRows);
      syncAdders<C::kAdders>();
    } else {
      sendSums<C>(sums, handed, summed, {kSplits, tile.share.split, tile.share.firstBlock});
      barrierWait(summed, 0);
    }
    if (tile.scales) barrierWait(scaled, 0);
  };
  if (tile.phase.gated) {
    exchange();
    return storeGated<C, kSplits>(tile, handed);
  }
  const Plain<C, kSplits> results(tile);
  exchange();
  if (tile.phase.normed) results.template store<true>(handed);
  else results.template store<false>(handed);
}

}  // namespace millrace::cuda::hopper::chain
