// Products with weights of integers, for one instruction set; gemm.inl includes it.
//
// A row of activations is rounded to int8 for the weight it is to meet: symmetric, with a scale for
// each of the weight's groups. A group's products are summed in 32-bit integers, exactly, starting
// from -zero * (sum of the row's codes), which takes back what makes the weight's codes unsigned;
// then scaled and added up in float32, group after group.
#include "integers.h"
#include "vec_int.h"

namespace millrace {
namespace MILLRACE_ISA {

// A quantized row: codes, padded with zeros, then for each group the scale, the start of its sums,
// and scale * (sum of its codes), which the weight's offset is multiplied with.
struct QuantizedRow {
  size_t scales, starts, sums, bytes;  // where, from the row's beginning
};

MR_INLINE QuantizedRow quantizedRow(const PackedMatrix& w) {
  const size_t codes = (size_t(w.k) + 15) / 16 * 16 * (kQuadBytes / 4), groups = groupCount(w.integer, w.k);
  const size_t bytes = codes + 3 * groups * sizeof(float);
  return {codes, codes + groups * sizeof(float), codes + 2 * groups * sizeof(float),
          (bytes + 63) / 64 * 64};
}

static size_t rowBytes(const PackedMatrix& w) { return quantizedRow(w).bytes; }

// Numbers i .. i + count (16 at most) of the row in the weight's order.
MR_INLINE Vec loadColumns(const PackedMatrix& w, const float* x, int i, int count) {
  if (!w.columns) return count >= kLanes ? load(x + i) : loadFirst(x + i, count);
  float lane[kLanes] = {};
  for (int c = 0; c < kLanes && c < count; c++) lane[c] = x[w.columns[i + c]];
  return load(lane);
}

static void quantizeRow(const PackedMatrix& w, const float* x, uint8_t* out) {
  const QuantizedRow row = quantizedRow(w);
  const int size = groupNumbers(w.integer, w.k), zeroCode = zeroOf(w.integer);
  float *scales = (float*)(out + row.scales), *sums = (float*)(out + row.sums);
  int32_t* starts = (int32_t*)(out + row.starts);
  for (int begin = 0, g = 0; begin < w.k; begin += size, g++) {
    const int end = least(begin + size, w.k);
    Vec top = zero(), poison = zero();
    for (int i = begin; i < end; i += kLanes) {
      const Vec v = loadColumns(w, x, i, end - i);
      top = max(max(v, zero() - v), top);
      poison = poison + (v - v);  // NaN where v is not finite
    }
    const float largest = reduceMax(top), bad = reduceSum(poison);
    // Smaller ones have no reciprocal, and a share in no sum.
    const bool none = !(largest >= 1e-30f) || bad != 0;
    const Vec inverse = splat(none ? 0 : 127.0f / largest);
    Vec total = zero();
    for (int i = begin; i < end; i += kLanes) {
      Vec codes = zero();
      // Not contracted with the rounding's sum, so that every machine makes the same codes.
      if (!none) codes = roundNearest(rounded(loadColumns(w, x, i, end - i) * inverse));
      storeQuads(out + size_t(i) * (kQuadBytes / 4), codes);
      total = total + codes;  // exact: below 2^24
    }
    const float sum = reduceSum(total);
    scales[g] = bad != 0 ? bad : none ? 0 : largest / 127.0f;
    starts[g] = -zeroCode * int32_t(sum);
    sums[g] = scales[g] * sum;
  }
}

// Registers bound the tile as in gemm.inl. A line of int4 becomes two of weights, and where weights
// are spread to 16 bits, each takes two more.
#if defined(__AVX512VNNI__)
constexpr int kIntegerVectors = 24, kIntegerRows = 8;
#elif defined(__AVX512F__)
constexpr int kIntegerVectors = 16, kIntegerRows = 8;
#elif defined(__AVX2__)
constexpr int kIntegerVectors = 4, kIntegerRows = 4;
#else
constexpr int kIntegerVectors = 2, kIntegerRows = 2;
#endif

template <class Stored>
constexpr int integerTileRows(int panels) {
  const int vectors = kIntegerVectors - (Stored::kStep == 8 && kIntegerVectors > 16 ? 4 : 0);
  return vectors / panels < kIntegerRows ? vectors / panels : kIntegerRows;
}

struct Int8 {
  static constexpr int kStep = 4;
  template <int M, int P>
  MR_INLINE void step(const uint8_t* x, size_t stride, const uint8_t* w, size_t pairBytes,
                      Ints (&acc)[M][P]) {
    Quads b[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) b[p] = quads(loadInts(w + panelOffset(p, pairBytes, 64)));
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) acc[m][p] = dotQuads(acc[m][p], b[p], x + m * stride);
    }
  }
};

struct Int4 {
  static constexpr int kStep = 8;
  template <int M, int P>
  MR_INLINE void step(const uint8_t* x, size_t stride, const uint8_t* w, size_t pairBytes,
                      Ints (&acc)[M][P]) {
    Quads low[P], high[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) {
      const Ints both = loadInts(w + panelOffset(p, pairBytes, 64));
      low[p] = quads(lowNibbles(both));
      high[p] = quads(highNibbles(both));
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) acc[m][p] = dotQuads(acc[m][p], low[p], x + m * stride);
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) {
        acc[m][p] = dotQuads(acc[m][p], high[p], x + m * stride + kQuadBytes);
      }
    }
  }
};

