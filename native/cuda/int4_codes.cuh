// How codes of 4 bits lie in memory and become numbers.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "elements.h"
#include "int4_gemm.h"

namespace millrace::cuda {

constexpr int kInt4Rows = 64, kInt4Columns = 64;  // of a block of codes
constexpr int kInt4BlockBytes = kInt4Rows * kInt4Columns / 2;

inline int int4BlocksOfN(int n) { return static_cast<int>(divideUp(n, kInt4Rows)); }
inline int int4BlocksOfK(int k) { return static_cast<int>(divideUp(k, kInt4Columns)); }
// Of each output; beyond k are zeros.
inline int int4GroupsKept(int k, int group) {
  return static_cast<int>(divideUp(int4BlocksOfK(k) * kInt4Columns, group));
}
inline size_t int4CodeBytes(int n, int k) {
  return size_t(int4BlocksOfN(n)) * int4BlocksOfK(k) * kInt4BlockBytes;
}
// Behind the codes.
inline float* int4Scales(const Int4Weight& weight) {
  return reinterpret_cast<float*>(weight.data + int4CodeBytes(weight.n, weight.k));
}

// Two ones.
template <class T>
constexpr unsigned kOnes = std::is_same_v<T, __half> ? 0x3c003c00u : 0x3f803f80u;

// Pairs of code - 8 from the nibbles i and i + 4 of a word: the code in the last bits of 128
// (bfloat16) or 1024 (float16), less 136 or 1032; all of it is exact.
template <class T>
__device__ __forceinline__ void codesOf(unsigned word, unsigned (&a)[4]) {
  constexpr bool kHalf = std::is_same_v<T, __half>;
  constexpr unsigned kPower = kHalf ? 0x64006400u : 0x43004300u;
  constexpr unsigned kZero = kHalf ? 0x64086408u : 0x43084308u;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    unsigned pair;
    asm("lop3.b32 %0, %1, 0x000f000f, %2, 0xea;" : "=r"(pair) : "r"(word >> 4 * i), "r"(kPower));
    if constexpr (kHalf) {
      const __half2 code = __hsub2(*reinterpret_cast<const __half2*>(&pair),
                                   *reinterpret_cast<const __half2*>(&kZero));
      a[i] = *reinterpret_cast<const unsigned*>(&code);
    } else {
      const __nv_bfloat162 code = __hsub2(*reinterpret_cast<const __nv_bfloat162*>(&pair),
                                          *reinterpret_cast<const __nv_bfloat162*>(&kZero));
      a[i] = *reinterpret_cast<const unsigned*>(&code);
    }
  }
}

}  // namespace millrace::cuda
