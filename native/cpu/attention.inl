// Attention kernels of one instruction set; see attention.h for what they do and vec.h for how this
// file is compiled. Keys are taken a group of tiles at a time with the online softmax of Milakov
// and Gimelshein (2018, "Online normalizer calculation for softmax"); splitting one sequence's keys
// among threads and merging the parts is flash-decoding (Dao et al. 2023).
//
// Arithmetic: sums, maxima and outputs are float32. With AVX512-BF16 and a bf16 cache the query and
// the probabilities are rounded to bf16 as operands of vdpbf16ps; elsewhere they stay float32 and
// keys and values are widened. So are those of an int8 cache everywhere: a key's scale multiplies its
// score, a value's its probability.
#include "attention.h"
#include "attention_write.inl"
#include "vec.h"
#include "vec_int.h"

namespace millrace {
namespace MILLRACE_ISA {
namespace attention {

// Rows of a register block. With TILES tiles beside it, its accumulators must fit the registers:
// 4 x 4 of 32 on AVX-512, 4 x 1 (two registers each) of 16 on AVX2.
constexpr int kRowBlock = 4;
#if defined(__AVX512F__)
constexpr int kTiles = 4;
#else
constexpr int kTiles = 1;
#endif
// Tiles of keys between two updates of the running maximum.
constexpr int kGroupTiles = 8;
constexpr int kGroupTokens = kGroupTiles * kTileTokens;

// How each storage type is multiplied. A step of a product takes kDepth numbers of the summed
// dimension: Weights holds them for 16 lanes, and kWidth Factors for the one row they meet.
#if defined(__AVX512BF16__)
struct Bf16 {
  typedef uint16_t Element;
  typedef uint32_t Factor;  // a pair of bf16 numbers
  typedef Pairs Weights;
  static constexpr int kDepth = 2, kWidth = 1;
  MR_INLINE Weights load(const Element* p) { return loadPairBits(p); }
  MR_INLINE Weights loadHalf(const Element* p) { return firstOfPairs(loadPairBits(p)); }
  MR_INLINE Vec multiplyAdd(Vec acc, Weights w, const Factor* x) { return dotPairs(acc, w, *x); }
  MR_INLINE void storeFactors(Factor* row, int i, Vec x) { storeBf16((uint16_t*)row + i, x); }
};
#else
struct Bf16 {
  typedef uint16_t Element;
  typedef float Factor;
  struct Weights {
    Vec even, odd;
  };
  static constexpr int kDepth = 2, kWidth = 2;
  MR_INLINE Weights load(const Element* p) {
    Weights w;
    loadPairs(p, w.even, w.odd);
    return w;
  }
  MR_INLINE Weights loadHalf(const Element* p) {
    Weights w = load(p);
    w.odd = zero();
    return w;
  }
  MR_INLINE Vec multiplyAdd(Vec acc, const Weights& w, const Factor* x) {
    return fma(w.odd, splat(x[1]), fma(w.even, splat(x[0]), acc));
  }
  MR_INLINE void storeFactors(Factor* row, int i, Vec x) { store(row + i, x); }
};
#endif

struct F16 {
  typedef uint16_t Element;
  typedef float Factor;
  typedef Vec Weights;
  static constexpr int kDepth = 1, kWidth = 1;
  MR_INLINE Weights load(const Element* p) { return loadF16(p); }
  MR_INLINE Weights loadHalf(const Element* p) { return load(p); }
  MR_INLINE Vec multiplyAdd(Vec acc, Weights w, const Factor* x) { return fma(w, splat(*x), acc); }
  MR_INLINE void storeFactors(Factor* row, int i, Vec x) { store(row + i, x); }
};

struct F32 {
  typedef float Element;
  typedef float Factor;
  typedef Vec Weights;
  static constexpr int kDepth = 1, kWidth = 1;
  MR_INLINE Weights load(const Element* p) { return millrace::MILLRACE_ISA::load(p); }
  MR_INLINE Weights loadHalf(const Element* p) { return load(p); }
  MR_INLINE Vec multiplyAdd(Vec acc, Weights w, const Factor* x) { return fma(w, splat(*x), acc); }
  MR_INLINE void storeFactors(Factor* row, int i, Vec x) { store(row + i, x); }
};

struct I8 {
  typedef int8_t Element;
  typedef float Factor;
  typedef Vec Weights;
  static constexpr int kDepth = 1, kWidth = 1;
  MR_INLINE Weights load(const Element* p) { return loadBytes(p); }
  MR_INLINE Weights loadHalf(const Element* p) { return load(p); }
  MR_INLINE Vec multiplyAdd(Vec acc, Weights w, const Factor* x) { return fma(w, splat(*x), acc); }
  MR_INLINE void storeFactors(Factor* row, int i, Vec x) { store(row + i, x); }
};

template <class Kv>
constexpr bool kScaled = sizeof(typename Kv::Element) == 1;

// acc[r][t] += sum over steps of weights[t] * factors of row r. The register block of both
// products: scores (lanes are tokens, the sum runs over the head) and outputs (lanes are columns,
// it runs over tokens). Strides in elements. With AHEAD the lines at the same place of `ahead` are
// asked for.
template <class Kv, int ROWS, int TILES, bool AHEAD>
MR_INLINE void multiply(Vec (&acc)[ROWS][TILES],
                        const typename Kv::Element* const (&weights)[TILES],
                        const typename Kv::Element* const (&ahead)[TILES], size_t stride,
                        const typename Kv::Factor* x, size_t rowStride, int steps) {
  for (int s = 0; s < steps; s++) {
    typename Kv::Weights w[TILES];
#pragma GCC unroll 4
    for (int t = 0; t < TILES; t++) {
      w[t] = Kv::load(weights[t] + s * stride);
      // Bytes: one line holds four steps of keys, or the same step of all columns of values.
      if (AHEAD && (!kScaled<Kv> || (stride == kTileTokens ? s % 4 == 0 : t == 0))) {
        prefetch(ahead[t] + s * stride);
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
      for (int t = 0; t < TILES; t++) {
        acc[r][t] = Kv::multiplyAdd(acc[r][t], w[t], x + r * rowStride + s * Kv::kWidth);
      }
    }
  }
}

// A group of tiles: where they are, and where the stream of tiles is kGroupTiles further on.
template <class Kv>
struct Group {
  const typename Kv::Element* tiles[kGroupTiles];
  const typename Kv::Element* ahead[kGroupTiles];
  int begin;  // position of the first token
  int end;    // after the last key any row of the item sees
};

// Query rows of an item in the thread's scratch.
template <class Kv>
struct Rows {
  typename Kv::Factor* q;  // [rows][queryStride]
  size_t queryStride;
  float *out, *maximum, *sum;  // [rows][paddedDim], [rows], [rows]
  float* scores;               // [kRowBlock][kGroupTokens]
  typename Kv::Factor* probs;  // [kRowBlock][kGroupTokens numbers]
};

// scores[r][token of group] = q_r . k for TILES tiles of the group from `first` on.
template <class Kv, int ROWS, int TILES, bool AHEAD>
MR_INLINE void scoreTiles(const Attention& a, const Group<Kv>& group, int first,
                          const typename Kv::Factor* q, size_t queryStride, float* scores) {
  Vec acc[ROWS][TILES];
  const typename Kv::Element *tiles[TILES], *ahead[TILES];
#pragma GCC unroll 4
  for (int t = 0; t < TILES; t++) {
    tiles[t] = group.tiles[first + t];
    ahead[t] = group.ahead[first + t];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) acc[r][t] = zero();
  }
  multiply<Kv, ROWS, TILES, AHEAD>(acc, tiles, ahead, kTileTokens * Kv::kDepth, q, queryStride,
                                   a.kv.headDim / Kv::kDepth);
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
    for (int t = 0; t < TILES; t++) {
      if (kScaled<Kv>) {
        const auto* scales = (const float*)((const uint8_t*)tiles[t] + a.kv.keyScales);
        acc[r][t] = acc[r][t] * millrace::MILLRACE_ISA::load(scales);
        if (AHEAD && r == 0) prefetch((const uint8_t*)ahead[t] + a.kv.keyScales);
      }
      store(scores + r * kGroupTokens + (first + t) * kTileTokens, acc[r][t]);
    }
  }
}

// out[r][columns of TILES tiles] = out * factor[r] + sum over `tokens` tokens of probability * v.
template <class Kv, int ROWS, int TILES, bool AHEAD>
MR_INLINE void addValues(const Attention& a, const Group<Kv>& group, int tokens, int column,
                         const typename Kv::Factor* probs, const float* factor, float* out) {
  typedef typename Kv::Element Element;
  const size_t stride = size_t(a.kv.paddedDim) * Kv::kDepth;
  const size_t offset = a.kv.valueOffset / sizeof(Element) + column * Kv::kDepth;
  constexpr int kRowFactors = kGroupTokens / Kv::kDepth * Kv::kWidth;
  Vec acc[ROWS][TILES];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
    for (int t = 0; t < TILES; t++) {
      acc[r][t] = load(out + r * a.kv.paddedDim + column + t * kLanes) * splat(factor[r]);
    }
  }
  for (int from = 0; from < tokens; from += kTileTokens) {
    const Element *columns[TILES], *ahead[TILES];
#pragma GCC unroll 4
    for (int t = 0; t < TILES; t++) {
      columns[t] = group.tiles[from / kTileTokens] + offset + t * kLanes * Kv::kDepth;
      ahead[t] = group.ahead[from / kTileTokens] + offset + t * kLanes * Kv::kDepth;
    }
    const typename Kv::Factor* x = probs + from / Kv::kDepth * Kv::kWidth;
    const int steps = least(tokens - from, kTileTokens) / Kv::kDepth;
    multiply<Kv, ROWS, TILES, AHEAD>(acc, columns, ahead, stride, x, kRowFactors, steps);
    if (Kv::kDepth == 2 && tokens - from < kTileTokens && (tokens & 1)) {
      // The partner of the last token was never written and may be NaN, which times 0 is NaN.
      x += steps * Kv::kWidth;
#pragma GCC unroll 4
      for (int t = 0; t < TILES; t++) {
        const typename Kv::Weights w = Kv::loadHalf(columns[t] + steps * stride);
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
          acc[r][t] = Kv::multiplyAdd(acc[r][t], w, x + r * kRowFactors);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
    for (int t = 0; t < TILES; t++) {
      store(out + r * a.kv.paddedDim + column + t * kLanes, acc[r][t]);
    }
  }
}

// Keys that a row sees, as positions.
struct Range {
  int begin, end;
};

// One row's scores become probabilities relative to its new maximum. Returns that maximum, 0 while
// the row has seen no key. Scores outside of the range, of stale slots too, are replaced unread.
template <class Kv>
MR_INLINE float exponentiate(const Attention& a, const Group<Kv>& group, Range range, int tiles,
                             float* scores, float maximum, float& sum,
                             typename Kv::Factor* probs) {
  const float scale = a.scale;
  const int begin = group.begin;
  const bool partial = range.begin > begin || range.end < begin + tiles * kTileTokens;
  Vec top = splat(maximum);
  for (int t = 0; t < tiles; t++) {
    Vec s = load(scores + t * kTileTokens) * splat(scale);
    if (partial) {
      const int at = begin + t * kTileTokens;
      const int from = least(most(range.begin - at, 0), kTileTokens);
      const int to = least(most(range.end - at, 0), kTileTokens);
      s = select(firstLanes(to), s, splat(-__builtin_inff()));
      s = select(firstLanes(from), splat(-__builtin_inff()), s);
    }
    store(scores + t * kTileTokens, s);
    top = max(top, s);
  }
  const float highest = reduceMax(top);
  const float base = highest == -__builtin_inff() ? 0 : highest;
  Vec total = zero();
  for (int t = 0; t < tiles; t++) {
    Vec p = exp(load(scores + t * kTileTokens) - splat(base));
    total = total + p;
    if (kScaled<Kv>) {
      const auto* tile = (const uint8_t*)group.tiles[t];
      p = p * millrace::MILLRACE_ISA::load((const float*)(tile + a.kv.valueScales));
    }
    Kv::storeFactors(probs, t * kTileTokens, p);
  }
  sum = reduceSum(total);
  return base;
}

// One group of keys against ROWS query rows from `row` on.
template <class Kv, int ROWS, bool AHEAD>
__attribute__((noinline)) static void processRows(const Attention& a, const Group<Kv>& group,
                                                  const Rows<Kv>& rows, int row,
                                                  const Range* ranges) {
  int end = ranges[0].end, begin = ranges[0].begin;
  for (int r = 1; r < ROWS; r++) {
    end = most(end, ranges[r].end);
    begin = least(begin, ranges[r].begin);
  }
  const int tokens = least(end, group.end) - group.begin;
  if (tokens <= 0 || begin >= group.end) return;
  const int tiles = (tokens + kTileTokens - 1) / kTileTokens;

  const typename Kv::Factor* q = rows.q + row * rows.queryStride;
  int t = 0;
  for (; t + kTiles <= tiles; t += kTiles) {
    scoreTiles<Kv, ROWS, kTiles, AHEAD>(a, group, t, q, rows.queryStride, rows.scores);
  }
  for (; t < tiles; t++) {
    scoreTiles<Kv, ROWS, 1, AHEAD>(a, group, t, q, rows.queryStride, rows.scores);
  }

  constexpr int kRowFactors = kGroupTokens / Kv::kDepth * Kv::kWidth;
  float factor[kLanes] = {}, sum[ROWS];
  for (int r = 0; r < ROWS; r++) {
    const float old = rows.maximum[row + r];
    const float base = exponentiate<Kv>(a, group, ranges[r], tiles, rows.scores + r * kGroupTokens, old, sum[r],
                                        rows.probs + r * kRowFactors);
    factor[r] = old - base;
    // While no key was seen base stands for nothing, and the sum of the row is 0 anyway.
    rows.maximum[row + r] = sum[r] == 0 && old == -__builtin_inff() ? old : base;
  }
  store(factor, exp(load(factor)));
  for (int r = 0; r < ROWS; r++) rows.sum[row + r] = rows.sum[row + r] * factor[r] + sum[r];

  float* out = rows.out + size_t(row) * a.kv.paddedDim;
  int column = 0;
  for (; column + kTiles * kLanes <= a.kv.paddedDim; column += kTiles * kLanes) {
    addValues<Kv, ROWS, kTiles, AHEAD>(a, group, tokens, column, rows.probs, factor, out);
  }
  for (; column < a.kv.paddedDim; column += kLanes) {
    addValues<Kv, ROWS, 1, AHEAD>(a, group, tokens, column, rows.probs, factor, out);
  }
}

template <class Kv, bool AHEAD>
MR_INLINE void processBlock(const Attention& a, const Group<Kv>& group, const Rows<Kv>& rows,
                            int row, int count, const Range* ranges) {
  switch (count) {
    case 1: return processRows<Kv, 1, AHEAD>(a, group, rows, row, ranges);
    case 2: return processRows<Kv, 2, AHEAD>(a, group, rows, row, ranges);
    case 3: return processRows<Kv, 3, AHEAD>(a, group, rows, row, ranges);
    default: return processRows<Kv, 4, AHEAD>(a, group, rows, row, ranges);
  }
}

// Tile number `tile` of the item's sequence and kv head.
template <class Kv>
MR_INLINE const typename Kv::Element* tileAddress(const Attention& a, const AttentionItem& item,
                                                  int tile) {
  const int perBlock = a.kv.blockSize / kTileTokens;
  const int block = a.step->blockTables[a.step->blockTableStart[item.seq] + tile / perBlock];
  const uint8_t* address = a.cache + size_t(block) * a.kv.blockBytes +
                           size_t(item.kvHead) * a.kv.headBytes +
                           size_t(tile % perBlock) * a.kv.tileBytes;
  return (const typename Kv::Element*)address;
}

// Joins what the parts of a split found for one row of their `rows`: each saw other keys.
static void mergeParts(const Attention& a, const AttentionSplit& split, int rows, int row,
                       float* out) {
  const AttentionPlan& plan = *a.plan;
  const float* part = plan.partials + size_t(split.firstPartial + row) * plan.partialStride;
  const size_t stride = size_t(rows) * plan.partialStride;
  float highest = -__builtin_inff();
  for (int i = 0; i < split.parts; i++) highest = most(highest, part[i * stride]);
  float sum = 0;
  for (int c = 0; c < a.kv.headDim; c += kLanes) {
    Vec acc = zero();
    float total = 0;
    for (int i = 0; i < split.parts; i++) {
      float weight[kLanes];
      store(weight, exp(splat(part[i * stride] - highest)));
      total += weight[0] * part[i * stride + 1];
      acc = fma(splat(weight[0]), load(part + i * stride + 16 + c), acc);
    }
    sum = total;
    storeFirst(out + c, acc * splat(1 / sum), a.kv.headDim - c);
  }
}

// Where row `row` of the item has its output or, from the same column on, its query.
MR_INLINE float* rowOf(const View& view, const Attention& a, const AttentionItem& item, int row) {
  const int group = a.shape.heads / a.shape.kvHeads;
  const int token = item.tokenBegin + row / group, head = item.kvHead * group + row % group;
  return view.data + token * view.stride + size_t(head) * a.kv.headDim;
}

template <class Kv>
MR_INLINE void finishItem(const Attention& a, const AttentionItem& item, const Rows<Kv>& rows,
                          int count) {
  const int paddedDim = a.kv.paddedDim, headDim = a.kv.headDim;
  const AttentionPlan& plan = *a.plan;
  if (item.split < 0) {
    for (int r = 0; r < count; r++) {
      float* out = rowOf(a.out, a, item, r);
      const Vec inverse = splat(1 / rows.sum[r]);
      for (int c = 0; c < headDim; c += kLanes) {
        storeFirst(out + c, load(rows.out + r * paddedDim + c) * inverse, headDim - c);
      }
    }
    return;
  }
  for (int r = 0; r < count; r++) {
    float* part = plan.partials + size_t(item.partial + r) * plan.partialStride;
    part[0] = rows.maximum[r];
    part[1] = rows.sum[r];
    for (int c = 0; c < paddedDim; c += kLanes) {
      store(part + 16 + c, load(rows.out + r * paddedDim + c));
    }
  }
  // Release our part, acquire those of the others. The last one merges, in the order of the keys,
  // and sets the counter for the next layer.
  if (plan.unfinished[item.split].fetch_sub(1, std::memory_order_acq_rel) > 1) return;
  const AttentionSplit& split = plan.splits[item.split];
  plan.unfinished[item.split].store(split.parts, std::memory_order_relaxed);
  for (int r = 0; r < count; r++) mergeParts(a, split, count, r, rowOf(a.out, a, item, r));
}

// `next` is the item this thread does after this one (or itself): its tiles continue the stream
// that is fetched ahead.
template <class Kv>
static void attendItem(const Attention& a, const AttentionItem& item, const AttentionItem& next,
                       uint8_t* scratch) {
  typedef typename Kv::Factor Factor;
  const int paddedDim = a.kv.paddedDim, headDim = a.kv.headDim;
  const int group = a.shape.heads / a.shape.kvHeads;
  const int count = (item.tokenEnd - item.tokenBegin) * group;

  // 8 KiB of scores and probabilities, then what grows with the rows.
  Rows<Kv> rows;
  rows.scores = (float*)scratch;
  rows.probs = (Factor*)(scratch + kRowBlock * kGroupTokens * sizeof(float));
  rows.q = (Factor*)(scratch + 2 * kRowBlock * kGroupTokens * sizeof(float));
  rows.queryStride = paddedDim / Kv::kDepth * Kv::kWidth;
  rows.out = (float*)rows.q + size_t(count) * paddedDim;
  rows.maximum = rows.out + size_t(count) * paddedDim;
  rows.sum = rows.maximum + count;

  for (int r = 0; r < count; r++) {
    const float* q = rowOf(a.q, a, item, r);
    for (int c = 0; c < headDim; c += kLanes) {
      Kv::storeFactors(rows.q + r * rows.queryStride, c, loadFirst(q + c, headDim - c));
    }
    for (int c = 0; c < paddedDim; c += kLanes) store(rows.out + r * paddedDim + c, zero());
    rows.maximum[r] = -__builtin_inff();
    rows.sum[r] = 0;
  }

  const int firstToken = a.step->queryStart[item.seq];
  const int past = a.step->contextLens[item.seq] - (a.step->queryStart[item.seq + 1] - firstToken);
  const int position = past + item.tokenBegin - firstToken;  // of row 0
  const int lastTile = (item.keyEnd + kTileTokens - 1) / kTileTokens;
  const int nextFirst = next.keyBegin / kTileTokens;
  const int nextCount = (next.keyEnd + kTileTokens - 1) / kTileTokens - nextFirst;

  for (int tile = item.keyBegin / kTileTokens; tile < lastTile; tile += kGroupTiles) {
    Group<Kv> keys;
    keys.begin = tile * kTileTokens;
    keys.end = least(item.keyEnd, keys.begin + kGroupTokens);
    for (int t = 0; t < kGroupTiles && tile + t < lastTile; t++) {
      keys.tiles[t] = tileAddress<Kv>(a, item, tile + t);
      const int ahead = tile + t + kGroupTiles, beyond = least(ahead - lastTile, nextCount - 1);
      keys.ahead[t] = ahead < lastTile ? tileAddress<Kv>(a, item, ahead)
                                       : tileAddress<Kv>(a, next, nextFirst + beyond);
    }
    for (int row = 0; row < count; row += kRowBlock) {
      Range ranges[kRowBlock];
      const int block = least(kRowBlock, count - row);
      for (int r = 0; r < block; r++) {
        const int at = position + (row + r) / group;
        ranges[r].end = least(at + 1, item.keyEnd);
        ranges[r].begin = a.shape.window > 0 ? most(0, at + 1 - a.shape.window) : 0;
      }
      // Only the first rows wait for memory; the others find keys and values in the cache.
      if (row == 0) {
        processBlock<Kv, true>(a, keys, rows, row, block, ranges);
      } else {
        processBlock<Kv, false>(a, keys, rows, row, block, ranges);
      }
    }
  }
  finishItem<Kv>(a, item, rows, count);
}

template <class Kv>
static void attendAll(const Attention& a, int thread) {
  const AttentionPlan& plan = *a.plan;
  uint8_t* scratch = plan.scratch + thread * plan.scratchBytes;
  int claimed = a.next->fetch_add(1, std::memory_order_relaxed);
  while (claimed < plan.numItems) {
    const int current = claimed;
    // While there is plenty of work the next item is claimed before this one is done, to know what
    // to fetch ahead; towards the end no thread may sit on work that another could do.
    const bool early = current + 2 * plan.threads < plan.numItems;
    if (early) claimed = a.next->fetch_add(1, std::memory_order_relaxed);
    const int next = early && claimed < plan.numItems ? claimed : current;
    attendItem<Kv>(a, plan.items[current], plan.items[next], scratch);
    if (!early) claimed = a.next->fetch_add(1, std::memory_order_relaxed);
  }
}

static void attend(const Attention& a, int thread) {
  switch (a.kv.dtype) {
    case DType::BF16: return attendAll<Bf16>(a, thread);
    case DType::F16: return attendAll<F16>(a, thread);
    case DType::F32: return attendAll<F32>(a, thread);
    case DType::I8: return attendAll<I8>(a, thread);
  }
}

}  // namespace attention

constexpr AttentionKernels attentionKernels = {attention::writeKv, attention::attend};

}  // namespace MILLRACE_ISA
}  // namespace millrace
