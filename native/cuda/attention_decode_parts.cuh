// Decode items of which several warps had keys: what each of them leaves, and how it becomes the item's
// results. Parts of one block meet in its shared memory, those of several blocks in global memory, where the
// last of them to arrive merges them. The order of parts is that of the keys, whoever comes first.
#pragma once
#include "attention_decode.cuh"
#include "attention_mma.cuh"

namespace millrace::cuda {

template <typename T>
__device__ __forceinline__ void storePair(T* row, int column, int width, float x, float y) {
  if (column < width) *reinterpret_cast<uint32_t*>(row + column) = Half2<T>::pack(x, y);
}

// A row of several parts together: for each lane four columns of each 128, and what exponents and their
// sum are.
template <int kDim>
struct MergedRow {
  static constexpr int kPasses = kDim <= 128 ? 1 : kDim / 128;
  float4 sums[kPasses];
  float reference, sum;
};

// Parts have rows of headStride sums, then reference and sum of each row. partOf(i): where the part i is,
// in global memory, where other blocks have written it, or shared.
template <int kDim, bool kGlobal, class PartOf>
__device__ MergedRow<kDim> mergeRow(const DecodeArgs& a, int row, int count, int lane, PartOf partOf) {
  constexpr int kPasses = MergedRow<kDim>::kPasses;
  // Read at a time. Of a block's own parts few: code that runs once a launch takes long to fetch.
  constexpr int kUnroll = kGlobal ? 8 : 2;
  const auto load = [](auto* from) {
    if constexpr (kGlobal) return __ldcg(from);
    else return *from;
  };
  MergedRow<kDim> merged;
#pragma unroll
  for (float4& sums : merged.sums) sums = make_float4(0, 0, 0, 0);
  merged.reference = -INFINITY;
  merged.sum = 0;
  for (int i0 = 0; i0 < count; i0 += kUnroll) {
    float2 of[kUnroll];
    float4 sums[kUnroll][kPasses];
    float reference = merged.reference;
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      of[u] = make_float2(-INFINITY, 0);
#pragma unroll
      for (float4& each : sums[u]) each = make_float4(0, 0, 0, 0);
      if (i0 + u >= count) continue;
      const float* part = partOf(i0 + u);
      of[u] = load(reinterpret_cast<const float2*>(part + a.passRows * a.headStride + 2 * row));
#pragma unroll
      for (int pass = 0; pass < kPasses; pass++) {
        const int column = pass * 128 + lane * 4;
        if (column >= a.headStride) continue;
        sums[u][pass] = load(reinterpret_cast<const float4*>(part + row * a.headStride + column));
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; u++) reference = fmaxf(reference, of[u].x);
    const auto addTo = [&](float4& to, float factor, const float4& more) {
      to.x += factor * more.x;
      to.y += factor * more.y;
      to.z += factor * more.z;
      to.w += factor * more.w;
    };
    const float keep = exp2Fast(merged.reference - reference);
    merged.reference = reference;
    merged.sum *= keep;
#pragma unroll
    for (float4& each : merged.sums) each.x *= keep, each.y *= keep, each.z *= keep, each.w *= keep;
#pragma unroll
    for (int u = 0; u < kUnroll; u++) {
      const float weight = exp2Fast(of[u].x - reference);
      merged.sum += weight * of[u].y;
#pragma unroll
      for (int pass = 0; pass < kPasses; pass++) addTo(merged.sums[pass], weight, sums[u][pass]);
    }
  }
  return merged;
}

template <int kDim>
__device__ void storePart(const DecodeArgs& a, const MergedRow<kDim>& merged, float* part, int row,
                          int lane) {
#pragma unroll
  for (int pass = 0; pass < MergedRow<kDim>::kPasses; pass++) {
    const int column = pass * 128 + lane * 4;
    if (column >= a.headStride) continue;
    *reinterpret_cast<float4*>(part + row * a.headStride + column) = merged.sums[pass];
  }
  if (lane == 0) {
    *reinterpret_cast<float2*>(part + a.passRows * a.headStride + 2 * row) =
        make_float2(merged.reference, merged.sum);
  }
}

template <typename T, int kDim>
__device__ void storeRow(const DecodeArgs& a, const MergedRow<kDim>& merged, T* row, int lane) {
  const float inverse = 1.0f / merged.sum;
#pragma unroll
  for (int pass = 0; pass < MergedRow<kDim>::kPasses; pass++) {
    const int column = pass * 128 + lane * 4;
    const float4& sums = merged.sums[pass];
    storePair(row, column, a.headDim, sums.x * inverse, sums.y * inverse);
    storePair(row, column + 2, a.headDim, sums.z * inverse, sums.w * inverse);
  }
}

// True for the last of `count` warps that come here; its counter is 0 again then.
__device__ inline bool lastToArrive(int* counter, int count, int lane) {
  __threadfence();
  __syncwarp();
  int last = 0;
  if (lane == 0) {
    last = atomicAdd(counter, 1) == count - 1;
    if (last) *counter = 0;
  }
  last = __shfl_sync(kAll, last, 0);
  if (last) __threadfence();
  return last != 0;
}

// An item of which warps of this block have parts.
struct Cut {
  int first, last;              // those warps
  int firstWorker, lastWorker;  // of all the item
  int rows;                     // 0: there is none
  int64_t out;  // elements to its first row
};

// The parts of a block: a warp may have one of the item that it ends, which others began, and one of the
// item that others go on with. The second lies where its ring was.
template <int kWarps>
struct Parts {
  unsigned char* rings;
  int ringBytes;
  float* ended;
  int floats;  // of a part
  __device__ float* endedOf(int warp) const { return ended + warp * floats; }
  __device__ float* goingOnOf(int warp) const {
    return reinterpret_cast<float*>(rings + warp * ringBytes);
  }
  __device__ float* of(const Cut& cut, int warp) const {
    return static_cast<int>(blockIdx.x) * kWarps + warp == cut.lastWorker ? endedOf(warp) : goingOnOf(warp);
  }
};

template <typename T, int kDim, int kWarps>
__device__ void finishRow(const DecodeArgs& a, const Cut& cut, const Parts<kWarps>& parts, int row,
                          int lane) {
  auto merged = mergeRow<kDim, false>(a, row, cut.last - cut.first + 1, lane,
                                      [&](int i) { return parts.of(cut, cut.first + i); });
  const int block = blockIdx.x, first = cut.firstWorker / kWarps, last = cut.lastWorker / kWarps;
  if (first != last) {
    // Of a block's items one may have begun in another, and one go on in another.
    const auto partial = [&](int of) {
      return a.partials + static_cast<int64_t>(2 * of + (of == first ? 1 : 0)) * parts.floats;
    };
    storePart(a, merged, partial(block), row, lane);
    const int count = last - first + 1;
    if (!lastToArrive(a.counters + first * kPassRows + row, count, lane)) return;
    merged = mergeRow<kDim, true>(a, row, count, lane, [&](int i) { return partial(first + i); });
  }
  storeRow(a, merged, static_cast<T*>(a.out) + cut.out + static_cast<int64_t>(row) * a.headDim, lane);
}

// Every warp of the block comes here when it is done. cut: whether it has left a part.
template <typename T, int kDim, int kWarps>
__device__ __forceinline__ void finishCuts(const DecodeArgs& a, const Cut* cuts, const Parts<kWarps>& parts,
                                           int warp, int lane, bool cut) {
  if (!__syncthreads_or(cut)) return;
  static_assert(kWarps < 32, "a lane for each cut");
  const int rows = lane <= kWarps ? cuts[lane].rows : 0;
  int row = 0;
  for (unsigned there = __ballot_sync(kAll, rows > 0); there; there &= there - 1) {
    const int i = __ffs(there) - 1;
    for (int r = 0, end = __shfl_sync(kAll, rows, i); r < end; r++, row++) {
      if (row % kWarps == warp) finishRow<T, kDim, kWarps>(a, cuts[i], parts, r, lane);
    }
  }
}

}  // namespace millrace::cuda
