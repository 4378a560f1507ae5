// Tensor core, ldmatrix and cp.async wrappers (PTX ISA, sm_80 and up) and the layout of a tile of
// keys or values in shared memory, as both attention kernels use them.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace millrace::cuda {

// Fragments of mma.m16n8k16, g = lane / 4, t = lane % 4:
//   A (16 x 16)  a0 (g, 2t..)  a1 (g + 8, 2t..)  a2 (g, 2t + 8..)  a3 (g + 8, 2t + 8..)
//   B (16 x 8)   b0 (2t.., g)  b1 (2t + 8.., g)
//   C (16 x 8)   c0, c1 (g, 2t..)  c2, c3 (g + 8, 2t..)
// Two neighboring C tiles packed to 16 bits are therefore an A fragment.
template <typename T>
struct Half2;
template <>
struct Half2<__nv_bfloat16> {
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    uint32_t out;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
  }
  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};
template <>
struct Half2<__half> {
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    uint32_t out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
    return out;
  }
  static __device__ __forceinline__ void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

__device__ __forceinline__ void ldmatrix4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void ldmatrix4Trans(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// 16 bytes; `bytes` 0 writes zeros and reads nothing.
__device__ __forceinline__ void copyAsync16(uint32_t target, const void* source) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(target), "l"(source)
               : "memory");
}
__device__ __forceinline__ void copyAsync16Or0(uint32_t target, const void* source, int bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void copyAsyncCommit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void copyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ float exp2Fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

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
// Two elements of T as two of C.
template <typename T, typename C>
__device__ __forceinline__ uint32_t converted(uint32_t two) {
  if constexpr (sizeof(T) == sizeof(C) && !std::is_same<T, C>::value) {
    // bfloat16 to float16
    const auto limited = [](uint32_t bits) {
      return fminf(fmaxf(__uint_as_float(bits), -65504.0f), 65504.0f);
    };
    return Half2<C>::pack(limited(two << 16), limited(two & 0xffff0000u));
  }
  return two;
}

__device__ __forceinline__ float quadMax(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float quadSum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

// For exponents: a row that has seen no key has the maximum -inf, and -inf - -inf is not a number.
__device__ __forceinline__ float finiteOr0(float x) { return x == -INFINITY ? 0.0f : x; }

}  // namespace millrace::cuda
