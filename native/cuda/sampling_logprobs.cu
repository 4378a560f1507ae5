// Logprobs, ranks and the likeliest tokens (docs/sampling.md, section 2), from raw logits: one read
// of the row, and of a tile again for each of the likeliest.
#include "check.h"
#include "sampling_stages.h"

namespace millrace::cuda::sampling {
namespace {

__device__ bool wants(const SamplingInputs& in, int row) {
  return in.logprobs[row] >= 0 || in.targets[row] >= 0;
}

// The best key of a tile, of those below `below`.
__device__ u64 bestOf(const Row& row, const Tile& tile, int index, int lane, u64 below) {
  u64 best = 0;
  tile.each(row, index, lane, [&](float value, int id) {
    const u64 key = bestKey(value, id);
    if (id >= 0 && id < row.vocab && key < below && key > best) best = key;
  });
  return warpMax(best);
}

__global__ void __launch_bounds__(kThreads) expTiles(Step step, int tilesEach) {
  const int r = blockIdx.y, token = step.out.tokens[r], lane = threadIdx.x % 32;
  if (token < 0 || !wants(step.in, r)) return;
  const Row row(step.logits, step.stride, step.vocab, r);
  const float chosen = row.x[token];
  const bool listed = step.in.logprobs[r] > 0;
  const int end = min(step.scratch.tiles, int(blockIdx.x + 1) * tilesEach);
  for (int t = blockIdx.x * tilesEach + threadIdx.x / 32; t < end; t += kWarps) {
    const Tile tile(row, t, lane);
    float top = negativeInfinity();
    int above = 0;
    tile.each(row, t, lane, [&](float value, int) {
      top = fmaxf(top, value);
      above += value > chosen;
    });
    top = warpMax(top);
    float sum = 0;
    // A tile of nothing but -infinity has no differences to take.
    if (top > negativeInfinity()) {
      tile.each(row, t, lane, [&](float value, int) { sum += expf(value - top); });
    }
    sum = warpSum(sum);
    above = warpSum(above);
    const u64 key = listed ? bestOf(row, tile, t, lane, kUnusable) : 0;
    if (lane > 0) continue;
    const size_t at = size_t(r) * step.scratch.tiles + t;
    step.scratch.tileExps[at] = make_float2(top, sum);
    step.scratch.tileAbove[at] = above;
    step.scratch.tileKeys[at] = key;
  }
}

__global__ void __launch_bounds__(kThreads) logprobRows(Step step) {
  __shared__ BlockScratch block;
  __shared__ u64 keys[kMaxTiles];
  const int r = blockIdx.x, token = step.out.tokens[r], lane = threadIdx.x % 32;
  if (token < 0 || !wants(step.in, r)) return;
  const Row row(step.logits, step.stride, step.vocab, r);
  const int tiles = step.scratch.tiles;
  const size_t first = size_t(r) * tiles;
  u64 top = 0, above = 0;
  for (int t = threadIdx.x; t < tiles; t += kThreads) {
    const u64 key = bestKey(step.scratch.tileExps[first + t].x, 0);
    top = key > top ? key : top;
    above += step.scratch.tileAbove[first + t];
    keys[t] = step.scratch.tileKeys[first + t];
  }
  const double max = valueOfKey(blockMax(top, block));
  above = blockSum(above, block);
  double sum = 0;
  for (int t = threadIdx.x; t < tiles; t += kThreads) {
    const float2 part = step.scratch.tileExps[first + t];
    if (part.y > 0) sum += double(part.y) * exp(double(part.x) - max);
  }
  const double norm = max + log(blockSum(sum, block));
  if (threadIdx.x == 0) {
    step.out.logprobs[r] = float(double(row.x[token]) - norm);
    step.out.ranks[r] = 1 + int(above);
  }
  if (threadIdx.x >= 32) return;
  const int count = min(min(step.in.logprobs[r], kTopList), step.vocab);
  for (int place = 0; place < count; place++) {
    u64 own = 0;
    for (int t = lane; t < tiles; t += 32) own = keys[t] > own ? keys[t] : own;
    const u64 best = warpMax(own);
    const int id = idOfKey(best), t = row.tileOf(id);
    if (lane == 0) {
      step.out.topTokens[r * kTopList + place] = id;
      step.out.topLogprobs[r * kTopList + place] = float(double(row.x[id]) - norm);
    }
    const u64 next = bestOf(row, Tile(row, t, lane), t, lane, best);
    if (lane == 0) keys[t] = next;
    __syncwarp();
  }
}

}  // namespace

void writeLogprobs(const Step& step, int tilesEach, cudaStream_t stream) {
  expTiles<<<tileGrid(step, tilesEach), kThreads, 0, stream>>>(step, tilesEach);
  checkLaunch("logprob tiles");
  logprobRows<<<step.rows, kThreads, 0, stream>>>(step);
  checkLaunch("logprob rows");
}

}  // namespace millrace::cuda::sampling
