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

// A thread's pairs of a head's query, at the columns that columnOf(n, i) gives, turned and rounded to T. The
// four threads of a quad have a head.
template <typename T, int kDim, class ColumnOf>
__device__ __forceinline__ void turnQuery(const NewTokens& fresh, const Turns<kDim>& turns,
                                          ColumnOf columnOf, uint32_t (&q)[kDim / 16][2]) {
  constexpr int kSteps = kDim / 16, kHalf = kDim / 2;
  float scale = 1.0f;
  if (fresh.qNorm) {
    float squares = 0.0f;
#pragma unroll
    for (int n = 0; n < kSteps; n++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        float x[2];
        unpack<T, 2>(q[n][i], x);
        squares += x[0] * x[0] + x[1] * x[1];
      }
    }
    scale = 1.0f / sqrtf(quadSum(squares) / kDim + fresh.eps);
  }
#pragma unroll
  for (int n = 0; n < kSteps / 2; n++) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int column = columnOf(n, i);
      const float2 lower = *reinterpret_cast<const float2*>(turns.weights + column);
      const float2 upper = *reinterpret_cast<const float2*>(turns.weights + kHalf + column);
      const float4 by = *reinterpret_cast<const float4*>(turns.rotation + column);
      float low[2], high[2];
      unpack<T, 2>(q[n][i], low);
      unpack<T, 2>(q[n + kSteps / 2][i], high);
      low[0] *= scale * lower.x, low[1] *= scale * lower.y;
      high[0] *= scale * upper.x, high[1] *= scale * upper.y;
      q[n][i] = Half2<T>::pack(low[0] * by.x - high[0] * by.y, low[1] * by.z - high[1] * by.w);
      q[n + kSteps / 2][i] = Half2<T>::pack(high[0] * by.x + low[0] * by.y, high[1] * by.z + low[1] * by.w);
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
    float scale = 1.0f;
    if (fresh.kNorm) {
      float squares = 0.0f;
#pragma unroll
      for (int j = 0; j < kPer; j++) squares += parts[0][j] * parts[0][j] + parts[1][j] * parts[1][j];
#pragma unroll
      for (int step = 1; step < 32; step *= 2) squares += __shfl_xor_sync(kAll, squares, step);
      scale = 1.0f / sqrtf(squares / kDim + fresh.eps);
    }
#pragma unroll
    for (int j = 0; j < kPer; j++) {
      const int column = lane * kPer + j;
      const float* weights = turns.weights + kDim + column;
      const float2 by = turns.rotation[column];
      const float low = parts[0][j] * (scale * weights[0]), high = parts[1][j] * (scale * weights[kHalf]);
      parts[0][j] = low * by.x - high * by.y;
      parts[1][j] = high * by.x + low * by.y;
    }
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
