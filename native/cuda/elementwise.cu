// Operations on rows that move or map numbers: bound by memory in prefill, by latency in decode.
#include <algorithm>

#include "block_reduce.cuh"
#include "elements.h"
#include "launch.h"

namespace millrace::cuda {
namespace {

// ---------------------------------------------------------------- maps

// Each thread maps kUnroll packs of one row, all loads before the first store. Op: In load(row,
// pack), store(row, pack, in).
template <class Op, int kUnroll>
__global__ void __launch_bounds__(256) mapRows(Op op, int packs) {
  waitForPrevious();
  const int64_t row = blockIdx.x;
  const int first = blockIdx.y * blockDim.x * kUnroll + threadIdx.x;
  typename Op::In in[kUnroll];
#pragma unroll
  for (int u = 0; u < kUnroll; u++) {
    const int pack = first + u * blockDim.x;
    if (pack < packs) in[u] = op.load(row, pack);
  }
#pragma unroll
  for (int u = 0; u < kUnroll; u++) {
    const int pack = first + u * blockDim.x;
    if (pack < packs) op.store(row, pack, in[u]);
  }
}

template <class Op>
void launchMap(const char* name, const Op& op, int rows, int packs, cudaStream_t stream) {
  if (rows == 0 || packs == 0) return;
  const int threads = static_cast<int>(std::min<int64_t>(256, roundUp(packs, 32)));
  // Small batches spread over all SMs; large ones keep more bytes in flight a thread.
  const bool large = int64_t(rows) * packs >= 1 << 19;
  const dim3 grid(rows, static_cast<unsigned>(divideUp(packs, threads * (large ? 2 : 1))));
  launch(name, large ? mapRows<Op, 2> : mapRows<Op, 1>, grid, threads, 0, stream, op, packs);
}

// out[row] = table[index[row]]; Word: 16 bytes, or one element. `previous`: of embed().
template <class Word>
struct CopyRows {
  using In = Word;
  const Word* table;
  const int *index, *previous;
  Word* out;
  int64_t tableStride, outStride;
  __device__ In load(int64_t row, int pack) const {
    int from = index[row];
    if (from < 0) from = max(previous[-1 - from], 0);
    return table[int64_t(from) * tableStride + pack];
  }
  __device__ void store(int64_t row, int pack, In in) const { out[row * outStride + pack] = in; }
};

template <class Word>
void copyRowsOf(const char* name, const void* table, int64_t tableStride, const int* index,
                const int* previous, int rows, int64_t width, Matrix out, int elementsPerWord,
                cudaStream_t stream) {
  const CopyRows<Word> op{static_cast<const Word*>(table), index, previous,
                          static_cast<Word*>(out.data), tableStride / elementsPerWord,
                          out.stride / elementsPerWord};
  launchMap(name, op, rows, static_cast<int>(width / elementsPerWord), stream);
}

void copyRows(const char* name, Elem elem, const void* table, int64_t tableStride, const int* index,
              const int* previous, int rows, Matrix out, cudaStream_t stream) {
  const int64_t width = out.width;
  if (packable(elem, {table, out.data}, {width, tableStride, out.stride})) {
    copyRowsOf<uint4>(name, table, tableStride, index, previous, rows, width, out,
                      static_cast<int>(16 / bytesOf(elem)), stream);
  } else if (elem == Elem::F32) {
    copyRowsOf<unsigned int>(name, table, tableStride, index, previous, rows, width, out, 1, stream);
  } else {
    copyRowsOf<unsigned short>(name, table, tableStride, index, previous, rows, width, out, 1, stream);
  }
}

template <class T, int N>
struct Add {
  struct In {
    Raw<T, N> a, b;
  };
  const T* a;
  const T* b;
  T* out;
  int64_t aStride, bStride, outStride;
  __device__ In load(int64_t row, int pack) const {
    return {loadRaw<T, N>(a + row * aStride + pack * N), loadRaw<T, N>(b + row * bStride + pack * N)};
  }
  __device__ void store(int64_t row, int at, In in) const {
    float left[N], right[N];
    unpack<T, N>(in.a, left);
    unpack<T, N>(in.b, right);
#pragma unroll
    for (int i = 0; i < N; i++) left[i] += right[i];
    storeRaw<T, N>(out + row * outStride + at * N, pack<T, N>(left));
  }
};

template <class T, int N>
struct SiluMul {
  struct In {
    Raw<T, N> gate, up;
  };
  const T* x;
  T* out;
  int64_t xStride, outStride;
  int width;
  __device__ In load(int64_t row, int pack) const {
    const T* gate = x + row * xStride + pack * N;
    return {loadRaw<T, N>(gate), loadRaw<T, N>(gate + width)};
  }
  __device__ void store(int64_t row, int at, In in) const {
    float gate[N], up[N];
    unpack<T, N>(in.gate, gate);
    unpack<T, N>(in.up, up);
#pragma unroll
    for (int i = 0; i < N; i++) gate[i] = silu<T>(gate[i]) * up[i];
    storeRaw<T, N>(out + row * outStride + at * N, pack<T, N>(gate));
  }
};

template <class T, int N>
struct AddBias {
  using In = Raw<T, N>;
  T* x;
  const float* bias;
  int64_t stride;
  __device__ In load(int64_t row, int pack) const {
    return loadRaw<T, N>(x + row * stride + pack * N);
  }
  __device__ void store(int64_t row, int at, In in) const {
    float values[N], addends[N];
    unpack<T, N>(in, values);
    loadFloats<N>(bias + at * N, addends);
#pragma unroll
    for (int i = 0; i < N; i++) values[i] += addends[i];
    storeRaw<T, N>(x + row * stride + at * N, pack<T, N>(values));
  }
};

// ---------------------------------------------------------------- RMS norm

template <class T>
struct Norm {
  const T* x;
  T* residual;  // or null
  const float* weight;
  T* out;
  int64_t xStride, residualStride, outStride;
  float eps;
  int group, groupsPerRow;
};

// The pack's values that are normed; with a residual, the new one is stored.
template <class T, int N>
__device__ __forceinline__ Raw<T, N> sumWithResidual(Raw<T, N> x, T* residual) {
  float values[N], sums[N];
  unpack<T, N>(x, values);
  unpack<T, N>(loadRaw<T, N>(residual), sums);
#pragma unroll
  for (int i = 0; i < N; i++) sums[i] += values[i];
  const Raw<T, N> rounded = pack<T, N>(sums);
  storeRaw<T, N>(residual, rounded);
  return rounded;
}

// A block a group, each thread holds kPacks packs: x is read once and the weight is under way
// before the sum is known.
template <class T, int kPacks>
__global__ void __launch_bounds__(1024) normHeld(Norm<T> p) {
  constexpr int N = kPack<T>;
  constexpr bool kEarlyWeight = kPacks <= 2;  // 1,024 threads have 64 registers each
  const int packs = p.group / N;
  const int64_t row = blockIdx.x / p.groupsPerRow;
  const int column = static_cast<int>(blockIdx.x % p.groupsPerRow) * p.group;
  float weight[kEarlyWeight ? kPacks : 1][N];
  if constexpr (kEarlyWeight) {  // a constant: no kernel before this one writes it
#pragma unroll
    for (int u = 0; u < kPacks; u++) {
      const int at = threadIdx.x + u * blockDim.x;
      if (at < packs) loadFloats<N>(p.weight + at * N, weight[u]);
    }
  }
  waitForPrevious();
  const T* x = p.x + row * p.xStride + column;
  Raw<T, N> held[kPacks];
#pragma unroll
  for (int u = 0; u < kPacks; u++) {
    const int at = threadIdx.x + u * blockDim.x;
    if (at < packs) held[u] = loadRaw<T, N>(x + at * N);
  }
  float squares = 0.0f;
#pragma unroll
  for (int u = 0; u < kPacks; u++) {
    const int at = threadIdx.x + u * blockDim.x;
    if (at >= packs) continue;
    if (p.residual) {
      T* residual = p.residual + row * p.residualStride + column + at * N;
      held[u] = sumWithResidual<T, N>(held[u], residual);
    }
    float values[N];
    unpack<T, N>(held[u], values);
#pragma unroll
    for (int i = 0; i < N; i++) squares += values[i] * values[i];
  }
  const float scale = 1.0f / sqrtf(blockReduce<Sum>(squares) / p.group + p.eps);
  T* out = p.out + row * p.outStride + column;
#pragma unroll
  for (int u = 0; u < kPacks; u++) {
    const int at = threadIdx.x + u * blockDim.x;
    if (at >= packs) continue;
    float values[N];
    unpack<T, N>(held[u], values);
    float(&factors)[N] = weight[kEarlyWeight ? u : 0];
    if constexpr (!kEarlyWeight) loadFloats<N>(p.weight + at * N, factors);
#pragma unroll
    for (int i = 0; i < N; i++) values[i] *= scale * factors[i];
    storeRaw<T, N>(out + at * N, pack<T, N>(values));
  }
}

// Any group: a second pass reads x (or the new residual) again, each thread what it read before.
template <class T, int N>
__global__ void __launch_bounds__(256) normTwice(Norm<T> p) {
  waitForPrevious();
  const int packs = p.group / N;
  const int64_t row = blockIdx.x / p.groupsPerRow;
  const int column = static_cast<int>(blockIdx.x % p.groupsPerRow) * p.group;
  const T* x = p.x + row * p.xStride + column;
  T* residual = p.residual ? p.residual + row * p.residualStride + column : nullptr;
  float squares = 0.0f;
  for (int at = threadIdx.x; at < packs; at += blockDim.x) {
    Raw<T, N> raw = loadRaw<T, N>(x + at * N);
    if (residual) raw = sumWithResidual<T, N>(raw, residual + at * N);
    float values[N];
    unpack<T, N>(raw, values);
#pragma unroll
    for (int i = 0; i < N; i++) squares += values[i] * values[i];
  }
  const float scale = 1.0f / sqrtf(blockReduce<Sum>(squares) / p.group + p.eps);
  const T* from = residual ? residual : x;
  T* out = p.out + row * p.outStride + column;
  for (int at = threadIdx.x; at < packs; at += blockDim.x) {
    float values[N], factors[N];
    unpack<T, N>(loadRaw<T, N>(from + at * N), values);
    loadFloats<N>(p.weight + at * N, factors);
#pragma unroll
    for (int i = 0; i < N; i++) values[i] *= scale * factors[i];
    storeRaw<T, N>(out + at * N, pack<T, N>(values));
  }
}

// ---------------------------------------------------------------- weights at load

template <class From, class To>
__global__ void __launch_bounds__(256) convertKernel(const From* source, To* target, size_t count) {
  waitForPrevious();
  const size_t step = size_t(gridDim.x) * blockDim.x;
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    target[i] = fromFloat<To>(toFloat(source[i]));
  }
}

__device__ __forceinline__ uint32_t hash32(uint32_t x) {  // src/model/weights.ts
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

template <class T>
__global__ void __launch_bounds__(256) fillDummyKernel(T* target, size_t first, size_t count,
                                                       uint32_t seed, float mean, float scale) {
  waitForPrevious();
  const size_t step = size_t(gridDim.x) * blockDim.x;
  for (size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const uint32_t h = hash32(seed ^ static_cast<uint32_t>(first + i));
    // All but the last sum is exact, so a fused multiply-add gives the same.
    const float u = static_cast<float>(h >> 8) * 0x1p-23f - 1.0f;
    target[i] = fromFloat<T>(mean + scale * u);
  }
}

// Enough blocks to fill any device, each thread with several elements.
unsigned gridOf(size_t count) {
  return static_cast<unsigned>(std::min<size_t>((count + 1023) / 1024, 132 * 32));
}

}  // namespace

void embed(Elem elem, const void* table, const int* tokens, const int* previous, int rows, Matrix out,
           cudaStream_t stream) {
  copyRows("embed", elem, table, out.width, tokens, previous, rows, out, stream);
}

void gatherRows(Elem elem, Matrix x, const int* rows, int count, Matrix out, cudaStream_t stream) {
  copyRows("gatherRows", elem, x.data, x.stride, rows, nullptr, count, out, stream);
}

void rmsNorm(Elem elem, Matrix x, const Matrix* residual, const float* weight, float eps, int group,
             int rows, Matrix out, cudaStream_t stream) {
  if (rows == 0 || out.width == 0) return;
  withElem(elem, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    constexpr int N = kPack<T>;
    const Norm<T> p{static_cast<const T*>(x.data),
                    residual ? static_cast<T*>(residual->data) : nullptr,
                    weight,
                    static_cast<T*>(out.data),
                    x.stride,
                    residual ? residual->stride : 0,
                    out.stride,
                    eps,
                    group,
                    out.width / group};
    const int64_t groups = int64_t(rows) * p.groupsPerRow;
    const dim3 grid(static_cast<unsigned>(groups));
    if (!packable(elem, {x.data, p.residual, weight, out.data},
                  {group, x.stride, p.residualStride, out.stride})) {
      const int threads = static_cast<int>(std::min<int64_t>(256, roundUp(group, 32)));
      launch("rmsNorm", normTwice<T, 1>, grid, threads, 0, stream, p);
      return;
    }
    const int packs = group / N;
    const auto threadsFor = [&](int held) {
      return static_cast<int>(roundUp(divideUp(packs, held), 32));
    };
    // Few rows: as many threads a row as it has packs, for latency. Many: two packs a thread, so
    // that the sum over the block costs less beside the loads.
    if (packs <= 128 || (groups < 512 && packs <= 1024)) {
      launch("rmsNorm", normHeld<T, 1>, grid, threadsFor(1), 0, stream, p);
    } else if (packs <= 1024) {
      launch("rmsNorm", normHeld<T, 2>, grid, threadsFor(2), 0, stream, p);
    } else if (packs <= 4096) {
      launch("rmsNorm", normHeld<T, 4>, grid, threadsFor(4), 0, stream, p);
    } else {
      launch("rmsNorm", normTwice<T, N>, grid, 256, 0, stream, p);
    }
  });
}

