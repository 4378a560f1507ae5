// QK-norm, rotary embedding and the store to the KV cache in one pass; the rope table; block copies.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "e4m3.cuh"
#include "elements.h"
#include "launch.h"

namespace millrace::cuda {
namespace {

// ---------------------------------------------------------------- qkvStore

template <class T>
struct Store {
  const T* qIn;
  const T* kIn;
  const T* vIn;
  T* q;
  void* keys;  // T or E4m3
  void* values;
  int64_t qInStride, kInStride, vInStride, qStride;
  const float* qNorm;
  const float* kNorm;
  float eps;
  const float2* cosSin;
  const int* positions;
  const int* slots;
  int heads, kvHeads, headDim, headStride, blockSize;
};

// A block a token. `lanes` threads (a power of two) share a head, each with kPasses times N columns
// of the lower half and those `headDim / 2` further, so that a rotation stays in one thread and the
// cosines and sines are loaded once for all heads of the thread.
template <class T, int N, int kPasses, bool kFp8>
__global__ void __launch_bounds__(1024) qkvStoreKernel(Store<T> p, int lanes) {
  waitForPrevious();
  const int64_t token = blockIdx.x;
  const int half = p.headDim / 2, lane = threadIdx.x % lanes;
  const int total = p.heads + 2 * p.kvHeads, teams = blockDim.x / lanes, team = threadIdx.x / lanes;
  // What all loads wait for comes first, then the first heads, then the table.
  const int slot = p.slots[token], position = p.cosSin ? p.positions[token] : 0;
  Raw<T, N> low[kPasses], high[kPasses];
  const auto loadHead = [&](int index) {
    const bool isQuery = index < p.heads, isValue = index >= p.heads + p.kvHeads;
    const T* from = isQuery   ? p.qIn + token * p.qInStride + index * p.headDim
                    : isValue ? p.vIn + token * p.vInStride + (index - p.heads - p.kvHeads) * p.headDim
                              : p.kIn + token * p.kInStride + (index - p.heads) * p.headDim;
#pragma unroll
    for (int u = 0; u < kPasses; u++) {
      const int i = (u * lanes + lane) * N;
      low[u] = high[u] = {};
      if (index >= total || i >= half) continue;
      low[u] = loadRaw<T, N>(from + i);
      high[u] = loadRaw<T, N>(from + i + half);
    }
  };
  loadHead(team);
  float cosine[kPasses][N], sine[kPasses][N];
  if (p.cosSin) {
    // A padding row may hold any position; it is computed like the first.
    const float2* row = p.cosSin + int64_t(slot < 0 ? 0 : position) * half;
#pragma unroll
    for (int u = 0; u < kPasses; u++) {
      const int i = (u * lanes + lane) * N;
      if (i >= half) continue;
      float pairs[2 * N];
      if constexpr (N > 1) {
        loadFloats<2 * N>(reinterpret_cast<const float*>(row + i), pairs);
      } else {
        const float2 pair = row[i];
        pairs[0] = pair.x, pairs[1] = pair.y;
      }
#pragma unroll
      for (int j = 0; j < N; j++) cosine[u][j] = pairs[2 * j], sine[u][j] = pairs[2 * j + 1];
    }
  }
  const int64_t block = slot / p.blockSize, offset = slot % p.blockSize;
  // Every thread of a warp stays in the loop to its end: the sum below needs them all.
  const int rounds = (total + teams - 1) / teams;
  for (int round = 0; round < rounds; round++) {
    const int index = round * teams + team;
    const bool isQuery = index < p.heads;
    const bool isValue = index >= p.heads + p.kvHeads;
    const int kvHead = isValue ? index - p.heads - p.kvHeads : index - p.heads;
    const bool active = index < total && (isQuery || slot >= 0);
    if (round > 0) loadHead(index);
    T* to = nullptr;
    E4m3* to8 = nullptr;
    if (isQuery) {
      to = p.q + token * p.qStride + index * p.headDim;
    } else {
      void* cache = isValue ? p.values : p.keys;
      const int64_t at = ((block * p.kvHeads + kvHead) * p.blockSize + offset) * p.headStride;
      if constexpr (kFp8) to8 = static_cast<E4m3*>(cache) + at;
      else to = static_cast<T*>(cache) + at;
    }
    float squares = 0.0f;
#pragma unroll
    for (int u = 0; u < kPasses; u++) {
      float a[N], b[N];
      unpack<T, N>(low[u], a);
      unpack<T, N>(high[u], b);
#pragma unroll
      for (int j = 0; j < N; j++) squares += a[j] * a[j] + b[j] * b[j];
    }
    float scale = 1.0f;
    if (p.qNorm || p.kNorm) {  // the same in all threads
      for (int step = lanes / 2; step > 0; step /= 2) {
        squares += __shfl_xor_sync(~0u, squares, step);
      }
      scale = 1.0f / sqrtf(squares / p.headDim + p.eps);
    }
    if (!active) continue;
    const float* weight = isValue ? nullptr : isQuery ? p.qNorm : p.kNorm;
#pragma unroll
    for (int u = 0; u < kPasses; u++) {
      const int i = (u * lanes + lane) * N;
      if (i >= half) continue;
      if (!isValue && (weight || p.cosSin)) {
        float a[N], b[N];
        unpack<T, N>(low[u], a);
        unpack<T, N>(high[u], b);
        if (weight) {
          float lower[N], upper[N];
          loadFloats<N>(weight + i, lower);
          loadFloats<N>(weight + half + i, upper);
#pragma unroll
          for (int j = 0; j < N; j++) a[j] *= scale * lower[j], b[j] *= scale * upper[j];
        }
        if (p.cosSin) {
#pragma unroll
          for (int j = 0; j < N; j++) {
            const float x = a[j], y = b[j];
            a[j] = x * cosine[u][j] - y * sine[u][j];
            b[j] = y * cosine[u][j] + x * sine[u][j];
          }
        }
        low[u] = pack<T, N>(a);
        high[u] = pack<T, N>(b);
      }
      if (kFp8 && !isQuery) {
        // Of what the storage type holds: as if a cache of that type had been converted.
        float a[N], b[N];
        unpack<T, N>(low[u], a);
        unpack<T, N>(high[u], b);
        storeE4m3<N>(to8 + i, a);
        storeE4m3<N>(to8 + i + half, b);
        continue;
      }
      storeRaw<T, N>(to + i, low[u]);
      storeRaw<T, N>(to + i + half, high[u]);
    }
  }
}

// The smallest power of two that is not below n.
int powerOfTwo(int n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

// ---------------------------------------------------------------- ropeTable

constexpr int kMaxPairs = 128;  // head size 256
struct Frequencies {            // by value: the host's memory is free again when the call returns
  double of[kMaxPairs];
};

__global__ void __launch_bounds__(128) ropeTableKernel(float2* cosSin, Frequencies invFreq,
                                                       int pairs, double scale, int count) {
  waitForPrevious();
  const int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= int64_t(count) * pairs) return;
  double sine, cosine;
  sincos(static_cast<double>(at / pairs) * invFreq.of[at % pairs], &sine, &cosine);
  cosSin[at] = make_float2(static_cast<float>(cosine * scale), static_cast<float>(sine * scale));
}

// ---------------------------------------------------------------- copyBlocks

constexpr int kMaxCopies = 128;  // keys and values of 64 layers in one launch
struct BlockCopies {
  uint4* base[kMaxCopies];
  int words[kMaxCopies];  // of 16 bytes, in a block
};

__global__ void __launch_bounds__(256) copyBlocksKernel(BlockCopies copies, const int* pairs) {
  waitForPrevious();
  const int words = copies.words[blockIdx.y];
  const uint4* from = copies.base[blockIdx.y] + int64_t(pairs[2 * blockIdx.x]) * words;
  uint4* to = copies.base[blockIdx.y] + int64_t(pairs[2 * blockIdx.x + 1]) * words;
  const int step = gridDim.z * blockDim.x;
  for (int i = blockIdx.z * blockDim.x + threadIdx.x; i < words; i += step) to[i] = from[i];
}

}  // namespace

void qkvStore(Elem elem, const QkvStore& step, int rows, cudaStream_t stream) {
  const KvLayer& kv = step.kv;
  if (kv.headDim < 2 || kv.headDim > 256 || kv.headDim % 2 != 0) {
    throw CudaError("qkvStore: headDim must be even and 2 to 256, received " +
                    std::to_string(kv.headDim));
  }
  if (rows == 0) return;
  const int half = kv.headDim / 2;
  const bool packed = packable(
      elem,
      {step.qIn.data, step.kIn.data, step.vIn.data, step.q.data, kv.keys, kv.values, step.qNorm,
       step.kNorm, step.cosSin},
      {half, step.qIn.stride, step.kIn.stride, step.vIn.stride, step.q.stride, kv.headStride});
  withElem(elem, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const Store<T> p{static_cast<const T*>(step.qIn.data),
                     static_cast<const T*>(step.kIn.data),
                     static_cast<const T*>(step.vIn.data),
                     static_cast<T*>(step.q.data),
                     kv.keys,
                     kv.values,
                     step.qIn.stride,
                     step.kIn.stride,
                     step.vIn.stride,
                     step.q.stride,
                     step.qNorm,
                     step.kNorm,
                     step.eps,
                     step.cosSin,
                     step.positions,
                     step.slots,
                     step.heads,
                     kv.kvHeads,
                     kv.headDim,
                     kv.headStride,
                     kv.blockSize};
    const int lanes = std::min(32, powerOfTwo(packed ? half / kPack<T> : half));
    // Few tokens: all heads at once, for latency. Many: small blocks that each do some heads, so
    // that the table is read once for all of them.
    const int64_t wanted = int64_t(step.heads + 2 * kv.kvHeads) * lanes;
    const int threads =
        static_cast<int>(std::min<int64_t>(rows < 512 ? 1024 : 128, roundUp(wanted, 32)));
    auto kernel = packed ? qkvStoreKernel<T, kPack<T>, 1, false> : qkvStoreKernel<T, 1, 4, false>;
    if (kv.fp8) {
      kernel = packed ? qkvStoreKernel<T, kPack<T>, 1, true> : qkvStoreKernel<T, 1, 4, true>;
    }
    launch("qkvStore", kernel, dim3(rows), threads, 0, stream, p, lanes);
  });
}

