// The kernels of row_kernels.h for one instruction set.
#include "integers.h"
#include "row_kernels.h"
#include "vec.h"

namespace millrace {
namespace MILLRACE_ISA {

MR_INLINE Vec loadUpTo(const float* p, int count) {
  return count >= kLanes ? load(p) : loadFirst(p, count);
}

MR_INLINE void storeUpTo(float* p, Vec v, int count) {
  if (count >= kLanes) {
    store(p, v);
  } else {
    storeFirst(p, v, count);
  }
}

MR_INLINE void storeBf16UpTo(uint16_t* p, Vec v, int count) {
  if (count >= kLanes) return storeBf16(p, v);
  uint16_t rounded[kLanes];
  storeBf16(rounded, v);
  memcpy(p, rounded, count * 2);
}

MR_INLINE void padPair(uint16_t* row, int width) {
  if (width % 2 != 0) row[width] = 0;
}

static void rmsNorm(const float* x, const float* weight, int width, int group, float eps, float* out,
                    uint16_t* outBf16) {
  for (int begin = 0; begin < width; begin += group) {
    const float* xs = x + begin;
    Vec squares[4] = {zero(), zero(), zero(), zero()};
    int i = 0;
    for (; i + 4 * kLanes <= group; i += 4 * kLanes) {
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        const Vec v = load(xs + i + j * kLanes);
        squares[j] = fma(v, v, squares[j]);
      }
    }
    for (; i < group; i += kLanes) {
      const Vec v = loadUpTo(xs + i, group - i);
      squares[0] = fma(v, v, squares[0]);
    }
    const float sum = reduceSum((squares[0] + squares[1]) + (squares[2] + squares[3]));
    const Vec scale = splat(1.0f / __builtin_sqrtf(sum / float(group) + eps));
    for (i = 0; i < group; i += kLanes) {
      const int count = group - i;
      const Vec v = loadUpTo(xs + i, count) * scale * loadUpTo(weight + i, count);
      if (out) storeUpTo(out + begin + i, v, count);
      if (outBf16) storeBf16UpTo(outBf16 + begin + i, v, count);
    }
  }
  if (outBf16) padPair(outBf16, width);
}

static void rope(const float* x, const float* cosSin, int width, int headDim, float* out) {
  const int half = headDim / 2;
  for (int head = 0; head < width; head += headDim) {
    const float *a = x + head, *b = a + half;
    for (int i = 0; i < half; i += kLanes) {
      const int count = half - i;
      const Vec c = loadUpTo(cosSin + i, count), s = loadUpTo(cosSin + half + i, count);
      const Vec u = loadUpTo(a + i, count), v = loadUpTo(b + i, count);
      storeUpTo(out + head + i, u * c - v * s, count);
      storeUpTo(out + head + half + i, v * c + u * s, count);
    }
  }
}

static void add(const float* a, const float* b, int width, float* out) {
  for (int i = 0; i < width; i += kLanes) {
    const int count = width - i;
    storeUpTo(out + i, loadUpTo(a + i, count) + loadUpTo(b + i, count), count);
  }
}

static void siluMul(const float* gate, const float* up, int width, float* out, uint16_t* outBf16) {
  for (int i = 0; i < width; i += kLanes) {
    const int count = width - i;
    const Vec v = silu(loadUpTo(gate + i, count)) * loadUpTo(up + i, count);
    if (out) storeUpTo(out + i, v, count);
    if (outBf16) storeBf16UpTo(outBf16 + i, v, count);
  }
  if (outBf16) padPair(outBf16, width);
}

static void rowToBf16(const float* x, int width, uint16_t* out) {
  for (int i = 0; i < width; i += kLanes) {
    storeBf16UpTo(out + i, loadUpTo(x + i, width - i), width - i);
  }
  padPair(out, width);
}

static void accumulate(float scale, const float* x, int width, float* out) {
  const Vec s = splat(scale);
  for (int i = 0; i < width; i += kLanes) {
    const int count = width - i;
    storeUpTo(out + i, fma(s, loadUpTo(x + i, count), loadUpTo(out + i, count)), count);
  }
}

// Row `column` of panel `half` of a pair of integers.
static void unpackIntegers(const PackedMatrix& w, const uint8_t* pair, int half, int column,
                           float* out) {
  const int size = groupNumbers(w.integer, w.k), step = stepNumbers(w.integer);
  const int zeroCode = zeroOf(w.integer), at = half * kPanel + column;
  for (int begin = 0; begin < w.k; begin += size) {
    const int count = least(size, w.k - begin);
    const float* heads = (const float*)pair;
    const float scale = heads[at], offset = w.integer.symmetric ? 0 : heads[2 * kPanel + at];
    const uint8_t* codes = pair + headBytes(w.integer);
    for (int i = 0; i < count; i++) {
      const uint8_t byte = codes[i / step * 128 + at * 4 + i % 4];
      const int code = step == 4 ? byte : i % 8 < 4 ? byte & 15 : byte >> 4;
      out[w.columns ? w.columns[begin + i] : begin + i] = scale * float(code - zeroCode) + offset;
    }
    pair = codes + size_t((count + step - 1) / step) * 128;
  }
}

static void unpackRow(const PackedMatrix& w, int row, float* out) {
  const int panel = row / kPanel, column = row % kPanel;
  const uint8_t* pair = w.data + panel / 2 * w.pairBytes;
  if (w.integer.bits > 0) return unpackIntegers(w, pair, panel % 2, column, out);
  switch (w.dtype) {
    case DType::F32: {
      const float* p = (const float*)pair + panel % 2 * kPanel + column;
      for (int k = 0; k < w.k; k++) out[k] = p[k * 2 * kPanel];
      return;
    }
    case DType::F16: {
      const uint16_t* p = (const uint16_t*)pair + panel % 2 * kPanel + column;
      for (int k = 0; k < w.k; k++) out[k] = fromF16(p[k * 2 * kPanel]);
      return;
    }
    case DType::BF16: {
      const uint16_t* p = (const uint16_t*)pair + (panel % 2 * kPanel + column) * 2;
      for (int k = 0; k < w.k; k++) out[k] = fromBf16(p[k / 2 * 4 * kPanel + k % 2]);
      return;
    }
    case DType::I8: return;
  }
}

static constexpr RowKernels rowKernels = {rmsNorm, rope,       add,      siluMul,
                                          rowToBf16, accumulate, unpackRow};

}  // namespace MILLRACE_ISA
}  // namespace millrace