namespace {

// Calls f with the type and the pack width that the operands allow.
template <class F>
void withPack(Elem elem, bool packed, F&& f) {
  withElem(elem, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    if (packed) {
      f(tag, std::integral_constant<int, kPack<T>>{});
    } else {
      f(tag, std::integral_constant<int, 1>{});
    }
  });
}

}  // namespace

void add(Elem elem, Matrix a, Matrix b, int rows, Matrix out, cudaStream_t stream) {
  const bool packed =
      packable(elem, {a.data, b.data, out.data}, {out.width, a.stride, b.stride, out.stride});
  withPack(elem, packed, [&](auto tag, auto size) {
    using T = typename decltype(tag)::Type;
    constexpr int N = decltype(size)::value;
    const Add<T, N> op{static_cast<const T*>(a.data), static_cast<const T*>(b.data),
                       static_cast<T*>(out.data),     a.stride,
                       b.stride,                      out.stride};
    launchMap("add", op, rows, out.width / N, stream);
  });
}

void siluMul(Elem elem, Matrix x, int rows, Matrix out, cudaStream_t stream) {
  const bool packed = packable(elem, {x.data, out.data}, {out.width, x.stride, out.stride});
  withPack(elem, packed, [&](auto tag, auto size) {
    using T = typename decltype(tag)::Type;
    constexpr int N = decltype(size)::value;
    const SiluMul<T, N> op{static_cast<const T*>(x.data), static_cast<T*>(out.data), x.stride,
                           out.stride, out.width};
    launchMap("siluMul", op, rows, out.width / N, stream);
  });
}

