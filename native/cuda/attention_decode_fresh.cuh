// What becomes of the step's own queries, keys and values in a decode, where no kernel before it has seen to
// that (qkvStore): norms, rotation, and the newest row of a tile of keys and of values.
#pragma once
#include "attention_decode.cuh"
#include "attention_mma.cuh"
#include "e4m3.cuh"
#include "elements.h"

namespace millrace::cuda {

// What turns an item's queries and its newest key, in a warp's shared memory: weights of their norms, and
// cosines and sines of the position. No kernel of a step writes these, so they are there before the wait.
// Rope: Su et al., RoFormer, 2021, columns kDim / 2 apart; norms of queries and keys as in Qwen3.
template <int kDim>
struct Turns {
  static constexpr int kHalf = kDim / 2, kBytes = (2 * kDim + 2 * kHalf) * 4;
  float2* rotation;  // [kHalf]
  float* weights;    // [2][kDim], of queries, then of keys

  __device__ __forceinline__ explicit Turns(unsigned char* at)
      : rotation(reinterpret_cast<float2*>(at)), weights(reinterpret_cast<float*>(rotation + kHalf)) {}

  __device__ __forceinline__ void loadWeights(const NewTokens& fresh, int lane) const {
#pragma unroll
    for (int i = lane; i < 2 * kDim / 4; i += 32) {
      const float* from = i < kDim / 4 ? fresh.qNorm : fresh.kNorm;
      reinterpret_cast<float4*>(weights)[i] =
          from ? __ldg(reinterpret_cast<const float4*>(from) + i % (kDim / 4)) : make_float4(1, 1, 1, 1);
    }
  }
  __device__ __forceinline__ void loadRotation(const NewTokens& fresh, int position, int lane) const {
    const float2* row = fresh.cosSin + static_cast<int64_t>(position) * kHalf;
#pragma unroll
    for (int i = lane; i < kHalf / 2; i += 32) {
      reinterpret_cast<float4*>(rotation)[i] =
          fresh.cosSin ? __ldg(reinterpret_cast<const float4*>(row) + i) : make_float4(1, 0, 1, 0);
    }
  }
};

// A head's query or key of which a lane has kPer columns of the lower half and those of the upper half: normed, if
// there are weights for it, and turned.
template <int kDim, int kPer>
__device__ __forceinline__ void turnRow(const Turns<kDim>& turns, const float* weights, bool normed, float eps,
                                        int lane, float (&lower)[kPer], float (&upper)[kPer]) {
  float scale = 1.0f;
  if (normed) {
    float squares = 0.0f;
#pragma unroll
    for (int j = 0; j < kPer; j++) squares += lower[j] * lower[j] + upper[j] * upper[j];
#pragma unroll
    for (int step = 1; step < 32; step *= 2) squares += __shfl_xor_sync(kAll, squares, step);
    scale = rsqrtf(squares / kDim + eps);
  }
#pragma unroll
  for (int j = 0; j < kPer; j++) {
    const int column = lane * kPer + j;
    const float2 by = turns.rotation[column];
    const float low = lower[j] * (scale * weights[column]);
    const float high = upper[j] * (scale * weights[Turns<kDim>::kHalf + column]);
    lower[j] = low * by.x - high * by.y;
    upper[j] = high * by.x + low * by.y;
  }
}

// Where `byte` of a head's turned query is: the same columns of eight heads are in banks of their own.
template <int kDim>
__device__ __forceinline__ int turnedAt(int row, int byte) {
  return row * (2 * kDim) + (byte ^ (row & 7) << 4);
}

// Queries of `rows` heads, normed, turned, rounded to T and then to C, by one code for all heads: code that runs
// once a launch takes long to fetch. They go to `room`, of which the address is returned.
template <typename T, typename C, int kDim>
__device__ __forceinline__ uint32_t turnQueries(const NewTokens& fresh, const Turns<kDim>& turns,
                                                const T* queries, int rows, int lane, unsigned char* room) {
  constexpr int kPer = kDim / 64, kChunks = 2 * kDim / 16;
  __syncwarp();
#pragma unroll 1
  for (int first = lane; first < rows * kChunks; first += 64) {
    uint4 raw[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int chunk = first + 32 * i;
      // Not by the read-only path: the kernel ahead may write them while this one runs.
      if (chunk < rows * kChunks) raw[i] = *reinterpret_cast<const uint4*>(queries + chunk * 8);
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int row = (first + 32 * i) / kChunks, byte = (first + 32 * i) % kChunks * 16;
      if (row < rows) *reinterpret_cast<uint4*>(room + turnedAt<kDim>(row, byte)) = raw[i];
    }
  }
  __syncwarp();
#pragma unroll 1
  for (int row = 0; row < rows; row++) {
    T* const own[2] = {reinterpret_cast<T*>(room + turnedAt<kDim>(row, lane * (2 * kPer))),
                       reinterpret_cast<T*>(room + turnedAt<kDim>(row, lane * (2 * kPer) + kDim))};
    float halves[2][kPer];
#pragma unroll
    for (int i = 0; i < 2; i++) unpack<T, kPer>(loadRaw<T, kPer>(own[i]), halves[i]);
    turnRow<kDim, kPer>(turns, turns.weights, fresh.qNorm != nullptr, fresh.eps, lane, halves[0], halves[1]);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const Raw<T, kPer> rounded = pack<T, kPer>(halves[i]);
      if constexpr (std::is_same_v<T, C>) {
        storeRaw<T, kPer>(own[i], rounded);
      } else {
        unpack<T, kPer>(rounded, halves[i]);
#pragma unroll
        for (float& x : halves[i]) x = withinHalf(x);
        storeRaw<C, kPer>(reinterpret_cast<C*>(own[i]), pack<C, kPer>(halves[i]));
      }
    }
  }
  __syncwarp();
  return static_cast<uint32_t>(__cvta_generic_to_shared(room));
}

