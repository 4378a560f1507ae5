// Rows are read once: a block holds one in registers, finds its peak, and writes codes and scale.
#include "fp8.h"

#include <cuda_fp8.h>

#include <algorithm>
#include <string>

#include "block_reduce.cuh"
#include "elements.h"
#include "launch.h"

namespace millrace::cuda {
namespace {

template <class T, bool kPacked>
__device__ __forceinline__ Raw<T, kPack<T>> loadPack(const T* from) {
  constexpr int N = kPack<T>;
  if constexpr (kPacked) {
    return loadRaw<T, N>(from);
  } else {
    T elements[N];
#pragma unroll
    for (int i = 0; i < N; i++) elements[i] = from[i];
    Raw<T, N> raw;
    memcpy(&raw, elements, sizeof(elements));
    return raw;
  }
}

// What a row is made of. fill(row, packs, held): pack threadIdx.x + u * blockDim.x to held[u].
template <class T_, bool kPacked>
struct Stored {
  using T = T_;
  const T* x;
  int64_t stride;
  template <int kHeld>
  __device__ void fill(int64_t row, int packs, Raw<T, kPack<T>> (&held)[kHeld]) const {
#pragma unroll
    for (int u = 0; u < kHeld; u++) {
      const int at = threadIdx.x + u * blockDim.x;
      if (at < packs) held[u] = loadPack<T, kPacked>(x + row * stride + at * kPack<T>);
    }
  }
};

template <class T_, bool kPacked>
struct Normed {
  using T = T_;
  const T* x;
  const float* weight;
  int64_t stride;
  float eps;
  template <int kHeld>
  __device__ void fill(int64_t row, int packs, Raw<T, kPack<T>> (&held)[kHeld]) const {
    constexpr int N = kPack<T>;
    Stored<T, kPacked>{x, stride}.fill(row, packs, held);
    float squares = 0.0f;
#pragma unroll
    for (int u = 0; u < kHeld; u++) {
      if (threadIdx.x + u * blockDim.x >= packs) continue;
      float values[N];
      unpack<T, N>(held[u], values);
#pragma unroll
      for (int i = 0; i < N; i++) squares += values[i] * values[i];
    }
    const float scale = 1.0f / sqrtf(blockReduce<Sum>(squares) / (packs * N) + eps);
#pragma unroll
    for (int u = 0; u < kHeld; u++) {
      const int at = threadIdx.x + u * blockDim.x;
      if (at >= packs) continue;
      float values[N], factors[N];
      unpack<T, N>(held[u], values);
      loadFloats<N>(weight + at * N, factors);
#pragma unroll
      for (int i = 0; i < N; i++) values[i] *= scale * factors[i];
      held[u] = pack<T, N>(values);
    }
  }
};

template <class T_, bool kPacked>
struct Gated {
  using T = T_;
  const T* x;
  int64_t stride;
  int width;
  template <int kHeld>
  __device__ void fill(int64_t row, int packs, Raw<T, kPack<T>> (&held)[kHeld]) const {
    constexpr int N = kPack<T>;
    Raw<T, N> ups[kHeld];
    Stored<T, kPacked>{x, stride}.fill(row, packs, held);
    Stored<T, kPacked>{x + width, stride}.fill(row, packs, ups);
#pragma unroll
    for (int u = 0; u < kHeld; u++) {
      if (threadIdx.x + u * blockDim.x >= packs) continue;
      float gate[N], up[N];
      unpack<T, N>(held[u], gate);
      unpack<T, N>(ups[u], up);
#pragma unroll
      for (int i = 0; i < N; i++) gate[i] = silu<T>(gate[i]) * up[i];
      held[u] = pack<T, N>(gate);
    }
  }
};

template <class Source, int kHeld>
__global__ void __launch_bounds__(1024) quantizeKernel(Source source, Fp8Rows out, int packs) {
  using T = typename Source::T;
  constexpr int N = kPack<T>;
  waitForPrevious();
  const int64_t row = blockIdx.x;
  Raw<T, N> held[kHeld];
  source.fill(row, packs, held);
  float peak = 0.0f;
#pragma unroll
  for (int u = 0; u < kHeld; u++) {
    if (threadIdx.x + u * blockDim.x >= packs) continue;
    float values[N];
    unpack<T, N>(held[u], values);
#pragma unroll
    for (int i = 0; i < N; i++) peak = fmaxf(peak, fabsf(values[i]));
  }
  peak = fmaxf(blockReduce<Max>(peak), kFp8LeastPeak);
  if (threadIdx.x == 0) out.scales[row] = peak / kFp8Largest;
  const float factor = kFp8Largest / peak;
  uint8_t* codes = static_cast<uint8_t*>(out.codes) + row * out.stride;
#pragma unroll
  for (int u = 0; u < kHeld; u++) {
    const int at = threadIdx.x + u * blockDim.x;
    if (at >= packs) continue;
    float values[N];
    unpack<T, N>(held[u], values);
    uint8_t bytes[N];
#pragma unroll
    for (int i = 0; i < N; i++) {
      bytes[i] = __nv_cvt_float_to_fp8(values[i] * factor, __NV_SATFINITE, __NV_E4M3);
    }
    Raw<uint8_t, N> raw;
    memcpy(&raw, bytes, N);
    storeRaw<uint8_t, N>(codes + at * N, raw);
  }
}

// As many threads a row as it has packs where there are few rows, for latency; fewer otherwise.
template <class Source>
void launchRows(const char* name, const Source& source, int rows, int width, Fp8Rows out,
                cudaStream_t stream) {
  if (rows == 0) return;
  if (width % kFp8Multiple != 0 || width > kFp8MaxWidth) {
    throw CudaError(std::string(name) + ": rows of " + std::to_string(width) +
                    " columns; expected a multiple of 16, at most 32,768");
  }
  const int packs = width / kPack<typename Source::T>;
  const int most = rows < 512 ? 1024 : 256;
  const auto launched = [&](auto held, int threads) {
    constexpr int kHeld = decltype(held)::value;
    if (divideUp(packs, kHeld) > threads) return false;
    const int used = static_cast<int>(roundUp(divideUp(packs, kHeld), 32));
    launch(name, quantizeKernel<Source, kHeld>, dim3(rows), used, 0, stream, source, out, packs);
    return true;
  };
  launched(std::integral_constant<int, 1>{}, most) ||
      launched(std::integral_constant<int, 2>{}, most) ||
      launched(std::integral_constant<int, 4>{}, 1024);
  if constexpr (sizeof(typename Source::T) == 4) {
    if (packs > 4096) launched(std::integral_constant<int, 8>{}, 1024);
  }
}

// Calls f with the type and whether packs can be loaded whole.
template <class F>
void withSource(Elem elem, bool packed, F&& f) {
  withElem(elem, [&](auto tag) {
    if (packed) {
      f(tag, std::true_type{});
    } else {
      f(tag, std::false_type{});
    }
  });
}
// What is fused with another operation, which is for the 16-bit types.
template <class F>
void withHalfSource(Elem elem, bool packed, F&& f) {
  withSource(elem, packed, [&](auto tag, auto whole) {
    if constexpr (sizeof(typename decltype(tag)::Type) == 2) {
      f(tag, whole);
    } else {
      throw CudaError("fp8 rows are made of 16-bit ones only");
    }
  });
}

}  // namespace

void fp8Quantize(Elem elem, Matrix x, int rows, Fp8Rows out, cudaStream_t stream) {
  withSource(elem, packable(elem, {x.data}, {x.stride}), [&](auto tag, auto packed) {
    using T = typename decltype(tag)::Type;
    const Stored<T, decltype(packed)::value> source{static_cast<const T*>(x.data), x.stride};
    launchRows("fp8Quantize", source, rows, x.width, out, stream);
  });
}

void fp8RmsNorm(Elem elem, Matrix x, const float* weight, float eps, int rows, Fp8Rows out,
                cudaStream_t stream) {
  withHalfSource(elem, packable(elem, {x.data}, {x.stride}), [&](auto tag, auto packed) {
    using T = typename decltype(tag)::Type;
    const Normed<T, decltype(packed)::value> source{static_cast<const T*>(x.data), weight, x.stride,
                                                    eps};
    launchRows("fp8RmsNorm", source, rows, x.width, out, stream);
  });
}

void fp8SiluMul(Elem elem, Matrix x, int width, int rows, Fp8Rows out, cudaStream_t stream) {
  const bool aligned = packable(elem, {x.data}, {x.stride, width});
  withHalfSource(elem, aligned, [&](auto tag, auto packed) {
    using T = typename decltype(tag)::Type;
    const Gated<T, decltype(packed)::value> source{static_cast<const T*>(x.data), x.stride, width};
    launchRows("fp8SiluMul", source, rows, width, out, stream);
  });
}

}  // namespace millrace::cuda
