// Attention of one query token a sequence, split over keys (flash-decoding, Dao et al. 2023), with
// the step's tiles dealt out about evenly to blocks, and in a block to warps, as in stream-K (Osama et
// al. 2023).
//
// Each warp has its own ring of tiles in shared memory and fills it over the borders of sequences,
// so that memory never waits for a softmax, a merge or another warp. The keys of a tile, and then the
// columns of its values, are the 16 rows of an mma and the query heads of a KV head its 8 columns: most
// models have 2 to 8 of those, and as rows they would leave half of every product and sum unused.
//
// A warp that did not have all keys of a head leaves a part in shared memory; when all warps of the
// block are done, they merge parts, row by row. Of a head that several blocks had, the last one to
// arrive merges what they left in global memory.
#pragma once
#include "attention_decode_fresh.cuh"
#include "attention_decode_parts.cuh"
#include "launch.h"

namespace millrace::cuda {

constexpr int kTileHeads = 8;  // columns of an mma

// The reference that exponents are taken against is a maximum of scores, but not renewed for each
// larger one: any reference gives the same quotient. Most tiles then need no reduction over keys and
// no correction of sums, only a vote that no score is this far (in powers of 2) above its reference
// (lazy rescaling as in FlashAttention-4, Dao et al. 2026). Weights up to 2^8 are as precise as those
// up to 1, and float16 holds them.
constexpr float kReferenceSlack = 8;

// A place on the line of tiles.
struct Cursor {
  int entry, kvHead, pass, tile;  // the pass of the KV head, the tile from the entry's first
  int tiles, firstTile;           // of the entry
  int seq, row, context;

