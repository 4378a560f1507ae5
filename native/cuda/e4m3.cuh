// 8-bit floating point e4m3 (OCP "8-bit Floating Point Specification", 2023; no infinities) of the
// KV cache, without a scale: what is larger than 448 becomes 448. Conversions are one instruction
// from compute capability 8.9 on and exact towards 16-bit floats.
#pragma once
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

namespace millrace::cuda {

using E4m3 = __nv_fp8_e4m3;

__device__ __forceinline__ float toFloat(E4m3 x) { return static_cast<float>(x); }

// Two numbers, the first in the low half.
__device__ __forceinline__ uint32_t halvesOfE4m3(uint32_t low16) {
  const __half2_raw two =
      __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(low16), __NV_E4M3);
  return two.x | static_cast<uint32_t>(two.y) << 16;
}

// Nearest, ties to even; NaN stays NaN.
template <int N>
__device__ __forceinline__ void storeE4m3(E4m3* to, const float (&values)[N]) {
  if constexpr (N == 1) {
    to->__x = __nv_cvt_float_to_fp8(values[0], __NV_SATFINITE, __NV_E4M3);
  } else {
    static_assert(N % 4 == 0, "whole words");
    uint32_t words[N / 4];
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(values[i], values[i + 1]),
                                                    __NV_SATFINITE, __NV_E4M3);
      const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(values[i + 2], values[i + 3]),
                                                     __NV_SATFINITE, __NV_E4M3);
      words[i / 4] = low | high << 16;
    }
    if constexpr (N == 4) *reinterpret_cast<uint32_t*>(to) = words[0];
    if constexpr (N == 8) *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
    static_assert(N <= 8, "up to 8 bytes");
  }
}

}  // namespace millrace::cuda
