// Loads and stores of packs of 1 to 16 bytes of the storage types, as float32 values.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <initializer_list>

#include "kernels.h"
#include "tensor_core.cuh"

namespace millrace::cuda {

template <class T>
struct TypeTag {
  using Type = T;
};

// Calls f with the tag of the C++ type of `elem`.
template <class F>
void withElem(Elem elem, F&& f) {
  switch (elem) {
    case Elem::F32: return f(TypeTag<float>{});
    case Elem::F16: return f(TypeTag<__half>{});
    case Elem::BF16: return f(TypeTag<__nv_bfloat16>{});
  }
}

template <int kBytes> struct RawOf;
template <> struct RawOf<2> { using Type = unsigned short; };
template <> struct RawOf<4> { using Type = unsigned int; };
template <> struct RawOf<8> { using Type = uint2; };
template <> struct RawOf<16> { using Type = uint4; };

// N elements of T as one machine word; N * sizeof(T) bytes, aligned to that.
template <class T, int N>
using Raw = typename RawOf<N * sizeof(T)>::Type;

// Elements of one 16-byte access.
template <class T>
constexpr int kPack = 16 / sizeof(T);

template <class T, int N>
__device__ __forceinline__ Raw<T, N> loadRaw(const T* from) {
  return *reinterpret_cast<const Raw<T, N>*>(from);
}
template <class T, int N>
__device__ __forceinline__ void storeRaw(T* to, Raw<T, N> raw) {
  *reinterpret_cast<Raw<T, N>*>(to) = raw;
}

__device__ __forceinline__ float toFloat(float x) { return x; }
__device__ __forceinline__ float toFloat(__half x) { return __half2float(x); }
__device__ __forceinline__ float toFloat(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T> __device__ __forceinline__ T fromFloat(float x);
template <> __device__ __forceinline__ float fromFloat<float>(float x) { return x; }
template <> __device__ __forceinline__ __half fromFloat<__half>(float x) {
  return __float2half_rn(x);
}
template <> __device__ __forceinline__ __nv_bfloat16 fromFloat<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

template <class T, int N>
__device__ __forceinline__ void unpack(Raw<T, N> raw, float (&values)[N]) {
  T elements[N];
  memcpy(elements, &raw, sizeof(elements));
#pragma unroll
  for (int i = 0; i < N; i++) values[i] = toFloat(elements[i]);
}
// To 16 bits two at a time, in one instruction; one at a time the compiler takes a slower unit where it needs
// the rounded values again.
template <class T, int N>
__device__ __forceinline__ Raw<T, N> pack(const float (&values)[N]) {
  Raw<T, N> raw;
  if constexpr (sizeof(T) == 2 && N % 2 == 0) {
    uint32_t pairs[N / 2];
#pragma unroll
    for (int i = 0; i < N / 2; i++) pairs[i] = Half2<T>::pack(values[2 * i], values[2 * i + 1]);
    memcpy(&raw, pairs, sizeof(pairs));
  } else {
    T elements[N];
#pragma unroll
    for (int i = 0; i < N; i++) elements[i] = fromFloat<T>(values[i]);
    memcpy(&raw, elements, sizeof(elements));
  }
  return raw;
}

// float32 vectors (weights, biases), aligned to 4 * min(N, 4) bytes.
template <int N>
__device__ __forceinline__ void loadFloats(const float* from, float (&values)[N]) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int i = 0; i < N; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + i);
      values[i] = four.x, values[i + 1] = four.y, values[i + 2] = four.z, values[i + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) values[i] = from[i];
  }
}

// 2^x within 2 units of the last place; denormals are zeros.
__device__ __forceinline__ float exp2Fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// x * sigmoid(x). The short forms err by some 1e-6 and vanish in the rounding to 16 bits; those that keep
// denormals take twice the instructions.
template <class T>
__device__ __forceinline__ float silu(float x) {
  if constexpr (sizeof(T) == 4) return x / (1.0f + expf(-x));
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + exp2Fast(x * -1.4426950408889634f)));
  return x * inverse;
}

// Whether packs of 16 bytes can be used: every pointer is aligned, every count (widths, strides) is
// a multiple of the pack.
inline bool packable(Elem elem, std::initializer_list<const void*> pointers,
                     std::initializer_list<int64_t> counts) {
  for (const void* each : pointers) {
    if (reinterpret_cast<uintptr_t>(each) % 16 != 0) return false;
  }
  for (int64_t each : counts) {
    if (each % int64_t(16 / bytesOf(elem)) != 0) return false;
  }
  return true;
}

constexpr int64_t divideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t roundUp(int64_t a, int64_t b) { return divideUp(a, b) * b; }

}  // namespace millrace::cuda
