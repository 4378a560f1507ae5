// The kernels of gemm.h for one instruction set. Needs vec.h before it.
#include "gemm.h"
#include "vec.h"

namespace millrace {
namespace MILLRACE_ISA {

// Registers bound the tile: rows * panels accumulators of 16 lanes, besides one vector of each
// panel and a broadcast input. Where they hold less than a pair of panels, its halves are multiplied
// one after the other.
#if defined(__AVX512F__)
constexpr int kTileVectors = 24, kTileRows = 8;
constexpr bool kHalves = false;
#elif defined(__AVX2__)
// A sixth row would leave no registers to unpack bf16 in.
constexpr int kTileVectors = 5, kTileRows = 5;
constexpr bool kHalves = true;
#else
constexpr int kTileVectors = 3, kTileRows = 3;
constexpr bool kHalves = true;
#endif

constexpr int tileRows(int panels) {
  return kTileVectors / panels < kTileRows ? kTileVectors / panels : kTileRows;
}

// How a weight's panels are stored and multiplied: `Step` numbers of k at a time, kStepBytes of a
// panel each. The last step may have fewer numbers of x than of weights: `tail`.
MR_INLINE size_t panelOffset(int panel, size_t pairBytes, int stepBytes) {
  return panel / 2 * pairBytes + panel % 2 * stepBytes;
}

struct StoredF32 {
  typedef float Input;
  static constexpr int kStep = 1, kStepBytes = 64;
  template <int M, int P>
  MR_INLINE void step(const float* x, size_t stride, const uint8_t* w, size_t pairBytes,
                      Vec (&acc)[M][P]) {
    Vec b[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) b[p] = load((const float*)(w + panelOffset(p, pairBytes, kStepBytes)));
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const Vec a = splat(x[m * stride]);
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) acc[m][p] = fma(a, b[p], acc[m][p]);
    }
  }
};

struct StoredF16 {
  typedef float Input;
  static constexpr int kStep = 1, kStepBytes = 32;
  template <int M, int P>
  MR_INLINE void step(const float* x, size_t stride, const uint8_t* w, size_t pairBytes,
                      Vec (&acc)[M][P]) {
    Vec b[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) b[p] = loadF16((const uint16_t*)(w + panelOffset(p, pairBytes, kStepBytes)));
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const Vec a = splat(x[m * stride]);
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) acc[m][p] = fma(a, b[p], acc[m][p]);
    }
  }
};

#if defined(__AVX512BF16__)
struct StoredBf16 {
  typedef uint16_t Input;
  static constexpr int kStep = 2, kStepBytes = 64;
  template <int M, int P>
  MR_INLINE void step(const uint16_t* x, size_t stride, const uint8_t* w, size_t pairBytes,
                      Vec (&acc)[M][P]) {
    Pairs b[P];
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) b[p] = loadPairBits((const uint16_t*)(w + panelOffset(p, pairBytes, kStepBytes)));
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      uint32_t pair;
      memcpy(&pair, x + m * stride, 4);
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) acc[m][p] = dotPairs(acc[m][p], b[p], pair);
    }
  }
  // The input is padded with a zero.
  template <int M, int P>
  MR_INLINE void tail(const uint16_t* x, size_t stride, const uint8_t* w, size_t pairBytes,
                      Vec (&acc)[M][P]) {
    step<M, P>(x, stride, w, pairBytes, acc);
  }
};
#else
struct StoredBf16 {
  typedef float Input;
  static constexpr int kStep = 2, kStepBytes = 64;
  template <int M, int P>
  MR_INLINE void step(const float* x, size_t stride, const uint8_t* w, size_t pairBytes,
                      Vec (&acc)[M][P]) {
    // One half of the pairs after the other: both would not fit the registers beside the sums.
#pragma GCC unroll 2
    for (int half = 0; half < 2; half++) {
      Vec b[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) {
        Vec even, odd;
        loadPairs((const uint16_t*)(w + panelOffset(p, pairBytes, kStepBytes)), even, odd);
        b[p] = half == 0 ? even : odd;
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; m++) {
        const Vec a = splat(x[m * stride + half]);
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) acc[m][p] = fma(a, b[p], acc[m][p]);
      }
    }
  }
  template <int M, int P>
  MR_INLINE void tail(const float* x, size_t stride, const uint8_t* w, size_t pairBytes,
                      Vec (&acc)[M][P]) {
    for (int p = 0; p < P; p++) {
      Vec even, odd;
      loadPairs((const uint16_t*)(w + panelOffset(p, pairBytes, kStepBytes)), even, odd);
      for (int m = 0; m < M; m++) acc[m][p] = fma(splat(x[m * stride]), even, acc[m][p]);
    }
  }
};
#endif

