// What the sampling kernels share: the scratch, reading a row in tiles, and the numbers of
// docs/sampling.md. Float operations that the page fixes are written as intrinsics that the compiler
// may not contract.
#pragma once
#include <cuda_runtime.h>

#include "best_key.cuh"
#include "kernels.h"

namespace millrace::cuda::sampling {

using u64 = unsigned long long;

// A warp reads a tile at a time: eight 16-byte loads a lane, all in flight at once.
constexpr int kTile = 1024;
constexpr int kVectors = kTile / 128;
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kBins = 2048;        // of the scaled logit, evenly over -22 .. 0
constexpr int kListed = 2048;      // candidates at the edge of the kept set that are listed at most
constexpr int kIdBits = 18;        // vocab <= 2^18
constexpr int kMaxVocab = 1 << kIdBits;
constexpr int kMaxTiles = kMaxVocab / kTile + 1;
constexpr int kTopList = 20;       // MAX_LOGPROBS of src/backend/backend.ts
constexpr unsigned kLowestKey = 0x41b00000;  // keyOf(-22): what is below weighs nothing

// Rows need not be aligned to 16 bytes: a row's tiles start at the aligned address before it.
inline int tilesOf(int vocab) { return (vocab + 3 + kTile - 1) / kTile; }

enum class Kind : int { Done, Plain, Filtered };

// One row's way through the kernels.
struct RowState {
  Kind kind;
  float max;
  unsigned maxKey;       // kept tokens have keyOf(y) <= maxKey
  int restBin;           // weights from this bin on are only summed: top_p never reaches them
  u64 rest;              // their sum
  int cutsCount;         // whether top_k drops anything
  int cutsWeight;        // whether top_p may
  int countBin;          // the bin that top_k ends in, and what lies before it
  u64 countBefore;
  u64 countWeightBefore;
  u64 weightTotal;       // without a cut by top_k: the sum of the weights
  int firstBin, lastBin; // top_p, or top_k alone, ends in one of these
  u64 weightBefore;      // of the bins before firstBin
  int overflow;          // more candidates than the list holds: they are read from the row
  int listed;
};

struct Scratch {
  RowState* states;      // [rows]
  u64* tileKeys;         // [rows, tiles] of the tile's best
  u64* tileSums;         // [rows, tiles] sums of kept weights
  u64* binWeights;       // [rows, kBins]
  unsigned* binCounts;   // [rows, kBins]
  u64* list;             // [rows, kListed] rankOf of the candidates
  float2* tileExps;      // [rows, tiles] maximum, and sum of exp(l - maximum)
  int* tileAbove;        // [rows, tiles] logits above the token's
  int tiles;
};

// Lays the arrays out from `base`; returns the bytes used.
inline size_t layOut(char* base, int vocab, int rows, Scratch& s) {
  size_t at = 0;
  const auto take = [&](size_t bytes) {
    char* p = base + at;
    at += (bytes + 255) / 256 * 256;
    return p;
  };
  s.tiles = tilesOf(vocab);
  const size_t perTile = size_t(rows) * s.tiles, perBin = size_t(rows) * kBins;
  s.states = reinterpret_cast<RowState*>(take(rows * sizeof(RowState)));
  s.tileKeys = reinterpret_cast<u64*>(take(perTile * 8));
  s.tileSums = reinterpret_cast<u64*>(take(perTile * 8));
  s.binWeights = reinterpret_cast<u64*>(take(perBin * 8));
  s.binCounts = reinterpret_cast<unsigned*>(take(perBin * 4));
  s.list = reinterpret_cast<u64*>(take(size_t(rows) * kListed * 8));
  s.tileExps = reinterpret_cast<float2*>(take(perTile * 8));
  s.tileAbove = reinterpret_cast<int*>(take(perTile * 4));
  return at;
}

// ---------------------------------------------------------------- reading a row

__device__ inline float negativeInfinity() { return __int_as_float(0xff800000); }

struct Row {
  const float* x;
  int vocab;
  int shift;  // floats between the aligned address and the row

  __device__ Row(const float* logits, int64_t stride, int vocab, int row)
      : x(logits + row * stride), vocab(vocab), shift(int(reinterpret_cast<uintptr_t>(x) >> 2 & 3)) {}

  __device__ int tileOf(int id) const { return (id + shift) / kTile; }
  // Id of the first of the lane's four values in vector `j` of a tile. Negative or beyond the
  // vocabulary for places outside of the row.
  __device__ int idAt(int tile, int j, int lane) const {
    return tile * kTile + j * 128 + lane * 4 - shift;
  }
  // Four values; -infinity outside of the row.
  __device__ float4 load(int id) const {
    if (id >= 0 && id + 3 < vocab) return *reinterpret_cast<const float4*>(x + id);
    const auto at = [&](int i) { return i >= 0 && i < vocab ? x[i] : negativeInfinity(); };
    return make_float4(at(id), at(id + 1), at(id + 2), at(id + 3));
  }
};

struct Tile {
  float4 values[kVectors];