  __device__ void enter(const DecodeArgs& a) {
    const int4 e = __ldg(reinterpret_cast<const int4*>(a.entries + entry));
    seq = e.y;
    row = e.z;
    context = e.w;
    firstTile = a.window > 0 && context > a.window ? (context - a.window) / kTileTokens : 0;
    tiles = (context + kTileTokens - 1) / kTileTokens - firstTile;
  }
  __device__ void start(const DecodeArgs& a, int firstEntry, int position) {
    entry = firstEntry;
    enter(a);
    const int within = position - __ldg(&a.entries[entry].tileStart) * (a.kvHeads * a.passes);
    const int item = within / tiles;
    tile = within - item * tiles;
    kvHead = item / a.passes;
    pass = item - kvHead * a.passes;
  }
  // Not past the end of the line: entries are read only if there is another tile.
  __device__ void next(const DecodeArgs& a) {
    if (++tile == tiles) nextItem(a);
  }
  __device__ void nextItem(const DecodeArgs& a) {
    tile = 0;
    if (++pass < a.passes) return;
    pass = 0;
    if (++kvHead < a.kvHeads) return;
    kvHead = 0;
    entry++;
    enter(a);
  }
  // The tile with the sequence's newest key.
  __device__ bool newest() const { return tile + 1 == tiles; }
  __device__ int keyLow(const DecodeArgs& a) const {
    return a.window > 0 && context > a.window ? context - a.window : 0;
  }
};

// Over the lanes that share columns of an mma.
__device__ __forceinline__ float rowsMax(float x) {
#pragma unroll
  for (int step = 4; step < 32; step *= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, step));
  return x;
}
__device__ __forceinline__ float rowsSum(float x) {
#pragma unroll
  for (int step = 4; step < 32; step *= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}

// ---------------------------------------------------------------- the kernel

// Of a warp's tiles of keys and of values.
template <int kDim, int kStages>
constexpr int ringBytes(int elemBytes) {
  return kStages * 2 * kTileTokens * kDim * elemBytes;
}

// A warp's stretch of the line: `count` tiles from `mine`, the begin, entry, first and last of a DecodeWorker, on.
// kHeadTiles times 8 query heads are computed at a time. kFresh: a.fresh has the step's queries, keys and values;
// heads then fill the rows of tiles. Returns whether a part was left in shared memory.
template <typename T, bool kFp8, int kDim, int kHeadTiles, int kWarps, int kStages, bool kFresh>
__device__ __forceinline__ bool attend(const DecodeArgs& a, const int4& mine, int count, unsigned char* shared,
                                       const Parts<kWarps>& parts, const Turns<kDim>& turns,
                                       unsigned char* newest, Cut* cuts) {
  using C = typename ComputeOf<T, kFp8>::Type;
  constexpr int kElemBytes = kFp8 ? 1 : 2;  // of keys and values
  constexpr int kRowBytes = kDim * kElemBytes;
  constexpr int kTileBytes = kTileTokens * kRowBytes;
  constexpr int kSteps = kDim / 16;
  constexpr int kLaneChunks = kRowBytes / 16;                      // of a row
  constexpr int kRowsAtOnce = kLaneChunks >= 32 ? 1 : 32 / kLaneChunks;
  constexpr int kCopies = kTileTokens / kRowsAtOnce;
  static_assert(kLaneChunks <= 32, "a row of a tile is copied by one warp instruction");
  constexpr int kRingBytes = ringBytes<kDim, kStages>(kElemBytes);
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int worker = blockIdx.x * kWarps + warp;

  const uint32_t ring = static_cast<uint32_t>(__cvta_generic_to_shared(shared)) + warp * kRingBytes;
  const int copyChunk = lane % kLaneChunks, copyRow = lane / kLaneChunks;
  const int headDim = kFresh ? kDim : a.headDim, headStride = kFresh ? kDim : a.headStride;
  const int rowBytes = headStride * kElemBytes;  // in memory
  const bool copies = copyChunk * 16 < rowBytes;
  // Columns that no copy fills stay zero.
  if (!copies) {
    for (int row = copyRow; row < kStages * 2 * kTileTokens; row += kRowsAtOnce) {
      const uint32_t at = ring + swizzled<kRowBytes>(row, copyChunk);
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(at), "r"(0) : "memory");
    }
  }
  __syncwarp();

  Cursor load;
  load.start(a, mine.y, mine.x);
  Cursor use = load;
  // Where 32 tiles of an entry lie for KV head 0, one a lane, counted in tiles: there are fewer than
  // 2^31, as the smallest one has 256 bytes.
  int placesEntry = -1, placesAt = 0, place = 0;
  int places = 0;  // lane s: where the tile of stage s lies

  auto produce = [&](int stage) {
    if (load.entry != placesEntry || load.tile < placesAt || load.tile >= placesAt + 32) {
      placesEntry = load.entry;
      // From the start of the entry where that serves its other heads too.
      placesAt = load.tiles <= 32 ? 0 : load.tile;
      const int tile = min(placesAt + lane, load.tiles - 1) + load.firstTile;
      const int block = tile / a.blockTiles;
      const int id = __ldg(a.blockTables + __ldg(a.blockTableStart + load.seq) + block);
      place = (id * a.kvHeads - block) * a.blockTiles + tile;
    }
    const int at = __shfl_sync(kAll, place, load.tile - placesAt) + load.kvHead * a.blockTiles;
    if (lane == stage) places = at;
    const int64_t offset = static_cast<int64_t>(at) * (kTileTokens * rowBytes) +
                           (copyRow * rowBytes + copyChunk * 16);
    const char* keys = static_cast<const char*>(a.keys) + offset;
    const char* values = static_cast<const char*>(a.values) + offset;
    const uint32_t target = ring + stage * (2 * kTileBytes);
    const int token = (load.firstTile + load.tile) * kTileTokens;
    const int low = load.keyLow(a) - token, high = load.context - (kFresh ? 1 : 0) - token;
    if (!copies) return;
    // Most heads fill the rows, and a step that is known is part of the instruction.
    if (low <= 0 && high >= kTileTokens && rowBytes == kRowBytes) {
#pragma unroll
      for (int j = 0; j < kCopies; j++) {
        const uint32_t to = target + swizzled<kRowBytes>(copyRow + j * kRowsAtOnce, copyChunk);
        copyAsync16(to, keys + j * kRowsAtOnce * kRowBytes);
        copyAsync16(to + kTileBytes, values + j * kRowsAtOnce * kRowBytes);
      }
      return;
    }
    // Keys that are not seen may be anything in memory, and 0 times infinity is not 0.
#pragma unroll
    for (int j = 0; j < kCopies; j++) {
      const int row = copyRow + j * kRowsAtOnce;
      const bool wanted = row >= low && row < high;
      const uint32_t to = target + swizzled<kRowBytes>(row, copyChunk);
      copyAsync16Or0(to, keys + j * kRowsAtOnce * rowBytes, wanted);
      copyAsync16Or0(to + kTileBytes, values + j * kRowsAtOnce * rowBytes, wanted);
    }
  };

  int loaded = 0;  // tiles
  auto fill = [&](int stage) {
    if (loaded < count) {
      produce(stage);
      if (++loaded < count) load.next(a);
    }
    copyAsyncCommit();
  };

  const int g = lane >> 2, t = lane & 3;
  // Where a thread's pairs of a query are. Of e4m3 it has four neighboring columns of a key: queries follow.
  const auto columnOf = [&](int n, int i) { return n * 16 + (kFp8 ? 4 * t + 2 * i : 2 * t + 8 * i); };
  if constexpr (kFresh) {
    turns.loadWeights(a.fresh, lane);
    turns.loadRotation(a.fresh, use.context - 1, lane);
  }

  // The ring is filled before the kernel ahead has ended, up to the first tile that it may write to: where
  // that one stores the newest key and value of each sequence, the last tile of an entry. Where this one
  // does, there is none. All else was there before it began: the plan and the block tables are copied ahead of
  // a step's first kernel, older keys come from earlier steps (blocks are shared with other sequences
  // only when the step that fills them has ended), and a launch overlaps no kernel but the one ahead,
  // which lets it in after its own wait.
  bool waited = false;
#pragma unroll 1
  for (int s = 0; s < kStages - 1; s++) {
    if (!waited && (loaded == count || (!kFresh && load.newest()))) {
      waitForPrevious();
      waited = true;
    }
    fill(s);
  }
  if (!waited) waitForPrevious();

  // Both are the first operand here, of which the names say the second: keys are read by the map of
  // queries, and transposed values by that of keys, but of e4m3 in the order of its two words a step.
  const uint32_t keysLane = laneOfValues<kRowBytes>(lane);
  const uint32_t valuesLane = kFp8 ? keysLane : laneOfKeys<kRowBytes>(lane);
  int stage = 0;
  bool cut = false;  // an item of which this warp has a part only
  for (int done = 0;;) {
    // An item, or as much of it as the stretch has.
    const int tiles = min(use.tiles - use.tile, count - done);
    const bool begun = use.tile == 0, ended = use.tile + tiles == use.tiles;
    const int64_t firstHead = use.kvHead * a.group + use.pass * kPassRows;
    const int rows = min(kHeadTiles * kTileHeads, a.group - use.pass * kPassRows);
    const T* queries = static_cast<const T*>(a.q) + use.row * a.qStride + firstHead * headDim;
    // A thread's columns of all products are the heads 2 t and 2 t + 1 (of 8). Its rows of the output
    // are columns g and g + 8 of each 16; of e4m3, 2 g and 2 g + 1.
    uint32_t q[kHeadTiles][kSteps][2] = {};
    if constexpr (kFresh) {
      Newest<T, kFp8, kDim> made;
      if (ended) made.load(a.fresh, use.row, use.kvHead, lane);
      // Where no tile is on its way to. All have read what was there, and see what others loaded of `turns`.
      const uint32_t turned = turnQueries<T, C, kDim>(
          a.fresh, turns, queries, rows, lane,
          shared + warp * kRingBytes + (stage == 0 ? kStages - 1 : stage - 1) * (2 * kTileBytes));
      if (ended) made.store(a.fresh, turns, lane, newest);
#pragma unroll
      for (int h = 0; h < kHeadTiles; h++) {
        if (h * kTileHeads + g < rows) loadTurned<kFp8, kDim>(turned, h * kTileHeads + g, t, q[h]);
      }
    } else {
#pragma unroll
      for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
        for (int n = 0; n < kSteps; n++) {
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const int row = h * kTileHeads + g, column = columnOf(n, i);
            // Not by the read-only path: the kernel ahead may write them while this one runs.
            if (row < rows && column < headDim) {
              q[h][n][i] = converted<T, C>(*reinterpret_cast<const uint32_t*>(queries + row * headDim + column));
            }
          }
        }
      }
    }
    float o[kHeadTiles][kSteps][4] = {};
    float reference[kHeadTiles][2], sum[kHeadTiles][2] = {};
