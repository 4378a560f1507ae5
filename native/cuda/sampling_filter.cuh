// Finding the last token of a kept set: a radix select over places in the order (y descending, id
// ascending), so that ties need no case of their own.
#pragma once
#include "sampling_stages.h"

namespace millrace::cuda::sampling {

// The sum of weights, an integer, that the shortest prefix must reach; the first token weighs 2^30,
// so that 1 keeps just it.
__device__ inline u64 prefixTarget(double topP, u64 weight) {
  const u64 target = u64(ceil(__dmul_rn(topP, double(weight))));
  return target > 0 ? target : 1;
}

// Candidates of a row: its list, or where that was too short for them the row itself. All threads of
// a block take part.
struct Candidates {
  Row row;
  float max, temperature;
  unsigned maxKey;
  const u64* list;
  int listed;  // -1: read the row
  int tiles;

  template <class Use>
  __device__ void each(int firstBin, int lastBin, Use use) const {
    if (listed >= 0) {
      for (int i = threadIdx.x; i < listed; i += kThreads) {
        const int bin = binOf(keyOfRank(list[i]));
        if (bin >= firstBin && bin <= lastBin) use(list[i]);
      }
      return;
    }
    const int lane = threadIdx.x % 32;
    for (int t = threadIdx.x / 32; t < tiles; t += kWarps) {
      Tile(row, t, lane).each(row, t, lane, [&](float value, int id) {
        const unsigned key = keyOf(scaled(value, max, temperature));
        if (key > maxKey) return;
        const int bin = binOf(key);
        if (bin >= firstBin && bin <= lastBin) use(rankOf(key, id));
      });
    }
  }
};

constexpr int kDigitBits = 10;
constexpr int kDigits = 1 << kDigitBits;

// The first candidate in the bins given at which the running measure (of those, in order) is at
// least `target` >= 1. measure(rank): 1, or the weight. `digits` is shared memory.
template <class Measure>
__device__ u64 selectRank(const Candidates& candidates, int firstBin, int lastBin, u64 target,
                          Measure measure, u64* digits, BlockScratch& block) {
  u64 prefix = 0;  // the digits found so far
  for (int shift = 4 * kDigitBits; shift >= 0; shift -= kDigitBits) {
    for (int i = threadIdx.x; i < kDigits; i += kThreads) digits[i] = 0;
    __syncthreads();
    candidates.each(firstBin, lastBin, [&](u64 rank) {
      if (rank >> (shift + kDigitBits) != prefix) return;
      atomicAdd(&digits[rank >> shift & (kDigits - 1)], measure(rank));
    });
    __syncthreads();
    const Found found = blockFind(digits, kDigits, target, block);
    prefix = prefix << kDigitBits | unsigned(found.index);
    target -= found.before;
    __syncthreads();
  }
  return prefix;
}

__device__ inline u64 weightOfRank(u64 rank) { return weightOf(scaledOfKey(keyOfRank(rank))); }

// The last token that the row of `state` keeps.
__device__ inline u64 lastKept(const RowState& state, const Candidates& candidates, u64 topK,
                               double topP, u64* digits, BlockScratch& block) {
  u64 last = rankOf(state.maxKey, kMaxVocab - 1), weight = state.weightTotal;
  if (state.cutsCount) {
    const int bin = state.countBin;
    last = selectRank(candidates, bin, bin, topK - state.countBefore,
                      [](u64) { return u64(1); }, digits, block);
    u64 own = 0;
    candidates.each(bin, bin, [&](u64 rank) {
      if (rank <= last) own += weightOfRank(rank);
    });
    weight = state.countWeightBefore + blockSum(own, block);
  }
  if (state.cutsWeight) {
    last = selectRank(candidates, state.firstBin, state.lastBin,
                      prefixTarget(topP, weight) - state.weightBefore, weightOfRank, digits, block);
  }
  return last;
}

}  // namespace millrace::cuda::sampling