// What to ask for while a block of rows is multiplied: memory from `data` on, so many cache lines
// with each step of k.
struct Prefetch {
  const uint8_t* data;
  int lines;
};

constexpr int kLine = 64;

// sums[m * sumPanels + p][16] = x[m] . w[p]
template <class Stored, int M, int P>
void multiply(const void* input, size_t stride, const uint8_t* w, size_t pairBytes, int k,
              Prefetch next, float* sums, int sumPanels) {
  constexpr int kStepBytes = Stored::kStepBytes;
  const auto* x = static_cast<const typename Stored::Input*>(input);
  Vec acc[M][P];
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) acc[m][p] = zero();
  }
  const int steps = k / Stored::kStep;
  size_t offset = 0;
  for (int i = 0; i < steps; i++) {
    if (next.lines > 0) {
      prefetch(next.data);
      for (int line = 1; line < next.lines; line++) prefetch(next.data + line * kLine);
      next.data += next.lines * kLine;
    }
    Stored::template step<M, P>(x, stride, w + offset, pairBytes, acc);
    x += Stored::kStep;
    offset += 2 * kStepBytes;
  }
  if constexpr (Stored::kStep == 2) {
    if (k % 2 != 0) Stored::template tail<M, P>(x, stride, w + offset, pairBytes, acc);
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) store(sums + (m * sumPanels + p) * kPanel, acc[m][p]);
  }
}

typedef void (*Multiply)(const void*, size_t, const uint8_t*, size_t, int, Prefetch, float*, int);

template <class Stored, int P, int M>
constexpr Multiply multiplyOrNull() {
  if constexpr (M <= tileRows(P)) {
    return multiply<Stored, M, P>;
  } else {
    return nullptr;
  }
}

template <class Stored, int P>
Multiply multiplyOf(int rows) {
  static constexpr Multiply table[] = {
      multiplyOrNull<Stored, P, 1>(), multiplyOrNull<Stored, P, 2>(),
      multiplyOrNull<Stored, P, 3>(), multiplyOrNull<Stored, P, 4>(),
      multiplyOrNull<Stored, P, 5>(), multiplyOrNull<Stored, P, 6>(),
      multiplyOrNull<Stored, P, 7>(), multiplyOrNull<Stored, P, 8>()};
  return table[rows - 1];
}

// One vector of results to memory: columns column .. column + count of row m.
MR_INLINE void emit(const GemmOutput& out, int m, int column, int count, Vec v) {
  if (out.residual) {
    const float* r = out.residual + m * out.residualStride + column;
    v = v + (count == kPanel ? load(r) : loadFirst(r, count));
  }
  if (out.f32) {
    float* to = out.f32 + m * out.f32Stride + column;
    if (count == kPanel) {
      store(to, v);
    } else {
      storeFirst(to, v, count);
    }
  }
  if (out.bf16) {
    uint16_t* to = out.bf16 + m * out.bf16Stride + column;
    if (count == kPanel) {
      storeBf16(to, v);
    } else {
      uint16_t rounded[kPanel];
      storeBf16(rounded, v);
      memcpy(to, rounded, count * 2);
      if (count % 2 != 0) to[count] = 0;
    }
  }
}

MR_INLINE Vec addBias(Vec v, const float* bias, int column, int count) {
  if (!bias) return v;
  return v + (count == kPanel ? load(bias + column) : loadFirst(bias + column, count));
}

// The sums of `rows` rows from `row` on, `panels` panels from pair `firstPair` on, to the output.
void finish(const GemmTile& tile, int row, int rows, int firstPair, int panels, const float* sums) {
  const PackedMatrix& w = *tile.weight;
  const GemmOutput& out = tile.out;
  if (w.gateUp) {
    const int width = w.n / 2;
    for (int p = 0; p < panels; p += 2) {
      const int column = (firstPair + p / 2) * kPanel, count = least(kPanel, width - column);
      for (int m = 0; m < rows; m++) {
        const float* s = sums + (m * panels + p) * kPanel;
        const Vec gate = addBias(load(s), out.bias, column, count);
        const Vec up = addBias(load(s + kPanel), out.bias, width + column, count);
        emit(out, row + m, column, count, silu(gate) * up);
      }
    }
    return;
  }
  for (int p = 0; p < panels; p++) {
    const int column = (2 * firstPair + p) * kPanel, count = least(kPanel, w.n - column);
    if (count <= 0) return;
    for (int m = 0; m < rows; m++) {
      const Vec v = load(sums + (m * panels + p) * kPanel);
      emit(out, row + m, column, count, addBias(v, out.bias, column, count));
    }
  }
}

