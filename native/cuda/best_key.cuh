// Numbers of which the highest is of the best token: of the highest logit, among equal ones of the lowest id.
#pragma once
#include <cmath>

#include "kernels.h"

namespace millrace::cuda {

// Where a logit is NaN or +infinity. Above all others.
constexpr BestKey kUnusable = ~0ull;

// Ordered as the floats are.
__device__ inline unsigned orderedBits(float x) {
  const unsigned bits = __float_as_uint(x == 0 ? 0.0f : x);  // -0 equals 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float fromOrdered(unsigned bits) {
  return __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}
__device__ inline BestKey bestKey(float x, int id) { return BestKey(orderedBits(x)) << 32 | unsigned(~id); }
__device__ inline float valueOfKey(BestKey key) { return fromOrdered(unsigned(key >> 32)); }
__device__ inline int idOfKey(BestKey key) { return int(~unsigned(key)); }

// Of values that are offered in the order of their ids.
struct Best {
  float value = -INFINITY;
  int id = 0;
  bool usable = true;
  __device__ __forceinline__ void offer(float other, int otherId) {
    usable &= other < INFINITY;  // false for NaN too
    if (other > value) {
      value = other;
      id = otherId;
    }
  }
  __device__ __forceinline__ BestKey key() const { return usable ? bestKey(value, id) : kUnusable; }
};

}  // namespace millrace::cuda
