// The kept set of docs/sampling.md, section 6, without a sort. `sampling.cu` counts tokens and sums
// weights by 2048 bins of the scaled logit. From the bins follows in which of them top_k and top_p
// must end; only the tokens in those are listed, and sampling.cu finds the very last one to keep.
#include "check.h"
#include "sampling_filter.cuh"

namespace millrace::cuda::sampling {
namespace {

__global__ void __launch_bounds__(kThreads) boundKernel(Step step) {
  __shared__ BlockScratch block;
  __shared__ u64 counts[kBins];
  const int r = blockIdx.x;
  RowState& state = step.scratch.states[r];
  if (state.kind != Kind::Filtered) return;
  const u64* weights = step.scratch.binWeights + size_t(r) * kBins;
  u64 count = 0, weight = 0;
  for (int i = threadIdx.x; i < kBins; i += kThreads) {
    count += counts[i] = step.scratch.binCounts[size_t(r) * kBins + i];
    weight += weights[i];
  }
  count = blockSum(count, block);
  weight = blockSum(weight, block) + state.rest;
  // Rows with top_k have no rest: `count` is the count of all that may be kept.
  const u64 topK = u64(max(0, step.in.topK[r]));
  const double topP = double(step.in.topP[r]);
  const bool cutsCount = topK > 0 && topK < count, cutsWeight = topP < 1;
  Found byCount{kBins, 0};
  u64 before = 0, least = weight, most = weight;
  if (cutsCount) {
    byCount = blockFind(counts, kBins, topK, block);
    u64 own = 0;
    for (int i = threadIdx.x; i < byCount.index; i += kThreads) own += weights[i];
    least = before = blockSum(own, block);
    most = before + weights[byCount.index];
  }
  Found first{byCount.index, before};
  int last = byCount.index;
  if (cutsWeight) {
    first = blockFind(weights, kBins, prefixTarget(topP, least), block);
    last = blockFind(weights, kBins, prefixTarget(topP, most), block).index;
  }
  u64 listed = 0;
  for (int i = threadIdx.x; i < kBins; i += kThreads) {
    if ((i >= first.index && i <= last) || i == byCount.index) listed += counts[i];
  }
  listed = blockSum(listed, block);
  if (threadIdx.x > 0) return;
  state.cutsCount = cutsCount;
  state.cutsWeight = cutsWeight;
  state.countBin = byCount.index;
  state.countBefore = byCount.before;
  state.countWeightBefore = before;
  state.weightTotal = weight;
  state.firstBin = first.index;
  state.lastBin = last;
  state.weightBefore = first.before;
  state.overflow = listed > kListed;
  state.listed = 0;
}

// Lists the candidates and sums, by tile, the weights of what is kept for certain.
__global__ void __launch_bounds__(kThreads) gatherKernel(Step step, int tilesEach) {
  const int r = blockIdx.y, lane = threadIdx.x % 32;
  RowState& state = step.scratch.states[r];
  if (state.kind != Kind::Filtered || state.overflow) return;
  const Row row(step.logits, step.stride, step.vocab, r);
  const float max = state.max, temperature = step.in.temperature[r];
  const unsigned maxKey = state.maxKey;
  const int firstBin = state.firstBin, lastBin = state.lastBin, countBin = state.countBin;
  const int end = min(step.scratch.tiles, int(blockIdx.x + 1) * tilesEach);
  for (int t = blockIdx.x * tilesEach + threadIdx.x / 32; t < end; t += kWarps) {
    const size_t at = size_t(r) * step.scratch.tiles + t;
    u64 sum = 0;
    if (keyOf(scaled(valueOfKey(step.scratch.tileKeys[at]), max, temperature)) <= maxKey) {
      const Tile tile(row, t, lane);
      tile.each(row, t, lane, [&](float value, int id) {
        const float y = scaled(value, max, temperature);
        const unsigned key = keyOf(y);
        if (key > maxKey) return;
        const int bin = binOf(key);
        if (bin < firstBin) {
          sum += weightOf(y);
        } else if (bin <= lastBin || bin == countBin) {
          step.scratch.list[size_t(r) * kListed + atomicAdd(&state.listed, 1)] = rankOf(key, id);
        }
      });
    }
    sum = warpSum(sum);
    if (lane == 0) step.scratch.tileSums[at] = sum;
  }
}

}  // namespace

void boundRows(const Step& step, cudaStream_t stream) {
  boundKernel<<<step.rows, kThreads, 0, stream>>>(step);
  checkLaunch("sampling bounds");
}

void gatherCandidates(const Step& step, int tilesEach, cudaStream_t stream) {
  gatherKernel<<<tileGrid(step, tilesEach), kThreads, 0, stream>>>(step, tilesEach);
  checkLaunch("sampling candidates");
}

}  // namespace millrace::cuda::sampling