// `PAIRS` pairs of panels together, rows in blocks of nearly equal size.
template <class Stored, int PAIRS>
void gemmPairs(const GemmTile& tile, int firstPair, const uint8_t* prefetch) {
  constexpr int kPanels = 2 * PAIRS, kColumns = kHalves ? 1 : kPanels;
  constexpr int kRows = tileRows(kColumns);
  constexpr int kStepLines = kPanels * Stored::kStepBytes / kLine;
  const PackedMatrix& w = *tile.weight;
  const uint8_t* panels = w.data + firstPair * w.pairBytes;
  const auto* x = static_cast<const typename Stored::Input*>(tile.x.data);
  const int blocks = (tile.rows + kRows - 1) / kRows;
  const int lines = (kStepLines + blocks - 1) / blocks;
  alignas(64) float sums[kRows * kPanels * kPanel];
  for (int b = 0, row = 0; b < blocks; b++) {
    const int rows = (tile.rows - row) / (blocks - b);
    // Each of the blocks asks for a stretch of it, one after the other, like the stream it is.
    Prefetch next = {nullptr, 0};
    if (prefetch && b * lines < kStepLines) {
      next = {prefetch + size_t(b) * lines * kLine * (w.k / Stored::kStep), lines};
    }
    const auto* rowsOfX = x + row * tile.x.stride;
    // One or two rows fit beside a whole pair, whose sums then hide each other's latency.
    const bool wholePair = kHalves && rows <= tileRows(2);
    const Multiply multiply =
        wholePair ? multiplyOf<Stored, 2>(rows) : multiplyOf<Stored, kColumns>(rows);
    for (int p = 0; p < kPanels; p += wholePair ? 2 : kColumns) {
      const uint8_t* from = panels + panelOffset(p, w.pairBytes, Stored::kStepBytes);
      multiply(rowsOfX, tile.x.stride, from, w.pairBytes, w.k, next, sums + p * kPanel, kPanels);
      next.lines = 0;
    }
    finish(tile, row, rows, firstPair, kPanels, sums);
    row += rows;
  }
}

}  // namespace MILLRACE_ISA
}  // namespace millrace

#include "gemm_integers.inl"

namespace millrace {
namespace MILLRACE_ISA {

// Calls pairs(first, prefetch, width) for each one or two pairs of panels of a tile.
template <class Pair>
MR_INLINE void eachPair(const GemmTile& tile, const Pair& pairs) {
  const PackedMatrix& w = *tile.weight;
  const int end = tile.firstPair + tile.pairs;
  for (int pair = tile.firstPair, width; pair < end; pair += width) {
    width = least(tile.width, end - pair);
    pairs(pair, pair + width < end ? w.data + (pair + width) * w.pairBytes : tile.prefetch, width);
  }
}

template <class Stored>
void gemmStored(const GemmTile& tile) {
  eachPair(tile, [&](int pair, const uint8_t* next, int width) {
    if (width == 2) {
      gemmPairs<Stored, 2>(tile, pair, next);
    } else {
      gemmPairs<Stored, 1>(tile, pair, next);
    }
  });
}

template <class Stored>
void gemmIntegers(const GemmTile& tile) {
  eachPair(tile, [&](int pair, const uint8_t* next, int width) {
    if (width == 2) {
      gemmIntegerPairs<Stored, 2>(tile, pair, next);
    } else {
      gemmIntegerPairs<Stored, 1>(tile, pair, next);
    }
  });
}

static void gemm(const GemmTile& tile) {
  if (tile.weight->integer.bits == 8) return gemmIntegers<Int8>(tile);
  if (tile.weight->integer.bits == 4) return gemmIntegers<Int4>(tile);
  switch (tile.weight->dtype) {
    case DType::F32: return gemmStored<StoredF32>(tile);
    case DType::F16: return gemmStored<StoredF16>(tile);
    case DType::BF16: return gemmStored<StoredBf16>(tile);
    case DType::I8: return;
  }
}

static constexpr GemmKernels gemmKernels = {gemm, kHasPairDot, quantizeRow, rowBytes};

}  // namespace MILLRACE_ISA
}  // namespace millrace
