// What products by wgmma with outputs as rows of its tile have in common: the ring, its products, and
// the way of the sums to where they go. C, a kernel's configuration, has kRows (of x), kWarpgroups,
// kBlocks (of 64 outputs, for each warpgroup), kOutputs (of all of them), and of the ring kStages and
// kStageBytes; for sumStages T, kWeightBytes and kSets; for storeSums kKeptRows (rows that are turned
// around at a time, a multiple of eight).
#pragma once
#include "best_key.cuh"
#include "elements.h"
#include "hopper.cuh"
#include "launch.h"

namespace millrace::cuda::hopper {

// Threads, and the outputs of one product.
constexpr int kWarpgroup = 128, kWarpgroupOutputs = 64;
// Bytes of shared memory of an SM, and what of it the system takes for each block.
constexpr int kSharedOfSm = 228 * 1024, kSharedOfBlock = 1024;
// For the barriers of a ring of up to 16 stages; for the one for other blocks' sums, behind them.
constexpr int kRingBarrierBytes = 256, kSummedBytes = 16;

struct Tiles {
  int n, rows;
  int rowTiles, tiles;
  int splits;  // blocks that share a sum over k, a cluster
};

// The first row of x and the first output of a tile.
template <class C>
__device__ __forceinline__ int rowOf(int tile, int rowTiles) {
  return tile % rowTiles * C::kRows;
}
template <class C>
__device__ __forceinline__ int outputOf(int tile, int rowTiles) {
  return tile / rowTiles * C::kOutputs;
}

// Blocks next to each other in a cluster that share a sum over k.
struct Sharers {
  int splits, split;  // how many (a power of two), and which of them this is
  int firstBlock;     // in the cluster
};

// What a block has of a product.
struct Share : Sharers {
  int tile, tilesAtOnce;  // its first, and from one to the next
  int begin, steps;       // of k
};

__device__ __forceinline__ Share shareOf(const Tiles& work, int steps) {
  Share share;
  share.splits = work.splits;
  share.split = blockIdx.x % work.splits;
  share.firstBlock = 0;
  share.tile = blockIdx.x / work.splits;
  share.tilesAtOnce = gridDim.x / work.splits;
  share.begin = steps * share.split / work.splits;
  share.steps = steps * (share.split + 1) / work.splits - share.begin;
  return share;
}

struct Results {
  const float *weightScales, *xScales, *bias;
  const void* residual;
  void* out;
  int64_t residualStride, outStride;
  Elem elem;
  // Not null: the best of every kBestWidth outputs is wanted instead of all, [rows, bestsOf(n)].
  BestKey* bests = nullptr;
};

// N of the floats, if there are any.
template <int N>
__device__ __forceinline__ void addFloats(const float* from, int at, float (&values)[N]) {
  if (!from) return;
  float more[N];
  loadFloats<N>(from + at, more);
#pragma unroll
  for (int i = 0; i < N; i++) values[i] += more[i];
}

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

// By eight threads that follow one another, of which each has eight outputs of a row: the best of all.
__device__ __forceinline__ void storeBest(const Results& results, int64_t row, int n, int output,
                                          const float (&values)[8]) {
  static_assert(kBestWidth == 8 * 8);
  Best best;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    if (output < n) best.offer(values[i], output + i);
  }
  BestKey key = best.key();
#pragma unroll
  for (int apart = 1; apart < 8; apart *= 2) {
    key = max(key, __shfl_xor_sync(0xffu << (threadIdx.x & 24), key, apart));
  }
  if (threadIdx.x % 8 > 0 || output >= n) return;  // a tile may end past the last outputs
  results.bests[row * bestsOf(n) + output / kBestWidth] = key;
}

// Scales, biases and residuals.
__device__ __forceinline__ void complete(const Results& results, int64_t row, int output, float (&values)[8]) {
  if (results.weightScales) {
    float scales[8];
    loadFloats<8>(results.weightScales + output, scales);
    const float scale = results.xScales[row];
#pragma unroll
    for (int i = 0; i < 8; i++) values[i] *= scale * scales[i];
  }
  addFloats(results.bias, output, values);
  if (results.residual) {
    add8(results.elem, results.residual, row * results.residualStride + output, values);
  }
}

// Dynamic shared memory from where swizzled tiles may lie; kernels ask for 1024 bytes more than these.
__device__ __forceinline__ uint8_t* alignedShared() {
  extern __shared__ uint8_t raw[];
  return raw + (-static_cast<uint32_t>(__cvta_generic_to_shared(raw)) & 1023);
}

