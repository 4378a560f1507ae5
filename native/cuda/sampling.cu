// Sampling on the device, as docs/sampling.md fixes it. Every kernel but the last of a stage runs over
// (tiles of a row, rows), so that few rows use the whole device as well as many do:
//
//   scanTiles        one read: the best token of each tile, unusable values
//   decideRows       greedy rows, failed rows and prompt targets are done
//   weighTiles       one read: sums of weights by tile; for rows with top_k or top_p by bins of y
//   boundRows, gatherCandidates   those rows only (sampling_filter.cu), one read
//   drawRows         ends of the kept set, the draw, one tile read again
//
// Tiles whose best is out of the kept set are not read again.
#include <stdexcept>
#include <string>

#include "check.h"
#include "launch.h"
#include "sampling_filter.cuh"

namespace millrace::cuda {
namespace sampling {
namespace {

// From the ends of all rows on: the product has written these last, and the cache still has them.
__global__ void __launch_bounds__(kThreads) scanTiles(Step step, int tilesEach) {
  waitForPrevious();
  const int r = blockIdx.x, part = gridDim.y - 1 - blockIdx.y, lane = threadIdx.x % 32;
  const Row row(step.logits, step.stride, step.vocab, r);
  const int end = min(step.scratch.tiles, (part + 1) * tilesEach);
  for (int t = part * tilesEach + threadIdx.x / 32; t < end; t += kWarps) {
    const Tile tile(row, t, lane);
    Best best;
    tile.each(row, t, lane, [&](float value, int id) { best.offer(value, id); });
    const u64 key = warpMax(best.key());
    if (lane == 0) step.scratch.tileKeys[size_t(r) * step.scratch.tiles + t] = key;
  }
}

// Rounds as the page says: min_p's bound is computed in float64.
__device__ unsigned maxKeyOfMinP(float minP) {
  if (!(minP > 0)) return kLowestKey;
  const float bound = fminf(0.0f, float(log(double(minP))));
  return min(keyOf(bound), kLowestKey);
}

// The bin from which on all weights together are less than the share of W (at least 2^30) that top_p
// leaves out. They add to W, but the prefix never gets there. The margins, a half and 0.01, are for
// the rounding of weights (at -18 they are about 16) and of the prefix's target.
__device__ int restBinOf(float topP, int vocab) {
  const double bound = log(0.5 * (1 - double(topP)) / vocab) - 0.01;
  return bound > -18 ? binOf(keyOf(float(bound))) + 1 : kBins;
}

__device__ bool usable(u64 best) { return best != kUnusable && valueOfKey(best) > negativeInfinity(); }

// What is known of a row once its best token is, without logprobs.
__device__ void writeBest(const SamplingInputs& in, const SamplingOutputs& out, int r, u64 best) {
  const int i = threadIdx.x;
  if (i < kTopList) {
    out.topTokens[r * kTopList + i] = -1;
    out.topLogprobs[r * kTopList + i] = __int_as_float(0x7fc00000);
  }
  if (i > 0) return;
  out.tokens[r] = !usable(best) ? -1 : in.targets[r] >= 0 ? in.targets[r] : idOfKey(best);
  out.logprobs[r] = __int_as_float(0x7fc00000);
  out.ranks[r] = 0;
}

__global__ void __launch_bounds__(kThreads) takeBestOfRows(const BestKey* bests, int count, SamplingInputs in,
                                                          SamplingOutputs out) {
  waitForPrevious();
  __shared__ BlockScratch block;
  const int r = blockIdx.x;
  u64 own = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) own = max(own, bests[size_t(r) * count + i]);
  writeBest(in, out, r, blockMax(own, block));
}

__global__ void __launch_bounds__(kThreads) decideRows(Step step, bool draws, bool filters) {
  waitForPrevious();
  __shared__ BlockScratch block;
  __shared__ u64 keys[kMaxTiles];
  __shared__ u64 bound;
  const int r = blockIdx.x, tiles = step.scratch.tiles, i = threadIdx.x;
  const SamplingInputs& in = step.in;
  u64 own = 0;
  for (int t = i; t < tiles; t += kThreads) {
    keys[t] = step.scratch.tileKeys[size_t(r) * tiles + t];
    own = keys[t] > own ? keys[t] : own;
  }
  const u64 best = blockMax(own, block);
  const float temperature = in.temperature[r];
  const bool drawn = usable(best) && draws && in.targets[r] < 0 && temperature != 0.0f;
  writeBest(in, step.out, r, best);
  RowState& state = step.scratch.states[r];
  if (!drawn) {
    if (i == 0) state.kind = Kind::Done;
    return;
  }
  const int topK = in.topK[r];
  const float topP = in.topP[r], max = valueOfKey(best);
  const bool byCount = filters && topK > 0 && topK < step.vocab;
  const bool filtered = byCount || (filters && topP < 1.0f);
  // The topK-th best of the tiles' maxima bounds what top_k can keep, if there are as many tiles.
  if (i == 0) bound = 0;
  __syncthreads();
  if (byCount && topK <= tiles) {
    for (int t = i; t < tiles; t += kThreads) {
      int above = 0;
      for (int other = 0; other < tiles; other++) {
        above += keys[other] > keys[t] || (keys[other] == keys[t] && other < t);
      }
      if (above == topK - 1) bound = keys[t];
    }
  }
  __syncthreads();
  if (filtered) {
    for (int b = i; b < kBins; b += kThreads) {
      step.scratch.binWeights[size_t(r) * kBins + b] = 0;
      step.scratch.binCounts[size_t(r) * kBins + b] = 0;
    }
  }
  if (i > 0) return;
  state.kind = filtered ? Kind::Filtered : Kind::Plain;
  state.max = max;
  state.maxKey = maxKeyOfMinP(in.minP[r]);
  if (bound != 0) {
    state.maxKey = min(state.maxKey, keyOf(scaled(valueOfKey(bound), max, temperature)));
  }
  state.restBin = byCount || !(topP < 1.0f) ? kBins : restBinOf(topP, step.vocab);
  state.rest = 0;
}

// A block's bins. Sums of weights are kept in two words, as shared memory adds 32 bits at a time.
struct Bins {
  unsigned low[kBins], high[kBins], counts[kBins];

