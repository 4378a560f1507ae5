// What the warps of a block of attention_prefill_hopper.cu agree on: sizes and places in shared memory,
// what is worked on, and rings of tiles.
#pragma once
#include "attention_mma.cuh"
#include "attention_prefill.cuh"
#include "e4m3.cuh"
#include "hopper.cuh"
#include "hopper.h"

namespace millrace::cuda::hopper_prefill {

constexpr int kWarpgroup = 128;
// The tokens of a copy: whatever the size of the cache's blocks, so many lie together.
constexpr int kBox = 16;
// Units that are described at a time, each by a lane; 32 would leave no room for staging.
constexpr int kBatch = 16;
// Warps that convert e4m3.
constexpr int kConverters = 2;

// An item and a KV head.
struct Unit {
  int queryRow;       // of q and out: the first token of the sequence's chunk
  int firstPosition;  // of that token
  int rowBegin, rows;
  int keyBegin, keyEnd;
  int lowKey;  // the first that any row sees; memory before it may be another sequence's by now
  int table;   // where its block ids begin
  int kvHead;
  int part, parts, slot;
};
static_assert(sizeof(Unit) % 16 == 0);

template <typename T_, bool kFp8_, int kDim_>
struct Config {
  using T = T_;
  static constexpr bool kFp8 = kFp8_;
  using Factor = typename ComputeOf<T, kFp8>::Type;  // what products multiply
  static constexpr int kDim = kDim_, kKeys = 128, kWarpgroups = 2;
  // Of values as many as there is room for: they are released late.
  static constexpr int kStages = 2, kValueStages = kFp8 ? 2 : 3;
  static constexpr int kRows = 64 * kWarpgroups, kWarps = 4 * kWarpgroups;
  static constexpr int kThreads = kWarpgroup * (kWarpgroups + 1);
  // A tile of keys or values is panels of 64 columns, kKeys rows of 128 bytes each.
  static constexpr int kPanels = kDim / 64, kPanelBytes = kKeys * kTileWidth;
  static constexpr int kTileBytes = kPanels * kPanelBytes;
  static constexpr int kRowBytes = kDim * 2;
  // Of a tile as it is copied: one stage of e4m3, in panels of 64 columns as well, or the tile itself.
  static constexpr int kCopyBytes = kFp8 ? kTileBytes / 2 : kTileBytes;
  static constexpr int kValuesAt = kStages * kTileBytes;
  // Each warp's 16 rows of the next queries, and of results on their way out.
  static constexpr int kQueriesAt = (kStages + kValueStages) * kTileBytes;
  static constexpr int kResultsAt = kQueriesAt + kRows * kRowBytes;
  static constexpr int kStagingAt = kResultsAt + kRows * kRowBytes;
  static constexpr int kUnitsAt = kStagingAt + (kFp8 ? 2 * kCopyBytes : 0);
  static constexpr int kBarriersAt = kUnitsAt + 2 * kBatch * sizeof(Unit);
  static constexpr int kBarriers = 2 * (kStages + kValueStages) + 8;
  static constexpr int kSharedBytes = kBarriersAt + 8 * kBarriers + 1024;  // alignment
  static_assert(kSharedBytes + 16 <= 227 << 10, "an SM's, with what is declared in the kernel");
  static_assert(kKeys % kBox == 0 && kKeys / kBox <= 32, "a lane knows the place of each box");
};

// Tiles in shared memory that some warps fill and others empty, in turn. Counted through all of a block.
template <int kStages_, int kBytes>
struct Ring {
  static constexpr uint32_t kStages = kStages_;
  static constexpr uint32_t kBarrierBytes = 16 * kStages;
  uint32_t tiles, barriers;

  __device__ __forceinline__ void init(int fillers, int emptiers) const {
    for (uint32_t tile = 0; tile < kStages; tile++) {
      barrierInit(full(tile), fillers);
      barrierInit(empty(tile), emptiers);
    }
  }
  __device__ __forceinline__ uint32_t at(uint32_t tile) const {
    return tiles + tile % kStages * kBytes;
  }
  __device__ __forceinline__ uint32_t full(uint32_t tile) const {
    return barriers + tile % kStages * 16;
  }
  __device__ __forceinline__ uint32_t empty(uint32_t tile) const { return full(tile) + 8; }
  __device__ __forceinline__ void waitFull(uint32_t tile) const {
    barrierWait(full(tile), tile / kStages % 2);
  }
  __device__ __forceinline__ void waitEmpty(uint32_t tile) const {
    if (tile >= kStages) barrierWait(empty(tile), (tile / kStages - 1) % 2);
  }
};

template <class C>
__device__ __forceinline__ Unit unitOf(const PrefillArgs& a, int number) {
  const int index = number / a.kvHeads;
  const PrefillItem item = a.items[index];
  const int queryRow = __ldg(a.queryStart + item.seq);
  const int length = __ldg(a.queryStart + item.seq + 1) - queryRow;
  const int firstPosition = __ldg(a.contextLens + item.seq) - length;
  const int lowKey =
      a.window > 0 ? max(0, firstPosition + item.rowBegin / a.group - a.window + 1) : 0;
  return {queryRow,
          firstPosition,
          item.rowBegin,
          min(C::kRows, length * a.group - item.rowBegin),
          item.keyBegin,
          item.keyEnd,
          lowKey,
          __ldg(a.blockTableStart + item.seq),
          number - index * a.kvHeads,
          item.part,
          item.parts,
          item.slot};
}

// Of row `row` of a unit, in q or out.
__device__ __forceinline__ int64_t rowOffset(const PrefillArgs& a, const Unit& unit, int row,
                                             int64_t stride) {
  const int r = unit.rowBegin + row, token = r / a.group;
  return (unit.queryRow + token) * stride +
         (static_cast<int64_t>(unit.kvHead) * a.group + r - token * a.group) * a.headDim;
}

template <int kThreads>
__device__ __forceinline__ void syncSome(int barrier) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

}  // namespace millrace::cuda::hopper_prefill
