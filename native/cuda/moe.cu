// Mixture of experts: routing, sorting rows by expert on the device, two grouped products, the
// weighted sum. No launch depends on the routing, so a step can be captured into a graph.
#include <algorithm>
#include <climits>
#include <stdexcept>
#include <string>

#include "elements.h"
#include "grouped_gemm.h"
#include "launch.h"

namespace millrace::cuda {
namespace {

constexpr int kMaxExperts = 512;
constexpr int kMaxTopK = 32;  // a lane of a warp holds one choice
constexpr int kSortThreads = 1024;
constexpr int kMinTileRows = 16;

// The scratch memory. An item is a token and one of its choices, token * topK + k.
struct Scratch {
  int* experts;    // [items]
  float* shares;   // [items]
  int* positions;  // [items] where the item lies in the order by expert
  int* sources;    // [items] token at each position
  RowTile* tiles;
  int* tileCount;
  void* hidden;   // [items, inner] by position
  void* results;  // [items, width] by position
};

int maxTilesOf(int64_t items, int experts, int tileRows) {
  // Each expert in use has at most one tile that is not full.
  return static_cast<int>(std::min<int64_t>(items, experts) + items / tileRows);
}

// Lays the scratch out from `base` (null: only counts) and returns its bytes.
size_t layOut(Elem elem, int experts, int inner, int width, int64_t items, void* base,
              Scratch& scratch) {
  size_t used = 0;
  const auto take = [&](auto*& pointer, size_t bytes) {
    using Pointer = std::remove_reference_t<decltype(pointer)>;
    pointer = reinterpret_cast<Pointer>(static_cast<char*>(base) + used);
    used += roundUp(bytes, 256);
  };
  const size_t n = items;
  take(scratch.experts, n * sizeof(int));
  take(scratch.shares, n * sizeof(float));
  take(scratch.positions, n * sizeof(int));
  take(scratch.sources, n * sizeof(int));
  take(scratch.tiles, maxTilesOf(items, experts, kMinTileRows) * sizeof(RowTile));
  take(scratch.tileCount, sizeof(int));
  take(scratch.hidden, n * inner * bytesOf(elem));
  take(scratch.results, n * width * bytesOf(elem));
  return used;
}

// ---------------------------------------------------------------- routing

template <class T>
struct Routing {
  const T* router;
  int64_t stride;
  int* experts;
  float* shares;
  int numExperts, topK;
  bool normalize;
};

// Unsigned integers in the order of the floats.
__device__ __forceinline__ unsigned orderOf(float x) {
  const unsigned bits = __float_as_uint(x + 0.0f);  // -0 like 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// A warp chooses the experts of one token. kHeld: logits a lane, of experts lane + 32 j.
template <class T, int kHeld>
__device__ __forceinline__ void routeToken(const Routing<T>& p, int token) {
  const int lane = threadIdx.x % 32;
  float logits[kHeld];
  float largest = -INFINITY;
#pragma unroll
  for (int j = 0; j < kHeld; j++) {
    const int expert = lane + 32 * j;
    logits[j] = expert < p.numExperts ? toFloat(p.router[token * p.stride + expert]) : -INFINITY;
    largest = fmaxf(largest, logits[j]);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  }
  float total = 0.0f;
#pragma unroll
  for (int j = 0; j < kHeld; j++) total += expf(logits[j] - largest);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(~0u, total, step);

  unsigned free = 0;  // of the lane's experts, those not chosen yet
#pragma unroll
  for (int j = 0; j < kHeld; j++) free |= (lane + 32 * j < p.numExperts ? 1u : 0u) << j;
  int chosen = 0;  // lane k holds choice k
  float power = 0.0f;
  for (int k = 0; k < p.topK; k++) {
    unsigned best = 0;
    int bestExpert = INT_MAX;
    float bestLogit = 0.0f;
#pragma unroll
    for (int j = 0; j < kHeld; j++) {
      const unsigned order = orderOf(logits[j]);
      if ((free >> j & 1) && (bestExpert == INT_MAX || order > best)) {
        best = order, bestExpert = lane + 32 * j, bestLogit = logits[j];
      }
    }
    const unsigned winner = __reduce_max_sync(~0u, best);
    const int expert = __reduce_min_sync(~0u, best == winner ? bestExpert : INT_MAX);
    const float logit = __shfl_sync(~0u, bestLogit, expert % 32);
    if (lane == expert % 32) free &= ~(1u << expert / 32);
    if (lane == k) chosen = expert, power = expf(logit - largest);
  }
  if (p.normalize) {
    total = power;
#pragma unroll
    for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(~0u, total, step);
  }
  if (lane < p.topK) {
    p.experts[token * p.topK + lane] = chosen;
    p.shares[token * p.topK + lane] = power / total;
  }
}

template <class T, int kHeld>
__global__ void __launch_bounds__(128) routeKernel(Routing<T> p, int rows) {
  waitForPrevious();
  const int token = blockIdx.x * 4 + threadIdx.x / 32;
  if (token < rows) routeToken<T, kHeld>(p, token);
}

// ---------------------------------------------------------------- sorting by expert

struct Sorting {
  const int* experts;
  int* positions;
  int* sources;
  RowTile* tiles;
  int* tileCount;
  int items, topK, numExperts, tileRows;
};

// By one block of kSortThreads: counts, places, tiles. The order of an expert's rows may differ
// from run to run; the numbers of a row do not depend on it.
__device__ __forceinline__ void sortItems(const Sorting& p) {
  __shared__ int counts[kMaxExperts], starts[kMaxExperts], tileStarts[kMaxExperts];
  for (int e = threadIdx.x; e < kMaxExperts; e += kSortThreads) counts[e] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < p.items; i += kSortThreads) {
    p.positions[i] = atomicAdd(&counts[p.experts[i]], 1);
  }
  __syncthreads();
  if (threadIdx.x < 32) {  // exclusive sums, each lane kEach experts in a row
    constexpr int kEach = kMaxExperts / 32;
    const int first = threadIdx.x * kEach;
    int rows = 0, tiles = 0;
    for (int e = first; e < first + kEach; e++) {
      rows += counts[e];
      tiles += (counts[e] + p.tileRows - 1) / p.tileRows;
    }
    int rowsBefore = rows, tilesBefore = tiles;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int otherRows = __shfl_up_sync(~0u, rowsBefore, step);
      const int otherTiles = __shfl_up_sync(~0u, tilesBefore, step);
      if (threadIdx.x >= step) rowsBefore += otherRows, tilesBefore += otherTiles;
    }
    if (threadIdx.x == 31) *p.tileCount = tilesBefore;
    rowsBefore -= rows;
    tilesBefore -= tiles;
    for (int e = first; e < first + kEach; e++) {
      starts[e] = rowsBefore, tileStarts[e] = tilesBefore;
      rowsBefore += counts[e];
      tilesBefore += (counts[e] + p.tileRows - 1) / p.tileRows;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < p.items; i += kSortThreads) {
    const int position = starts[p.experts[i]] + p.positions[i];
    p.positions[i] = position;
    p.sources[position] = i / p.topK;
  }
  for (int e = threadIdx.x; e < p.numExperts; e += kSortThreads) {
    int tile = tileStarts[e];
    for (int row = 0; row < counts[e]; row += p.tileRows) {
      p.tiles[tile++] = {e, starts[e] + row, min(p.tileRows, counts[e] - row)};
    }
  }
}

__global__ void __launch_bounds__(kSortThreads) sortKernel(Sorting p) {
  waitForPrevious();
  sortItems(p);
}

// A decode batch in one launch, two tokens a warp at most.
constexpr int kFusedRows = 2 * kSortThreads / 32;
template <class T, int kHeld>
__global__ void __launch_bounds__(kSortThreads) routeAndSortKernel(Routing<T> routing, int rows,
                                                                   Sorting sorting) {
  waitForPrevious();
  for (int token = threadIdx.x / 32; token < rows; token += kSortThreads / 32) {
    routeToken<T, kHeld>(routing, token);
  }
  __syncthreads();
  sortItems(sorting);
}

// ---------------------------------------------------------------- plain products

// One warp an output: any type, any width. hidden[item] = silu(gate x) * (up x).
template <class T>
__global__ void __launch_bounds__(256) plainGateUp(const T* x, int64_t stride, const T* gateUp,
                                                   const int* experts, T* hidden, int topK,
                                                   int width, int inner) {
  waitForPrevious();
  const int lane = threadIdx.x % 32, column = blockIdx.y * 8 + threadIdx.x / 32;
  if (column >= inner) return;
  const int64_t item = blockIdx.x;
  const T* row = x + item / topK * stride;
  const T* gate = gateUp + (int64_t(experts[item]) * 2 * inner + column) * width;
  const T* up = gate + int64_t(inner) * width;
  float gated = 0.0f, upped = 0.0f;
  for (int i = lane; i < width; i += 32) {
    const float value = toFloat(row[i]);
    gated += value * toFloat(gate[i]);
    upped += value * toFloat(up[i]);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    gated += __shfl_xor_sync(~0u, gated, step);
    upped += __shfl_xor_sync(~0u, upped, step);
  }
  if (lane == 0) hidden[item * inner + column] = fromFloat<T>(silu<T>(gated) * upped);
}

template <class T>
__global__ void __launch_bounds__(256) plainDown(const T* hidden, const T* down, const int* experts,
                                                 T* results, int width, int inner) {
  waitForPrevious();
  const int lane = threadIdx.x % 32, column = blockIdx.y * 8 + threadIdx.x / 32;
  if (column >= width) return;
  const int64_t item = blockIdx.x;
  const T* matrix = down + (int64_t(experts[item]) * width + column) * inner;
  float sum = 0.0f;
  for (int i = lane; i < inner; i += 32) {
    sum += toFloat(hidden[item * inner + i]) * toFloat(matrix[i]);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  if (lane == 0) results[item * width + column] = fromFloat<T>(sum);
}

// ---------------------------------------------------------------- the weighted sum

// out[t] = sum over k, in order, of share * result. `positions` null: results lie by item.
template <class T, int N>
__global__ void __launch_bounds__(256) combineKernel(const T* results, const int* positions,
                                                     const float* shares, int topK, T* out,
                                                     int64_t outStride, int width) {
  waitForPrevious();
  const int64_t token = blockIdx.x;
  const int column = (blockIdx.y * blockDim.x + threadIdx.x) * N;
  if (column >= width) return;
  float sums[N] = {};
#pragma unroll 4
  for (int k = 0; k < topK; k++) {
    const int64_t item = token * topK + k;
    const int64_t position = positions ? positions[item] : item;
    float values[N];
    unpack<T, N>(loadRaw<T, N>(results + position * width + column), values);
    const float share = shares[item];
#pragma unroll
    for (int i = 0; i < N; i++) sums[i] += share * values[i];
  }
  storeRaw<T, N>(out + token * outStride + column, pack<T, N>(sums));
}

// ---------------------------------------------------------------- launches

template <class T, int kHeld>
void route(const Routing<T>& routing, int rows, const Sorting* sorting, cudaStream_t stream) {
  if (sorting && rows <= kFusedRows) {
    launch("moe: route and sort", routeAndSortKernel<T, kHeld>, dim3(1), kSortThreads, 0, stream,
           routing, rows, *sorting);
    return;
  }
  launch("moe: route", routeKernel<T, kHeld>, dim3(divideUp(rows, 4)), 128, 0, stream, routing,
         rows);
  if (sorting) launch("moe: sort", sortKernel, dim3(1), kSortThreads, 0, stream, *sorting);
}

template <class T>
void route(const Routing<T>& routing, int rows, const Sorting* sorting, cudaStream_t stream) {
  if (routing.numExperts <= 128) return route<T, 4>(routing, rows, sorting, stream);
  route<T, 16>(routing, rows, sorting, stream);
}

// Tiles by rows an expert gets on average: weights bound the small ones, tensor cores the large.
using Tiny = GemmTile<16, 32, 128, 1, 1, 4, 4>;
using Small = GemmTile<32, 64, 64, 1, 2, 2, 4>;
using Medium = GemmTile<64, 128, 64, 2, 2, 1, 3>;
using Large = GemmTile<128, 128, 64, 2, 2, 1, 3>;

template <class T, class Tile>
void multiplyTiles(const GroupedGemm& gateUp, const GroupedGemm& down, int maxTiles,
                   cudaStream_t stream) {
  launchGroupedGemm<T, Tile, true>(gateUp, maxTiles, stream);
  launchGroupedGemm<T, Tile, false>(down, maxTiles, stream);
}

int tileRowsOf(int64_t items, int experts) {
  const int64_t average = items / experts;
  return average <= 4 ? 16 : average <= 24 ? 32 : average <= 64 ? 64 : 128;
}

template <class T>
void combine(const Moe& step, const Scratch& scratch, const int* positions, int rows,
             cudaStream_t stream) {
  constexpr Elem elem = std::is_same_v<T, float>    ? Elem::F32
                        : std::is_same_v<T, __half> ? Elem::F16
                                                    : Elem::BF16;
  const int width = step.out.width;
  const bool packed = packable(elem, {step.out.data, scratch.results}, {width, step.out.stride});
  const int packs = packed ? width / kPack<T> : width;
  const int threads = static_cast<int>(std::min<int64_t>(256, roundUp(packs, 32)));
  launch("moe: combine", packed ? combineKernel<T, kPack<T>> : combineKernel<T, 1>,
         dim3(rows, static_cast<unsigned>(divideUp(packs, threads))), threads, 0, stream,
         static_cast<const T*>(scratch.results), positions,
         static_cast<const float*>(scratch.shares), step.topK, static_cast<T*>(step.out.data),
         step.out.stride, width);
}

}  // namespace

size_t moeScratchBytes(Elem elem, int experts, int inner, int width, int topK, int maxTokens) {
  Scratch scratch;
  return layOut(elem, experts, inner, width, int64_t(maxTokens) * topK, nullptr, scratch);
}

void moe(Elem elem, const Moe& step, int rows, cudaStream_t stream) {
  if (step.experts < 1 || step.experts > kMaxExperts) {
    throw CudaError("moe: experts must be 1 to 512, received " + std::to_string(step.experts));
  }
  if (step.topK < 1 || step.topK > std::min(step.experts, kMaxTopK)) {
    throw CudaError("moe: topK must be 1 to min(experts, 32), received " +
                    std::to_string(step.topK));
  }
  if (rows == 0) return;
  const int width = step.out.width, inner = step.inner;
  const int items = rows * step.topK;
  Scratch scratch;
  layOut(elem, step.experts, inner, width, items, step.scratch, scratch);
  const int tileRows = tileRowsOf(items, step.experts);
  const Sorting sorting{scratch.experts,   scratch.positions, scratch.sources, scratch.tiles,
                        scratch.tileCount, items,             step.topK,       step.experts,
                        tileRows};
  const bool tensorCores = elem != Elem::F32 && packable(elem, {step.x.data, step.gateUp, step.down},
                                                         {width, inner, step.x.stride});
  withElem(elem, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const Routing<T> routing{static_cast<const T*>(step.router.data),
                             step.router.stride,
                             scratch.experts,
                             scratch.shares,
                             step.experts,
                             step.topK,
                             step.normalize};
    route<T>(routing, rows, tensorCores ? &sorting : nullptr, stream);
    if (!tensorCores) {
      launch("moe: gate and up", plainGateUp<T>, dim3(items, unsigned(divideUp(inner, 8))), 256, 0,
             stream, static_cast<const T*>(step.x.data), step.x.stride,
             static_cast<const T*>(step.gateUp), static_cast<const int*>(scratch.experts),
             static_cast<T*>(scratch.hidden), step.topK, width, inner);
      launch("moe: down", plainDown<T>, dim3(items, unsigned(divideUp(width, 8))), 256, 0, stream,
             static_cast<const T*>(scratch.hidden), static_cast<const T*>(step.down),
             static_cast<const int*>(scratch.experts), static_cast<T*>(scratch.results), width,
             inner);
      combine<T>(step, scratch, nullptr, rows, stream);
      return;
    }
    if constexpr (sizeof(T) == 2) {
      const GroupedGemm gateUp{step.x.data,   scratch.sources,   step.gateUp,   scratch.hidden,
                               scratch.tiles, scratch.tileCount, step.x.stride, inner, width};
      const GroupedGemm down{scratch.hidden, nullptr,           step.down, scratch.results,
                             scratch.tiles,  scratch.tileCount, inner,     width, inner};
      const int maxTiles = maxTilesOf(items, step.experts, tileRows);
      switch (tileRows) {
        case 16: multiplyTiles<T, Tiny>(gateUp, down, maxTiles, stream); break;
        case 32: multiplyTiles<T, Small>(gateUp, down, maxTiles, stream); break;
        case 64: multiplyTiles<T, Medium>(gateUp, down, maxTiles, stream); break;
        default: multiplyTiles<T, Large>(gateUp, down, maxTiles, stream);
      }
      combine<T>(step, scratch, scratch.positions, rows, stream);
    }
  });
}

}  // namespace millrace::cuda