#pragma unroll
    for (int h = 0; h < kHeadTiles; h++) reference[h][0] = reference[h][1] = -INFINITY;

    for (const int end = use.tile + tiles; use.tile < end; use.tile++) {
      copyAsyncWait<kStages - 2>();
      __syncwarp();
      const int at = __shfl_sync(kAll, places, stage);
      fill(stage == 0 ? kStages - 1 : stage - 1);
      if (kFresh && use.newest()) {
        placeNewest<kRowBytes, kTileBytes>(a, newest, shared + warp * kRingBytes + stage * (2 * kTileBytes), at,
                                           (use.context - 1) % kTileTokens, lane);
      }

      // Scores of 16 keys, in two sums each to shorten the chain.
      const uint32_t tileK = ring + stage * (2 * kTileBytes), tileV = tileK + kTileBytes;
      float s[kHeadTiles][4] = {}, s2[kHeadTiles][4] = {};
      if constexpr (kFp8) {
        // A word of a key is its k pairs 2 t and 2 t + 8 of one step.
#pragma unroll
        for (int n = 0; n < kSteps; n += 2) {
          uint32_t w[4];
          ldmatrix4(w, (tileK + keysLane) ^ (n << 4));
#pragma unroll
          for (int odd = 0; odd < 2; odd++) {
            const uint32_t low = w[2 * odd], high = w[2 * odd + 1];
            const uint32_t keys[4] = {halvesOfE4m3(low & 0xffff), halvesOfE4m3(high & 0xffff),
                                      halvesOfE4m3(low >> 16), halvesOfE4m3(high >> 16)};
#pragma unroll
            for (int h = 0; h < kHeadTiles; h++) {
              Half2<C>::mma(odd ? s2[h] : s[h], keys, q[h][n + odd][0], q[h][n + odd][1]);
            }
          }
        }
      } else {
#pragma unroll
        for (int n = 0; n < kSteps; n++) {
          uint32_t keys[4];
          ldmatrix4(keys, (tileK + keysLane) ^ (n << 5));
#pragma unroll
          for (int h = 0; h < kHeadTiles; h++) {
            Half2<C>::mma(n & 1 ? s2[h] : s[h], keys, q[h][n][0], q[h][n][1]);
          }
        }
      }
      const int token = (use.firstTile + use.tile) * kTileTokens;
      const int low = use.keyLow(a) - token, high = use.context - token;
      const bool edge = low > 0 || high < kTileTokens;
      float above[kHeadTiles][4];  // the reference
      bool renew = false;
#pragma unroll
      for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const int row = g + (i >> 1) * 8;
          s[h][i] += s2[h][i];
          if (edge && (row < low || row >= high)) s[h][i] = -INFINITY;
          above[h][i] = s[h][i] * a.scaleLog2 - reference[h][i & 1];
          renew = renew || above[h][i] > kReferenceSlack;
        }
      }
      // Always at an item's first tile, where the reference is -inf. Every tile holds a key that is
      // seen, so it is finite from then on.
      if (__any_sync(kAll, renew)) {
#pragma unroll
        for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
          for (int i = 0; i < 2; i++) {
            const float top = rowsMax(fmaxf(s[h][i], s[h][i + 2])) * a.scaleLog2;
            const float renewed = fmaxf(reference[h][i], top);
            const float keep = exp2Fast(reference[h][i] - renewed);
            reference[h][i] = renewed;
            sum[h][i] *= keep;
#pragma unroll
            for (int n = 0; n < kSteps; n++) {
              o[h][n][i] *= keep;
              o[h][n][i + 2] *= keep;
            }
            above[h][i] = s[h][i] * a.scaleLog2 - renewed;
            above[h][i + 2] = s[h][i + 2] * a.scaleLog2 - renewed;
          }
        }
      }
      uint32_t p[kHeadTiles][2];
