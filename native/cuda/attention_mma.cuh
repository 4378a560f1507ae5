// The layout of a tile of keys or values in shared memory, as both attention kernels use it.
#pragma once
#include <type_traits>

#include "elements.h"

namespace millrace::cuda {

constexpr unsigned kAll = 0xffffffffu;  // lanes of a warp

// 16-byte chunks of a row are exchanged by low bits of the row's number: the eight rows of an
// ldmatrix lie in eight different groups of banks, as do eight neighbors of a row.
template <int kRowBytes>
__device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
  static_assert(kRowBytes >= 64, "at least four chunks");
  return row * kRowBytes + ((chunk ^ (kRowBytes == 64 ? (row >> 1) & 3 : row & 7)) << 4);
}

// Lane addresses within 16 rows x 16 columns; the columns at 16 * k are at (address ^ (k << 5)) when
// the tile's base is a multiple of the row's bytes.
// Rows are n, columns k (keys; b of columns 0-7 in r0, r1 and of 8-15 in r2, r3).
template <int kRowBytes>
__device__ __forceinline__ uint32_t laneOfKeys(int lane) {
  return swizzled<kRowBytes>((lane >> 4) * 8 + (lane & 7), (lane >> 3) & 1);
}
// Rows are k, columns n, to be transposed (values); rows are m, columns k (queries) is the same map.
template <int kRowBytes>
__device__ __forceinline__ uint32_t laneOfValues(int lane) {
  return swizzled<kRowBytes>(((lane >> 3) & 1) * 8 + (lane & 7), lane >> 4);
}

// What products are computed in: all of e4m3 is exact in float16.
template <typename T, bool kFp8>
struct ComputeOf {
  using Type = T;
};
template <typename T>
struct ComputeOf<T, true> {
  using Type = __half;
};
// The nearest that float16 has besides infinities.
__device__ __forceinline__ float withinHalf(float x) { return fminf(fmaxf(x, -65504.0f), 65504.0f); }
// Two elements of T as two of C.
template <typename T, typename C>
__device__ __forceinline__ uint32_t converted(uint32_t two) {
  if constexpr (sizeof(T) == sizeof(C) && !std::is_same<T, C>::value) {
    // bfloat16 to float16
    return Half2<C>::pack(withinHalf(__uint_as_float(two << 16)),
                          withinHalf(__uint_as_float(two & 0xffff0000u)));
  }
  return two;
}

__device__ __forceinline__ float quadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(kAll, x, 1));
  return fmaxf(x, __shfl_xor_sync(kAll, x, 2));
}
__device__ __forceinline__ float quadSum(float x) {
  x += __shfl_xor_sync(kAll, x, 1);
  return x + __shfl_xor_sync(kAll, x, 2);
}

// For exponents: a row that has seen no key has the maximum -inf, and -inf - -inf is not a number.
__device__ __forceinline__ float finiteOr0(float x) { return x == -INFINITY ? 0.0f : x; }

}  // namespace millrace::cuda