// Stages in shared memory that one thread fills and others empty, with their barriers behind them. The
// place is that of the thread whose copy of this it is.
template <class C>
struct Ring {
  static constexpr int kStages = C::kStages;
  static constexpr int kBytes = kStages * C::kStageBytes + kRingBarrierBytes;
  static_assert(16 * kStages <= kRingBarrierBytes);
  uint32_t stages;
  int stage = 0;        // the place
  uint32_t parity = 0;  // whether it comes around for the odd time
  bool again = false;   // whether it comes around at all

  __device__ __forceinline__ explicit Ring(const uint8_t* shared)
      : stages(static_cast<uint32_t>(__cvta_generic_to_shared(shared))) {}

  // By one thread. A stage may be filled again once `emptiers` have released it.
  __device__ __forceinline__ void init(int emptiers) const {
    for (int i = 0; i < kStages; i++) {
      barrierInit(full(i), 1);
      barrierInit(empty(i), emptiers);
    }
  }
  __device__ __forceinline__ uint32_t at(int stage) const { return stages + stage * C::kStageBytes; }
  __device__ __forceinline__ uint32_t full(int stage) const {
    return stages + kStages * C::kStageBytes + 16 * stage;
  }
  __device__ __forceinline__ uint32_t empty(int stage) const { return full(stage) + 8; }
  __device__ __forceinline__ uint32_t behind() const { return stages + kBytes; }
  // Of its place:
  __device__ __forceinline__ uint32_t at() const { return at(stage); }
  __device__ __forceinline__ uint32_t full() const { return full(stage); }
  __device__ __forceinline__ void waitEmpty() const {
    if (again) barrierWait(empty(stage), parity ^ 1);
  }
  __device__ __forceinline__ void waitFull() const { barrierWait(full(), parity); }
  // The stage is full when so many bytes have come.
  __device__ __forceinline__ void expect(uint32_t bytes) const { barrierExpect(full(), bytes); }
  __device__ __forceinline__ void next() {
    if (++stage < kStages) return;
    stage = 0;
    parity ^= 1;
    again = true;
  }
  // A stage may be filled again, as far as it is up to this thread.
  __device__ __forceinline__ void release(int stage) const { barrierArrive(empty(stage)); }
};

// The start of all blocks that share a sum: none is written to before. `summed` is for the sums that
// these send each other.
template <class C>
__device__ __forceinline__ void startRing(const Ring<C>& ring, int emptiers, uint32_t summed,
                                          int splits) {
  if (threadIdx.x == 0) {
    ring.init(emptiers);
    barrierInit(summed, 1);
    barrierExpect(summed, C::kRows * C::kOutputs * 4);
    barrierInitFence();
  }
  if (splits > 1) {
    clusterMeet();
  } else {
    __syncthreads();
  }
}

// By one thread: the weight and x of this block's tiles go to the ring, a step of k to each stage.
// copyWeight(ring, step, output) expects the bytes of both. `early`: the weight was there before the
// previous kernel.
template <class C, class CopyWeight, class CopyX>
__device__ __forceinline__ void fillRing(Ring<C> ring, const Tiles& work, const Share& share, bool early,
                                         const CopyWeight& copyWeight, const CopyX& copyX) {
  const int end = share.begin + share.steps;
  int ahead = early ? min(share.steps, C::kStages) : 0;
  const int firstOutput = outputOf<C>(share.tile, work.rowTiles);
  for (Ring<C> to = ring; to.stage < ahead; to.stage++) {
    copyWeight(to, share.begin + to.stage, firstOutput);
  }
  waitForPrevious();
  for (int tile = share.tile; tile < work.tiles; tile += share.tilesAtOnce) {
    const int row = rowOf<C>(tile, work.rowTiles), output = outputOf<C>(tile, work.rowTiles);
    for (int step = share.begin; step < end; step++, ring.next()) {
      ring.waitEmpty();
      if (ahead > 0) {
        ahead--;
      } else {
        copyWeight(ring, step, output);
      }
      copyX(ring, step, row);
    }
  }
}