// A head's turned query as the second operand of products with keys of e4m3 (kFp8) or 16 bits.
template <bool kFp8, int kDim>
__device__ __forceinline__ void loadTurned(uint32_t turned, int row, int t, uint32_t (&q)[kDim / 16][2]) {
  const uint32_t at = turned + turnedAt<kDim>(row, kFp8 ? 8 * t : 4 * t);
#pragma unroll
  for (int n = 0; n < kDim / 16; n++) {
    if constexpr (kFp8) {
      asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(q[n][0]), "=r"(q[n][1]) : "r"(at ^ (n << 5)));
    } else {
      asm volatile("ld.shared.b32 %0, [%1];" : "=r"(q[n][0]) : "r"(at ^ (n << 5)));
      asm volatile("ld.shared.b32 %0, [%1];" : "=r"(q[n][1]) : "r"(at ^ (n << 5 | 16)));
    }
  }
}

// The newest key and value of a sequence and KV head as the cache has them, made by a warp: a lane has kPer
// columns of the lower half and those of the upper half.
template <typename T, bool kFp8, int kDim>
struct Newest {
  static constexpr int kHalf = kDim / 2, kPer = kHalf / 32;
  Raw<T, kPer> raw[4];  // halves of the key, then of the value

  // Not by the read-only path: the kernel ahead writes them.
  __device__ __forceinline__ void load(const NewTokens& fresh, int token, int kvHead, int lane) {
    const T* key = static_cast<const T*>(fresh.keys) + token * fresh.keyStride;
    const T* value = static_cast<const T*>(fresh.values) + token * fresh.valueStride;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      raw[i] = loadRaw<T, kPer>((i < 2 ? key : value) + kvHead * kDim + i % 2 * kHalf + lane * kPer);
    }
  }
  // To shared memory, the key before the value.
  __device__ __forceinline__ void store(const NewTokens& fresh, const Turns<kDim>& turns, int lane,
                                        unsigned char* to) const {
    float parts[4][kPer];
#pragma unroll
    for (int i = 0; i < 4; i++) unpack<T, kPer>(raw[i], parts[i]);
    turnRow<kDim, kPer>(turns, turns.weights + kDim, fresh.kNorm != nullptr, fresh.eps, lane, parts[0], parts[1]);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const Raw<T, kPer> rounded = pack<T, kPer>(parts[i]);
      const int at = i / 2 * kDim + i % 2 * kHalf + lane * kPer;
      if constexpr (kFp8) {
        // Of what the storage type holds: as if a cache of that type had been converted.
        unpack<T, kPer>(rounded, parts[i]);
#pragma unroll
        for (int j = 0; j < kPer; j++) storeE4m3<1>(reinterpret_cast<E4m3*>(to) + at + j, {parts[i][j]});
      } else {
        storeRaw<T, kPer>(reinterpret_cast<T*>(to) + at, rounded);
      }
    }
  }
};

// A key and a value that a warp has made, to their row of the tiles of keys and values that it has in shared
// memory, and to that of the cache. at: the tile's place in the cache, counted in tiles.
template <int kRowBytes, int kTileBytes>
__device__ __forceinline__ void placeNewest(const DecodeArgs& a, const unsigned char* newest,
                                            unsigned char* tiles, int at, int row, int lane) {
  constexpr int kChunks = kRowBytes / 16;
  if (lane < kChunks) {
    const uint4* from = reinterpret_cast<const uint4*>(newest);
    const uint4 key = from[lane], value = from[kChunks + lane];
    unsigned char* to = tiles + swizzled<kRowBytes>(row, lane);
    *reinterpret_cast<uint4*>(to) = key;
    *reinterpret_cast<uint4*>(to + kTileBytes) = value;
    const int64_t inCache = static_cast<int64_t>(at) * kTileBytes + row * kRowBytes + lane * 16;
    *reinterpret_cast<uint4*>(static_cast<char*>(a.keys) + inCache) = key;
    *reinterpret_cast<uint4*>(static_cast<char*>(a.values) + inCache) = value;
  }
  __syncwarp();
}

// Of a warp's shared memory, for the step's tokens.
template <int kDim>
constexpr int freshBytes(int elemBytes) {
  return Turns<kDim>::kBytes + 2 * kDim * elemBytes;
}

}  // namespace millrace::cuda
