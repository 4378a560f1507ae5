// Prefill items that are split over their keys: where their partial results lie and how the last of the
// parts to arrive merges them all.
#pragma once
#include "attention_mma.cuh"
#include "attention_prefill.cuh"

namespace millrace::cuda {

// Of the parts of one item and KV head. A partial result: kRows x headStride sums, then kRows pairs of
// maximum (of exponents to base 2) and sum.
template <int kRows>
class PrefillParts {
 public:
  __device__ __forceinline__ PrefillParts(const PrefillArgs& a, int slot, int kvHead)
      : args_(a), slot_(slot), kvHead_(kvHead) {}

  __device__ __forceinline__ float* sumsOf(int part, int row) const {
    return partial(part) + row * args_.headStride;
  }
  __device__ __forceinline__ float2* weightOf(int part, int row) const {
    return reinterpret_cast<float2*>(partial(part) + kRows * args_.headStride + 2 * row);
  }

  // By one thread once a part is written: whether it was the last. The counter is 0 again then.
  __device__ __forceinline__ bool arrive(int parts) const {
    int* counter = args_.counters + slot_ * args_.kvHeads + kvHead_;
    const bool last = atomicAdd(counter, 1) == parts - 1;
    if (last) *counter = 0;
    return last;
  }

  // By `threads` threads. rowOfOut(row): where the row's output begins.
  template <typename T, class RowOfOut>
  __device__ __forceinline__ void merge(int parts, int rows, int thread, int threads,
                                        RowOfOut rowOfOut) const {
    const int packs = args_.headStride / 4;
    for (int i = thread; i < rows * packs; i += threads) {
      const int row = i / packs, column = (i - row * packs) * 4;
      float4 acc = make_float4(0, 0, 0, 0);
      float highest = -INFINITY, total = 0;
#pragma unroll 4
      for (int part = 0; part < parts; part++) {
        const float2 ml = __ldcg(weightOf(part, row));
        const float4 v = __ldcg(reinterpret_cast<const float4*>(sumsOf(part, row) + column));
        const float newTop = fmaxf(highest, ml.x), offset = finiteOr0(newTop);
        const float keep = exp2Fast(highest - offset), weight = exp2Fast(ml.x - offset);
        acc.x = acc.x * keep + v.x * weight;
        acc.y = acc.y * keep + v.y * weight;
        acc.z = acc.z * keep + v.z * weight;
        acc.w = acc.w * keep + v.w * weight;
        total = total * keep + ml.y * weight;
        highest = newTop;
      }
      const float inverse = 1.0f / total;
      T* to = rowOfOut(row) + column;
      if (column < args_.headDim) {
        *reinterpret_cast<uint32_t*>(to) = Half2<T>::pack(acc.x * inverse, acc.y * inverse);
      }
      if (column + 2 < args_.headDim) {
        *reinterpret_cast<uint32_t*>(to + 2) = Half2<T>::pack(acc.z * inverse, acc.w * inverse);
      }
    }
  }

 private:
  __device__ __forceinline__ float* partial(int part) const {
    return args_.partials + (static_cast<int64_t>(slot_ + part) * args_.kvHeads + kvHead_) *
                                kRows * (args_.headStride + 2);
  }

  const PrefillArgs& args_;
  int slot_, kvHead_;
};

}  // namespace millrace::cuda