#pragma unroll
      for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const float x = exp2Fast(above[h][2 * i]), y = exp2Fast(above[h][2 * i + 1]);
          sum[h][0] += x;
          sum[h][1] += y;
          // Keys become the k of the next product.
          p[h][i] = transposed8x8(Half2<C>::pack(x, y));
        }
      }
      if constexpr (kFp8) {
        // Transposed by pairs of columns; even ones are the first eight rows, odd ones the others.
#pragma unroll
        for (int n = 0; n < kSteps; n += 2) {
          uint32_t w[4];
          ldmatrix4Trans(w, (tileV + valuesLane) ^ (n << 4));
#pragma unroll
          for (int i = 0; i < 4; i++) w[i] = __byte_perm(w[i], 0, 0x3120);
#pragma unroll
          for (int odd = 0; odd < 2; odd++) {
            const uint32_t low = w[2 * odd], high = w[2 * odd + 1];  // keys 0-7 and 8-15
            const uint32_t values[4] = {halvesOfE4m3(low & 0xffff), halvesOfE4m3(low >> 16),
                                        halvesOfE4m3(high & 0xffff), halvesOfE4m3(high >> 16)};
#pragma unroll
            for (int h = 0; h < kHeadTiles; h++) {
              Half2<C>::mma(o[h][n + odd], values, p[h][0], p[h][1]);
            }
          }
        }
      } else {
#pragma unroll
        for (int n = 0; n < kSteps; n++) {
          uint32_t values[4];
          ldmatrix4Trans(values, (tileV + valuesLane) ^ (n << 5));
#pragma unroll
          for (int h = 0; h < kHeadTiles; h++) Half2<C>::mma(o[h][n], values, p[h][0], p[h][1]);
        }
      }
      stage = stage + 1 == kStages ? 0 : stage + 1;
    }

    // Two neighboring columns of each 16 to a thread; of 16 bits by an exchange with the thread that
    // has the columns beside.
    const bool odd = g & 1;
    const int firstColumn = kFp8 ? 2 * g : odd ? g + 7 : g;