  __device__ void add(int bin, unsigned weight) {
    const unsigned before = atomicAdd(&low[bin], weight);
    if (before + weight < before) atomicAdd(&high[bin], 1u);
    atomicAdd(&counts[bin], 1u);
  }
};

__global__ void __launch_bounds__(kThreads) weighTiles(Step step, int tilesEach) {
  __shared__ Bins bins;
  const int r = blockIdx.y, lane = threadIdx.x % 32;
  RowState& state = step.scratch.states[r];
  if (state.kind == Kind::Done) return;
  const bool filtered = state.kind == Kind::Filtered;
  if (filtered) {
    for (int b = threadIdx.x; b < kBins; b += kThreads) {
      bins.low[b] = bins.high[b] = bins.counts[b] = 0;
    }
    __syncthreads();
  }
  const Row row(step.logits, step.stride, step.vocab, r);
  const float max = state.max, temperature = step.in.temperature[r];
  const unsigned maxKey = state.maxKey;
  const int restBin = state.restBin;
  const int end = min(step.scratch.tiles, int(blockIdx.x + 1) * tilesEach);
  u64 rest = 0;
  for (int t = blockIdx.x * tilesEach + threadIdx.x / 32; t < end; t += kWarps) {
    const size_t at = size_t(r) * step.scratch.tiles + t;
    u64 sum = 0;
    if (keyOf(scaled(valueOfKey(step.scratch.tileKeys[at]), max, temperature)) <= maxKey) {
      const Tile tile(row, t, lane);
      tile.each(row, t, lane, [&](float value, int) {
        const float y = scaled(value, max, temperature);
        const unsigned key = keyOf(y);
        if (key > maxKey) return;
        const unsigned weight = weightOf(y);
        const int bin = filtered ? binOf(key) : kBins;
        if (bin < restBin) {
          bins.add(bin, weight);
        } else {
          sum += weight;
        }
      });
    }
    if (filtered) {
      rest += sum;
    } else {
      sum = warpSum(sum);
      if (lane == 0) step.scratch.tileSums[at] = sum;
    }
  }
  if (!filtered) return;
  rest = warpSum(rest);
  if (lane == 0 && rest > 0) atomicAdd(&state.rest, rest);
  __syncthreads();
  for (int b = threadIdx.x; b < kBins; b += kThreads) {
    if (bins.counts[b] == 0) continue;
    atomicAdd(&step.scratch.binCounts[size_t(r) * kBins + b], bins.counts[b]);
    atomicAdd(&step.scratch.binWeights[size_t(r) * kBins + b], u64(bins.high[b]) << 32 | bins.low[b]);
  }
}

// 53 random bits of a row's draw (section 8).
__device__ double uniform(const unsigned* seed, unsigned draw) {
  unsigned c0 = draw, c1 = 0, c2 = 0, c3 = 0, k0 = seed[0], k1 = seed[1];
#pragma unroll
  for (int round = 0; round < 10; round++) {
    const unsigned aLow = 0xD2511F53u * c0, aHigh = __umulhi(0xD2511F53u, c0);
    const unsigned bLow = 0xCD9E8D57u * c2, bHigh = __umulhi(0xCD9E8D57u, c2);
    c0 = bHigh ^ c1 ^ k0;
    c1 = bLow;
    c2 = aHigh ^ c3 ^ k1;
    c3 = aLow;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  // Exact: 27 and 26 bits.
  return double((u64(c0 >> 5) << 26) + (c1 >> 6)) * 0x1p-53;
}

__global__ void __launch_bounds__(kThreads) drawRows(Step step) {
  __shared__ BlockScratch block;
  __shared__ u64 digits[kDigits];
  const int r = blockIdx.x, lane = threadIdx.x % 32, tiles = step.scratch.tiles;
  const RowState& state = step.scratch.states[r];
  if (state.kind == Kind::Done) return;
  const Row row(step.logits, step.stride, step.vocab, r);
  const float max = state.max, temperature = step.in.temperature[r];
  const unsigned maxKey = state.maxKey;
  u64* sums = step.scratch.tileSums + size_t(r) * tiles;
  u64 last = rankOf(maxKey, kMaxVocab - 1);
  const auto keptWeight = [&](float value, int id) -> u64 {
    const float y = scaled(value, max, temperature);
    const unsigned key = keyOf(y);
    // Beyond the maximum of maxKey the place in the order would not fit.
    return key <= maxKey && rankOf(key, id) <= last ? weightOf(y) : 0;
  };
  if (state.kind == Kind::Filtered) {
    const Candidates candidates{row, max, temperature, maxKey,
                                step.scratch.list + size_t(r) * kListed,
                                state.overflow ? -1 : state.listed, tiles};
    last = lastKept(state, candidates, u64(step.in.topK[r]), double(step.in.topP[r]), digits, block);
    if (!state.overflow) {
      candidates.each(0, kBins, [&](u64 rank) {
        if (rank <= last) atomicAdd(&sums[row.tileOf(idOfRank(rank))], weightOfRank(rank));
      });
    } else {
      for (int t = threadIdx.x / 32; t < tiles; t += kWarps) {
        u64 sum = 0;
        Tile(row, t, lane).each(row, t, lane, [&](float v, int id) { sum += keptWeight(v, id); });
        sum = warpSum(sum);
        if (lane == 0) sums[t] = sum;
      }
    }
    __threadfence();
    __syncthreads();
  }
  // `digits` holds the tiles' sums from here on. The atomics above went past the first cache.
  for (int t = threadIdx.x; t < tiles; t += kThreads) digits[t] = __ldcg(&sums[t]);
  __syncthreads();
  u64 own = 0;
  for (int t = threadIdx.x; t < tiles; t += kThreads) own += digits[t];
  const u64 total = blockSum(own, block);
  const double u = uniform(step.in.seed + 2 * r, step.in.draw[r]);
  u64 target = u64(__dmul_rn(u, double(total)));
  target = target < total ? target : total - 1;
  const Found found = blockFind(digits, tiles, target + 1, block);
  if (threadIdx.x >= 32) return;
  u64 before = found.before;
  const Tile tile(row, found.index, lane);
#pragma unroll
  for (int j = 0; j < kVectors; j++) {
    const int id = row.idAt(found.index, j, lane);
    const float4 v = tile.values[j];
    const u64 weights[4] = {keptWeight(v.x, id), keptWeight(v.y, id + 1), keptWeight(v.z, id + 2),
                            keptWeight(v.w, id + 3)};
    const u64 mine = weights[0] + weights[1] + weights[2] + weights[3];
    const u64 inclusive = before + warpScan(mine, lane);
    u64 sum = inclusive - mine;
    if (sum <= target && inclusive > target) {
      int place = 0;
      while ((sum += weights[place]) <= target) place++;
      step.out.tokens[r] = id + place;
    }
    before = __shfl_sync(~0u, inclusive, 31);
    if (before > target) break;
  }
}

// Tiles a block takes: one a warp while that fills the device, more where blocks would be many.
int tilesEachOf(int tiles, int rows, int blocksEnough) {
  int each = kWarps;
  while (each < 8 * kWarps && int64_t(rows) * ((tiles + each - 1) / each) > blocksEnough) each += kWarps;
  return each;
}

}  // namespace
}  // namespace sampling

size_t samplingScratchBytes(int vocab, int maxRows) {
  sampling::Scratch s;
  return sampling::layOut(nullptr, vocab, maxRows, s);
}

void sample(float* logits, int64_t stride, int vocab, int rows, const SamplingInputs& in,
            const SamplingNeeds& needs, const SamplingOutputs& out, void* scratch,
            cudaStream_t stream) {
  using namespace sampling;
  if (rows == 0) return;
  if (vocab < 1 || vocab > kMaxVocab) {
    throw std::invalid_argument("vocab: expected 1 to " + std::to_string(kMaxVocab) +
                                ", received " + std::to_string(vocab));
  }
  Step step{logits, stride, vocab, rows, in, out, {}};
  layOut(static_cast<char*>(scratch), vocab, rows, step.scratch);
  // Enough blocks for a few on each multiprocessor; those with bins cost more to start and to end.
  const int tilesEach = tilesEachOf(step.scratch.tiles, rows, 2048);

  if (needs.adjust) adjustLogits(step, needs.logprobs, stream);
  const dim3 grid = tileGrid(step, tilesEach);
  launch("sampling scan", scanTiles, dim3(grid.y, grid.x), kThreads, 0, stream, step, tilesEach);
  launch("sampling decide", decideRows, dim3(rows), kThreads, 0, stream, step, needs.draw, needs.filter);
  if (needs.draw) {
    const int weighEach = needs.filter ? tilesEachOf(step.scratch.tiles, rows, 1024) : tilesEach;
    weighTiles<<<tileGrid(step, weighEach), kThreads, 0, stream>>>(step, weighEach);
    checkLaunch("sampling weights");
    if (needs.filter) {
      boundRows(step, stream);
      gatherCandidates(step, tilesEach, stream);
    }
    drawRows<<<rows, kThreads, 0, stream>>>(step);
    checkLaunch("sampling draw");
  }
  if (!needs.logprobs) return;
  if (needs.adjust) restoreLogits(step, stream);
  writeLogprobs(step, tilesEach, stream);
}

void takeBest(const BestKey* bests, int vocab, int rows, const SamplingInputs& in, const SamplingOutputs& out,
              cudaStream_t stream) {
  using namespace sampling;
  if (rows == 0) return;
  launch("sampling best", takeBestOfRows, dim3(rows), kThreads, 0, stream, bests, bestsOf(vocab), in, out);
}

}  // namespace millrace::cuda
