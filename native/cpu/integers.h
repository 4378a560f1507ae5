// Sizes of integer weights in the layout of gemm.h. Static, so that no instruction set's code is
// handed to another at link time (attention.h).
#pragma once
#include "gemm.h"

namespace millrace {

static inline bool sameFormat(const IntegerFormat& a, const IntegerFormat& b) {
  return a.bits == b.bits && a.group == b.group && a.symmetric == b.symmetric;
}
// Columns of K that one 64-byte line of a panel holds for each of its sixteen columns of N.
static inline int stepNumbers(const IntegerFormat& f) { return f.bits == 4 ? 8 : 4; }
static inline int groupNumbers(const IntegerFormat& f, int k) { return f.group > 0 ? f.group : k; }
static inline int groupCount(const IntegerFormat& f, int k) {
  const int size = groupNumbers(f, k);
  return (k + size - 1) / size;
}
// Bytes before the codes of a group of a pair: scales and offsets.
static inline size_t headBytes(const IntegerFormat& f) { return f.symmetric ? 128 : 256; }
static inline size_t groupBytes(const IntegerFormat& f, int k) {
  return headBytes(f) + size_t(groupNumbers(f, k) / stepNumbers(f)) * 128;
}
static inline size_t integerPairBytes(const IntegerFormat& f, int k) {
  const int step = stepNumbers(f);
  return groupCount(f, k) * headBytes(f) + size_t((k + step - 1) / step) * 128;
}
// What is taken from a stored code before it is multiplied by the scale.
static inline int zeroOf(const IntegerFormat& f) {
  return f.bits == 8 ? 128 : f.symmetric ? 8 : 0;
}

}  // namespace millrace