#pragma unroll
    for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        sum[h][i] = rowsSum(sum[h][i]);
        if constexpr (!kFp8) {
#pragma unroll
          for (int n = 0; n < kSteps; n++) {
            const float other = __shfl_xor_sync(kAll, odd ? o[h][n][i] : o[h][n][i + 2], 4);
            (odd ? o[h][n][i] : o[h][n][i + 2]) = other;
          }
        }
      }
    }
    const int64_t outAt = use.row * a.outStride + firstHead * headDim;
    T* out = static_cast<T*>(a.out) + outAt;
    const bool whole = begun && ended;
    float* part = ended ? parts.endedOf(warp) : parts.goingOnOf(warp);
    if (!ended) __syncwarp();  // the last tile has been read, and none is on its way to the ring
#pragma unroll
    for (int h = 0; h < kHeadTiles; h++) {
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int row = h * kTileHeads + 2 * t + i;
        if (row >= rows) continue;
        const float inverse = 1.0f / sum[h][i];
#pragma unroll
        for (int n = 0; n < kSteps; n++) {
          const int column = n * 16 + firstColumn;
          const float x = o[h][n][i], y = o[h][n][i + 2];
          if (whole) {
            storePair(out + row * headDim, column, headDim, x * inverse, y * inverse);
          } else if (column < headStride) {
            *reinterpret_cast<float2*>(part + row * headStride + column) = make_float2(x, y);
          }
        }
        if (!whole && g == 0) {
          *reinterpret_cast<float2*>(part + a.passRows * headStride + 2 * row) =
              make_float2(reference[h][i], sum[h][i]);
        }
      }
    }
    if (!whole && lane == 0) {
      const int firstOfBlock = worker - warp;
      if (!ended && (begun || warp == 0)) {
        const int last = min(mine.w - firstOfBlock, kWarps - 1);
        cuts[warp] = {warp, last, begun ? worker : mine.z, mine.w, rows, outAt};
      } else if (ended && warp == 0) {
        cuts[kWarps] = {0, 0, mine.z, worker, rows, outAt};
      }
    }
    cut = cut || !whole;
    done += tiles;
    if (done == count) break;
    use.nextItem(a);
    if constexpr (kFresh) {
      __syncwarp();  // all have read the rotation before
      turns.loadRotation(a.fresh, use.context - 1, lane);
    }
  }
  return cut;
}

template <typename T, bool kFp8, int kDim, int kHeadTiles, int kWarps, int kStages, bool kFresh>
__device__ __forceinline__ void decode(const DecodeArgs& a) {
  constexpr int kElemBytes = kFp8 ? 1 : 2;  // of keys and values
  constexpr int kRingBytes = ringBytes<kDim, kStages>(kElemBytes);
  static_assert(kRingBytes >= partialFloats(kHeadTiles * kTileHeads, kDim) * 4, "a part fits a ring");
  extern __shared__ __align__(1024) unsigned char shared[];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int worker = blockIdx.x * kWarps + warp;
  const int4 mine = __ldg(reinterpret_cast<const int4*>(a.workers + worker));
  const int count = __ldg(&a.workers[worker + 1].begin) - mine.x;

  const int partFloats = partialFloats(a.passRows, a.headStride);
  const Parts<kWarps> parts = {shared, kRingBytes, reinterpret_cast<float*>(shared + kWarps * kRingBytes),
                               partFloats};
  constexpr int kFreshBytes = freshBytes<kDim>(kElemBytes);
  unsigned char* const freshAt =
      reinterpret_cast<unsigned char*>(parts.ended + kWarps * partFloats) + warp * kFreshBytes;
  const Turns<kDim> turns(freshAt);
  unsigned char* const newest = freshAt + Turns<kDim>::kBytes;  // a key and a value
  Cut* const cuts = reinterpret_cast<Cut*>(freshAt + (kWarps - warp) * kFreshBytes);
  if (lane == 0) cuts[warp].rows = 0;
  if (threadIdx.x == 0) cuts[kWarps].rows = 0;
  bool cut = false;
  if (count > 0) {
    cut = attend<T, kFp8, kDim, kHeadTiles, kWarps, kStages, kFresh>(a, mine, count, shared, parts, turns, newest,
                                                                     cuts);
  } else {
    waitForPrevious();
  }
  finishCuts<T, kDim, kWarps>(a, cuts, parts, warp, lane, cut);
}

}  // namespace millrace::cuda