void ropeTable(float2* cosSin, const double* invFreq, int pairs, double scale, int count,
               cudaStream_t stream) {
  if (pairs < 1 || pairs > kMaxPairs) {
    throw CudaError("ropeTable: pairs must be 1 to 128, received " + std::to_string(pairs));
  }
  if (count == 0) return;
  Frequencies frequencies = {};
  std::copy(invFreq, invFreq + pairs, frequencies.of);
  const dim3 grid(static_cast<unsigned>(divideUp(int64_t(count) * pairs, 128)));
  launch("ropeTable", ropeTableKernel, grid, 128, 0, stream, cosSin, frequencies, pairs, scale,
         count);
}

void copyBlocks(Elem elem, const KvLayer* layers, int numLayers, const int* pairs, int count,
                cudaStream_t stream) {
  if (count == 0) return;
  for (int first = 0; first < numLayers; first += kMaxCopies / 2) {
    const int last = std::min(numLayers, first + kMaxCopies / 2);
    BlockCopies copies = {};
    int used = 0;
    for (int l = first; l < last; l++) {
      const KvLayer& layer = layers[l];
      const int64_t elements = int64_t(layer.kvHeads) * layer.blockSize * layer.headStride;
      for (void* base : {layer.keys, layer.values}) {
        copies.base[used] = static_cast<uint4*>(base);
        copies.words[used++] = static_cast<int>(elements * (layer.fp8 ? 1 : bytesOf(elem)) / 16);
      }
    }
    launch("copyBlocks", copyBlocksKernel, dim3(count, used, 4), 256, 0, stream, copies, pairs);
  }
}

}  // namespace millrace::cuda