MR_INLINE void advance(Prefetch& next, int units) {
  for (int i = 0; i < units * next.lines; i++) prefetch(next.data + i * kLine);
  next.data += units * next.lines * kLine;
}

// sums[m * sumPanels + p][16] = x[m] . w[p]. Lines of `next` come with each 128 bytes of a pair.
template <class Stored, int M, int P>
void multiplyIntegers(const PackedMatrix& weight, const uint8_t* x, size_t stride,
                      const uint8_t* w, Prefetch next, float* sums, int sumPanels) {
  const IntegerFormat& format = weight.integer;
  const QuantizedRow row = quantizedRow(weight);
  const size_t pairBytes = weight.pairBytes, head = headBytes(format);
  const int size = groupNumbers(format, weight.k), groups = groupCount(format, weight.k);
  const uint8_t* codes = x;
  for (int g = 0; g < groups; g++) {
    const float* scales = (const float*)w;
    w += head;
    if (next.lines > 0) advance(next, int(head / 128));
    Ints acc[M][P];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      int32_t start;
      memcpy(&start, x + m * stride + row.starts + g * 4, 4);
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) acc[m][p] = splatInt(start);
    }
    const int steps = (least(size, weight.k - g * size) + Stored::kStep - 1) / Stored::kStep;
    for (int i = 0; i < steps; i++) {
      if (next.lines > 0) advance(next, 1);
      Stored::template step<M, P>(codes, stride, w, pairBytes, acc);
      codes += Stored::kStep / 4 * kQuadBytes;
      w += 128;
    }
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) {
      const float* panel = scales + panelOffset(p, pairBytes, 64) / sizeof(float);
      const Vec scale = load(panel);
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const float* ofRow = (const float*)(x + m * stride + row.scales) + g;
        float* sum = sums + (m * sumPanels + p) * kPanel;
        const Vec before = g == 0 ? zero() : load(sum);
        Vec v = fma(toFloat(acc[m][p]) * splat(ofRow[0]), scale, before);
        if (!format.symmetric) v = fma(load(panel + 32), splat(ofRow[2 * groups]), v);
        store(sum, v);
      }
    }
  }
}

typedef void (*MultiplyIntegers)(const PackedMatrix&, const uint8_t*, size_t, const uint8_t*,
                                 Prefetch, float*, int);

template <class Stored, int P, int M>
constexpr MultiplyIntegers multiplyIntegersOrNull() {
  if constexpr (M <= integerTileRows<Stored>(P)) {
    return multiplyIntegers<Stored, M, P>;
  } else {
    return nullptr;
  }
}

template <class Stored, int P>
MultiplyIntegers multiplyIntegersOf(int rows) {
  static constexpr MultiplyIntegers table[] = {
      multiplyIntegersOrNull<Stored, P, 1>(), multiplyIntegersOrNull<Stored, P, 2>(),
      multiplyIntegersOrNull<Stored, P, 3>(), multiplyIntegersOrNull<Stored, P, 4>(),
      multiplyIntegersOrNull<Stored, P, 5>(), multiplyIntegersOrNull<Stored, P, 6>(),
      multiplyIntegersOrNull<Stored, P, 7>(), multiplyIntegersOrNull<Stored, P, 8>()};
  return table[rows - 1];
}

// As gemmPairs of gemm.inl.
template <class Stored, int PAIRS>
void gemmIntegerPairs(const GemmTile& tile, int firstPair, const uint8_t* prefetch) {
  constexpr int kPanels = 2 * PAIRS, kColumns = kHalves ? 1 : kPanels;
  constexpr int kRows = integerTileRows<Stored>(kColumns);
  const PackedMatrix& w = *tile.weight;
  const uint8_t* panels = w.data + firstPair * w.pairBytes;
  const auto* x = static_cast<const uint8_t*>(tile.x.data);
  const int blocks = (tile.rows + kRows - 1) / kRows;
  const int lines = (kPanels + blocks - 1) / blocks;
  alignas(64) float sums[kRows * kPanels * kPanel];
  for (int b = 0, row = 0; b < blocks; b++) {
    const int rows = (tile.rows - row) / (blocks - b);
    Prefetch next = {nullptr, 0};
    if (prefetch && b * lines < kPanels) {
      next = {prefetch + size_t(b) * lines * kLine * (w.pairBytes / 128), lines};
    }
    const uint8_t* rowsOfX = x + row * tile.x.stride;
    for (int p = 0; p < kPanels; p += kColumns) {
      const uint8_t* from = panels + panelOffset(p, w.pairBytes, 64);
      multiplyIntegersOf<Stored, kColumns>(rows)(w, rowsOfX, tile.x.stride, from, next,
                                                 sums + p * kPanel, kPanels);
      next.lines = 0;
    }
    finish(tile, row, rows, firstPair, kPanels, sums);
    row += rows;
  }
}

}  // namespace MILLRACE_ISA
}  // namespace millrace