// Sums the products of the next `count` stages, with kRows of x that lie at `x` in a stage. Those of 32 bytes of k
// go to kSets sums in turn, and in the end the first of these has all.
template <class C, class R>
__device__ __forceinline__ void sumStages(Ring<R>& ring, int count,
                                          float (&sums)[C::kSets][C::kBlocks][C::kRows / 2], uint32_t x) {
  const int group = threadIdx.x / kWarpgroup;
  // Returns the stage.
  const auto multiply = [&](bool starts) {
    const int used = ring.stage;
    const uint32_t stage = ring.at();
    ring.waitFull();
    ring.next();
    productsBegin();
#pragma unroll
    for (int block = 0; block < C::kBlocks; block++) {
      const uint64_t a = rowsOf128Bytes(stage + (group * C::kBlocks + block) * kWarpgroupOutputs * kTileWidth);
      const uint64_t b = rowsOf128Bytes(stage + x);
#pragma unroll
      for (int k = 0; k < kTileWidth / 32; k++) {  // 32 bytes on: 2 in a descriptor's address
        Products<typename C::T, C::kRows>::add(sums[k % C::kSets][block], a + 2 * k, b + 2 * k,
                                               !starts || k >= C::kSets);
      }
    }
    productsCommit();
    return used;
  };
  const auto release = [&](int stage) {
    if (threadIdx.x % kWarpgroup == 0) ring.release(stage);
  };
  int last = multiply(true);
  for (int i = 1; i < count; i++) {
    const int used = multiply(false);
    productsWait<1>();
    release(last);
    last = used;
  }
  productsWait<0>();
  release(last);
#pragma unroll
  for (int set = 0; set < C::kSets; set++) {
#pragma unroll
    for (int block = 0; block < C::kBlocks; block++) {
      holdRegisters(sums[set][block]);
      if (set == 0) continue;
#pragma unroll
      for (int j = 0; j < C::kRows / 2; j++) sums[0][block][j] += sums[set][block][j];
    }
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
  return (warp / 4 * C::kBlocks + block) * kWarpgroupOutputs + warp % 4 * 16;
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

// Each finishes a part of the rows, for which all send it their sums; `summed` counts them. They lie one
// block's behind the other's, in the order of blocks: results do not depend on who came when.
template <class C>
__device__ __forceinline__ void sendSums(const float (&sums)[C::kBlocks][C::kRows / 2], float* to,
                                         uint32_t summed, const Sharers& sharers) {
  const int lane = threadIdx.x % 32, kept = lane / 4 % 4;
  const int row = lane % 4 * 2 + kept % 2;  // of eight
  const int part = C::kRows >> (31 - __clz(sharers.splits));
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

// The results of `count` rows whose sums lie at `from`.
template <class C>
__device__ __forceinline__ void finishSums(const float* from, int splits, int count, const Tiles& work,
                                           const Results& results, int firstRow, int firstOutput) {
  constexpr int kThreads = kWarpgroup * C::kWarpgroups, kPacks = C::kOutputs / 8;
  for (int item = threadIdx.x; item < count * kPacks; item += kThreads) {
    const int row = item / kPacks, column = item % kPacks * 8;
    const bool there = firstOutput + column < work.n;
    if (firstRow + row >= work.rows || !(there || results.bests)) continue;
    const int64_t at = firstRow + row;
    float values[8];
    loadSums<C>(from, splits, row, column, values);
    if (there) complete(results, at, firstOutput + column, values);
    if (results.bests) storeBest(results, at, work.n, firstOutput + column, values);
    else store8(results.elem, results.out, at * results.outStride + firstOutput + column, values);
  }
}

// The results of a tile whose sums this block has alone. `kept` is for kKeptRows of them.
template <class C>
__device__ __forceinline__ void storeSums(const float (&sums)[C::kBlocks][C::kRows / 2], float* kept,
                                          const Tiles& work, const Results& results, int tile) {
  constexpr int kThreads = kWarpgroup * C::kWarpgroups;
  const int row = rowOf<C>(tile, work.rowTiles), output = outputOf<C>(tile, work.rowTiles);
#pragma unroll
  for (int first = 0; first < C::kRows; first += C::kKeptRows) {
    if (row + first >= work.rows) break;
    syncAdders<kThreads>();  // all have read what was here before
    keepSums<C>(sums, kept, first, C::kKeptRows);
    syncAdders<kThreads>();
    finishSums<C>(kept, 1, C::kKeptRows, work, results, row + first, output);
  }
}

// The same where blocks share sums. `shared` is where the ring was, for kRows * kOutputs floats; all
// threads that multiply come here, and one clusterMeet() of the others with them.
template <class C>
__device__ __forceinline__ void storeSharedSums(const float (&sums)[C::kBlocks][C::kRows / 2],
                                                uint8_t* shared, uint32_t summed, const Tiles& work,
                                                const Results& results, const Share& share) {
  float* const handed = reinterpret_cast<float*>(shared);
  const int row = rowOf<C>(share.tile, work.rowTiles), output = outputOf<C>(share.tile, work.rowTiles);
  const int rowsEach = C::kRows / share.splits;
  clusterMeet();  // nobody reads a ring any more
  sendSums<C>(sums, handed, summed, share);
  barrierWait(summed, 0);
  finishSums<C>(handed, share.splits, rowsEach, work, results, row + share.split * rowsEach, output);
}

}  // namespace millrace::cuda::hopper