void addBias(Elem elem, Matrix x, const float* bias, int rows, cudaStream_t stream) {
  const bool packed = packable(elem, {x.data, bias}, {x.width, x.stride});
  withPack(elem, packed, [&](auto tag, auto size) {
    using T = typename decltype(tag)::Type;
    constexpr int N = decltype(size)::value;
    launchMap("addBias", AddBias<T, N>{static_cast<T*>(x.data), bias, x.stride}, rows, x.width / N,
              stream);
  });
}

void convertFloats(Elem from, const void* source, Elem to, void* target, size_t count,
                   cudaStream_t stream) {
  if (count == 0) return;
  withElem(from, [&](auto fromTag) {
    withElem(to, [&](auto toTag) {
      using From = typename decltype(fromTag)::Type;
      using To = typename decltype(toTag)::Type;
      launch("convertFloats", convertKernel<From, To>, dim3(gridOf(count)), 256, 0, stream,
             static_cast<const From*>(source), static_cast<To*>(target), count);
    });
  });
}

void fillDummy(Elem elem, void* target, size_t first, size_t count, uint32_t seed, float mean,
               float scale, cudaStream_t stream) {
  if (count == 0) return;
  withElem(elem, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    launch("fillDummy", fillDummyKernel<T>, dim3(gridOf(count)), 256, 0, stream,
           static_cast<T*>(target), first, count, seed, mean, scale);
  });
}

}  // namespace millrace::cuda