  __device__ Tile(const Row& row, int tile, int lane) {
#pragma unroll
    for (int j = 0; j < kVectors; j++) values[j] = row.load(row.idAt(tile, j, lane));
  }
  // use(value, id), ids ascending within a lane. Places outside of the row give -infinity.
  template <class Use>
  __device__ void each(const Row& row, int tile, int lane, Use use) const {
#pragma unroll
    for (int j = 0; j < kVectors; j++) {
      const int id = row.idAt(tile, j, lane);
      use(values[j].x, id);
      use(values[j].y, id + 1);
      use(values[j].z, id + 2);
      use(values[j].w, id + 3);
    }
  }
};

// ---------------------------------------------------------------- numbers

__device__ inline float scaled(float x, float max, float temperature) {
  return __fdiv_rn(__fsub_rn(x, max), temperature);
}
// For y <= 0: ascends where y descends.
__device__ inline unsigned keyOf(float y) { return __float_as_uint(y) & 0x7fffffffu; }
__device__ inline float scaledOfKey(unsigned key) { return -__uint_as_float(key); }
// Bin of a key up to kLowestKey. Monotone, as each of the two operations is.
__device__ inline int binOf(unsigned key) {
  return int(__fmul_rn(__uint_as_float(key), float(kBins - 1) / 22.0f));
}
// Place in the order (y descending, id ascending).
__device__ inline u64 rankOf(unsigned key, int id) { return u64(key) << kIdBits | unsigned(id); }
__device__ inline unsigned keyOfRank(u64 rank) { return unsigned(rank >> kIdBits); }
__device__ inline int idOfRank(u64 rank) { return int(rank & (kMaxVocab - 1)); }

// Section 7.
__device__ inline unsigned weightOf(float y) {
  if (y < -22.0f) return 0;
  const float n = __fsub_rn(__fadd_rn(__fmul_rn(y, 1.44269504f), 12582912.0f), 12582912.0f);
  float r = __fsub_rn(y, __fmul_rn(n, 0.693359375f));
  r = __fsub_rn(r, __fmul_rn(n, -2.12194440e-4f));
  float p = float(1.0 / 5040);
  p = __fadd_rn(__fmul_rn(p, r), float(1.0 / 720));
  p = __fadd_rn(__fmul_rn(p, r), float(1.0 / 120));
  p = __fadd_rn(__fmul_rn(p, r), float(1.0 / 24));
  p = __fadd_rn(__fmul_rn(p, r), float(1.0 / 6));
  p = __fadd_rn(__fmul_rn(p, r), 0.5f);
  p = __fadd_rn(__fmul_rn(p, r), 1.0f);
  p = __fadd_rn(__fmul_rn(p, r), 1.0f);
  const float power = __int_as_float((int(n) + 30 + 127) << 23);
  return __float2uint_rn(__fmul_rn(p, power));
}

// ---------------------------------------------------------------- reductions

__device__ inline u64 warpMax(u64 value) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) {
    const u64 other = __shfl_xor_sync(~0u, value, d);
    value = other > value ? other : value;
  }
  return value;
}
__device__ inline float warpMax(float value) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) value = fmaxf(value, __shfl_xor_sync(~0u, value, d));
  return value;
}
template <class T>
__device__ inline T warpSum(T value) {
#pragma unroll
  for (int d = 16; d > 0; d >>= 1) value += __shfl_xor_sync(~0u, value, d);
  return value;
}
__device__ inline u64 warpScan(u64 value, int lane) {
#pragma unroll
  for (int d = 1; d < 32; d <<= 1) {
    const u64 other = __shfl_up_sync(~0u, value, d);
    if (lane >= d) value += other;
  }
  return value;
}

// Shared memory of the block-wide functions. All threads of a block of kThreads call them, and what
// they return is the same in all.
struct BlockScratch {
  u64 warps[kWarps];
  double doubles[kWarps];
  u64 found[2];
};

template <class T, class Join>
__device__ inline T blockReduce(T value, T* warps, Join join) {
  __syncthreads();  // earlier readers of warps
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  T all = warps[0];
  for (int w = 1; w < kWarps; w++) all = join(all, warps[w]);
  return all;
}
__device__ inline u64 blockMax(u64 value, BlockScratch& b) {
  return blockReduce(warpMax(value), b.warps, [](u64 x, u64 y) { return x > y ? x : y; });
}
__device__ inline u64 blockSum(u64 value, BlockScratch& b) {
  return blockReduce(warpSum(value), b.warps, [](u64 x, u64 y) { return x + y; });
}
__device__ inline double blockSum(double value, BlockScratch& b) {
  return blockReduce(warpSum(value), b.doubles, [](double x, double y) { return x + y; });
}

struct Found {
  int index;
  u64 before;
};
// The first of `values` (shared or global, n of them) at which the running sum is at least `target`,
// and the sum before it; n and the whole sum if it never is. target >= 1.
__device__ inline Found blockFind(const u64* values, int n, u64 target, BlockScratch& b) {
  const int each = (n + kThreads - 1) / kThreads;
  const int begin = min(n, int(threadIdx.x) * each), end = min(n, begin + each);
  u64 own = 0;
  for (int i = begin; i < end; i++) own += values[i];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const u64 inclusive = warpScan(own, lane);
  __syncthreads();
  if (lane == 31) b.warps[warp] = inclusive;
  if (threadIdx.x == 0) b.found[0] = u64(n);
  __syncthreads();
  u64 before = inclusive - own, total = 0;
  for (int w = 0; w < kWarps; w++) {
    if (w < warp) before += b.warps[w];
    total += b.warps[w];
  }
  if (before < target && before + own >= target) {
    int i = begin;
    while (before + values[i] < target) before += values[i++];
    b.found[0] = u64(i);
    b.found[1] = before;
  }
  __syncthreads();
  Found found{int(b.found[0]), b.found[1]};
  if (found.index == n) found.before = total;
  return found;
}

}  // namespace millrace::cuda::sampling
