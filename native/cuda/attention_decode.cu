// Attention of one query token a sequence, split over keys (flash-decoding, Dao et al. 2023), with
// the step's tiles dealt out about evenly to warps as in stream-K (Osama et al. 2023).
//
// Each warp has its own ring of tiles in shared memory and fills it over the borders of sequences,
// so that memory never waits for a softmax, a merge or another warp. The keys of a tile, and then the
// columns of its values, are the 16 rows of an mma and the query heads of a KV head its 8 columns: most
// models have 2 to 8 of those, and as rows they would leave half of every product and sum unused. A
// warp that did not have all keys of a head leaves a partial result; the last one to arrive merges them.
#include "attention_decode.cuh"
#include "attention_mma.cuh"
#include "e4m3.cuh"
#include "launch.h"

namespace millrace::cuda {

namespace {

constexpr unsigned kAll = 0xffffffffu;
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

__device__ __forceinline__ float* partialAt(const DecodeArgs& a, int slot) {
  return a.partials + static_cast<int64_t>(slot) * partialFloats(a.passRows, a.headStride);
}

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

template <typename T>
__device__ __forceinline__ void storePair(T* row, int column, int width, float x, float y) {
  if (column < width) *reinterpret_cast<uint32_t*>(row + column) = Half2<T>::pack(x, y);
}

// Merges the partial results of workers first, first + stride, ... of the item that began at worker
// `first0`, and writes rows of the output, or the merged partial result into the first one's place.
// Slots: a worker's item that goes on with the next worker and began here has 2 w + 1, one that
// began before has 2 w. kUnroll parts are read at a time.
template <typename T, int kDim, int kUnroll>
__device__ void mergeParts(const DecodeArgs& a, int first0, int first, int stride, int count,
                           int rows, T* out, int lane) {
  const int mlAt = a.passRows * a.headStride;
  auto slotOf = [&](int i) {
    const int w = first + i * stride;
    return 2 * w + (w == first0 ? 1 : 0);
  };
  for (int r = 0; r < rows; r++) {
    float top = -INFINITY, sum = 0;
#pragma unroll
    for (int base = 0; base < kDim; base += 128) {
      const int column = base + lane * 4;
      const bool active = column < a.headStride;
      float4 acc = make_float4(0, 0, 0, 0);
      top = -INFINITY;
      sum = 0;
      for (int i0 = 0; i0 < count; i0 += kUnroll) {
        float2 ml[kUnroll];
        float4 v[kUnroll];
        float newTop = top;
#pragma unroll
        for (int u = 0; u < kUnroll; u++) {
          ml[u] = make_float2(-INFINITY, 0);
          v[u] = make_float4(0, 0, 0, 0);
          if (i0 + u < count) {
            const float* part = partialAt(a, slotOf(i0 + u));
            ml[u] = __ldcg(reinterpret_cast<const float2*>(part + mlAt + 2 * r));
            if (active) {
              v[u] = __ldcg(reinterpret_cast<const float4*>(part + r * a.headStride + column));
            }
          }
        }
#pragma unroll
        for (int u = 0; u < kUnroll; u++) newTop = fmaxf(newTop, ml[u].x);
        const float ref = finiteOr0(newTop);
        const float keep = exp2Fast(top - ref);
        acc.x *= keep, acc.y *= keep, acc.z *= keep, acc.w *= keep;
        sum *= keep;
#pragma unroll
        for (int u = 0; u < kUnroll; u++) {
          const float weight = exp2Fast(ml[u].x - ref);
          acc.x += weight * v[u].x;
          acc.y += weight * v[u].y;
          acc.z += weight * v[u].z;
          acc.w += weight * v[u].w;
          sum += weight * ml[u].y;
        }
        top = newTop;
      }
      if (!active) continue;
      if (out != nullptr) {
        const float inverse = 1.0f / sum;
        T* row = out + static_cast<int64_t>(r) * a.headDim;
        storePair(row, column, a.headDim, acc.x * inverse, acc.y * inverse);
        storePair(row, column + 2, a.headDim, acc.z * inverse, acc.w * inverse);
      } else {
        float* part = partialAt(a, slotOf(0));
        *reinterpret_cast<float4*>(part + r * a.headStride + column) = acc;
      }
    }
    // All lanes have read the first slot's maximum and sum before they are replaced.
    __syncwarp();
    if (out == nullptr && lane == 0) {
      *reinterpret_cast<float2*>(partialAt(a, slotOf(0)) + mlAt + 2 * r) = make_float2(top, sum);
    }
  }
}

// True for the last of `count` warps that come here; its counter is 0 again then.
__device__ bool lastToArrive(int* counter, int count, int lane) {
  __threadfence();
  __syncwarp();
  int last = 0;
  if (lane == 0) {
    last = atomicAdd(counter, 1) == count - 1;
    if (last) *counter = 0;
  }
  last = __shfl_sync(kAll, last, 0);
  if (last) __threadfence();
  return last != 0;
}

// After a worker has stored its partial result of an item that workers first .. last share. Few
// parts are merged at once; many in groups first, so that no warp reads more than about 2 sqrt(n).
template <typename T, int kDim, int kUnroll>
__device__ void arrive(const DecodeArgs& a, int worker, int first, int last, int rows, T* out,
                       int lane) {
  const int parts = last - first + 1;
  const int size = parts <= 8 ? parts : static_cast<int>(ceilf(sqrtf(static_cast<float>(parts))));
  const int groups = (parts + size - 1) / size;
  const int group = (worker - first) / size;
  const int leader = first + group * size;
  const int inGroup = min(size, parts - group * size);
  // Counters by leader; one worker may lead in the item that it ends and in the one that it begins.
  const int counter = 2 * leader + (leader == first ? 1 : 0);
  if (!lastToArrive(a.counters + 2 * counter, inGroup, lane)) return;
  mergeParts<T, kDim, kUnroll>(a, first, leader, 1, inGroup, rows, groups == 1 ? out : nullptr, lane);
  if (groups == 1) return;
  if (!lastToArrive(a.counters + 2 * (2 * first + 1) + 1, groups, lane)) return;
  mergeParts<T, kDim, kUnroll>(a, first, first, size, groups, rows, out, lane);
}

// kHeadTiles times 8 query heads are computed at a time.
template <typename T, bool kFp8, int kDim, int kHeadTiles, int kWarps, int kStages, int kBlocks>
__global__ __launch_bounds__(kWarps * 32, kBlocks) void decodeKernelOf(DecodeArgs a) {
  using C = typename ComputeOf<T, kFp8>::Type;
  constexpr int kElemBytes = kFp8 ? 1 : 2;  // of keys and values
  constexpr int kRowBytes = kDim * kElemBytes;
  constexpr int kTileBytes = kTileTokens * kRowBytes;
  constexpr int kSteps = kDim / 16;
  constexpr int kLaneChunks = kRowBytes / 16;                      // of a row
  constexpr int kRowsAtOnce = kLaneChunks >= 32 ? 1 : 32 / kLaneChunks;
  constexpr int kCopies = kTileTokens / kRowsAtOnce;
  static_assert(kLaneChunks <= 32, "a row of a tile is copied by one warp instruction");
  extern __shared__ __align__(1024) unsigned char shared[];

  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int worker = blockIdx.x * kWarps + warp;
  // begin, entry, first, last
  const int4 mine = __ldg(reinterpret_cast<const int4*>(a.workers + worker));
  const int count = __ldg(&a.workers[worker + 1].begin) - mine.x;
  if (count == 0) {
    waitForPrevious();
    return;
  }

  const uint32_t ring = static_cast<uint32_t>(__cvta_generic_to_shared(shared)) +
                        warp * (kStages * 2 * kTileBytes);
  const int copyChunk = lane % kLaneChunks, copyRow = lane / kLaneChunks;
  const int rowBytes = a.headStride * kElemBytes;  // in memory
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
    const int64_t offset = static_cast<int64_t>(at) * (kTileTokens * rowBytes) +
                           (copyRow * rowBytes + copyChunk * 16);
    const char* keys = static_cast<const char*>(a.keys) + offset;
    const char* values = static_cast<const char*>(a.values) + offset;
    const uint32_t target = ring + stage * (2 * kTileBytes);
    const int token = (load.firstTile + load.tile) * kTileTokens;
    const int low = load.keyLow(a) - token, high = load.context - token;
    if (!copies) return;
    const auto copyAll = [&](int step) {
#pragma unroll
      for (int j = 0; j < kCopies; j++) {
        const uint32_t to = target + swizzled<kRowBytes>(copyRow + j * kRowsAtOnce, copyChunk);
        copyAsync16(to, keys + j * step);
        copyAsync16(to + kTileBytes, values + j * step);
      }
    };
    if (low <= 0 && high >= kTileTokens) {
      // Most heads fill the rows, and a step that is known is part of the instruction.
      if (rowBytes == kRowBytes) copyAll(kRowsAtOnce * kRowBytes);
      else copyAll(kRowsAtOnce * rowBytes);
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

  // The ring is filled before the kernel ahead has ended, up to the first tile that it may write to.
  // That one stores the step's queries and the newest key and value of each sequence, in the last tile
  // of an entry. All else was there before it began: the plan and the block tables are copied ahead of
  // a step's first kernel, older keys come from earlier steps (blocks are shared with other sequences
  // only when the step that fills them has ended), and a launch overlaps no kernel but the one ahead,
  // which lets it in after its own wait.
  bool waited = false;
#pragma unroll 1
  for (int s = 0; s < kStages - 1; s++) {
    if (!waited && (loaded == count || load.newest())) {
      waitForPrevious();
      waited = true;
    }
    fill(s);
  }
  if (!waited) waitForPrevious();

  const int g = lane >> 2, t = lane & 3;
  // Both are the first operand here, of which the names say the second: keys are read by the map of
  // queries, and transposed values by that of keys, but of e4m3 in the order of its two words a step.
  const uint32_t keysLane = laneOfValues<kRowBytes>(lane);
  const uint32_t valuesLane = kFp8 ? keysLane : laneOfKeys<kRowBytes>(lane);
  int stage = 0;
  for (int done = 0; done < count;) {
    // An item, or as much of it as the stretch has.
    const int tiles = min(use.tiles - use.tile, count - done);
    const bool begun = use.tile == 0, ended = use.tile + tiles == use.tiles;
    const int64_t firstHead = use.kvHead * a.group + use.pass * kPassRows;
    const int rows = min(kHeadTiles * kTileHeads, a.group - use.pass * kPassRows);
    const T* queries = static_cast<const T*>(a.q) + use.row * a.qStride + firstHead * a.headDim;
    // A thread's columns of all products are the heads 2 t and 2 t + 1 (of 8). Its rows of the output
    // are columns g and g + 8 of each 16; of e4m3, 2 g and 2 g + 1.
    uint32_t q[kHeadTiles][kSteps][2];
    float o[kHeadTiles][kSteps][4] = {};
    float reference[kHeadTiles][2], sum[kHeadTiles][2] = {};
#pragma unroll
    for (int h = 0; h < kHeadTiles; h++) {
      reference[h][0] = reference[h][1] = -INFINITY;
#pragma unroll
      for (int n = 0; n < kSteps; n++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
          // Of e4m3 a thread has four neighboring columns of a key: queries follow.
          const int row = h * kTileHeads + g;
          const int column = n * 16 + (kFp8 ? 4 * t + 2 * i : 2 * t + 8 * i);
          q[h][n][i] = 0;
          // Not by the read-only path: the kernel ahead may write them while this one runs.
          if (row < rows && column < a.headDim) {
            q[h][n][i] = converted<T, C>(
                *reinterpret_cast<const uint32_t*>(queries + row * a.headDim + column));
          }
        }
      }
    }

    for (const int end = use.tile + tiles; use.tile < end; use.tile++) {
      copyAsyncWait<kStages - 2>();
      __syncwarp();
      fill(stage == 0 ? kStages - 1 : stage - 1);

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
    T* out = static_cast<T*>(a.out) + use.row * a.outStride + firstHead * a.headDim;
    const bool whole = begun && ended;
    float* part = partialAt(a, 2 * worker + (begun ? 1 : 0));
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
            storePair(out + row * a.headDim, column, a.headDim, x * inverse, y * inverse);
          } else if (column < a.headStride) {
            *reinterpret_cast<float2*>(part + row * a.headStride + column) = make_float2(x, y);
          }
        }
        if (!whole && g == 0) {
          *reinterpret_cast<float2*>(part + a.passRows * a.headStride + 2 * row) =
              make_float2(reference[h][i], sum[h][i]);
        }
      }
    }
    if (!whole) {
      // As the registers of so many warps allow.
      constexpr int kUnroll = kWarps * kBlocks > 12 ? 4 : 8;
      arrive<T, kDim, kUnroll>(a, worker, begun ? worker : mine.z, ended ? worker : mine.w, rows, out,
                               lane);
    }
    done += tiles;
    if (done < count) use.nextItem(a);
  }
}

// kBlocks is how many blocks an SM of Hopper has room for.
template <typename T, bool kFp8, int kDim, int kHeadTiles, int kWarps, int kStages, int kBlocks>
DecodeKernel variantOf(const char* name) {
  return {decodeKernelOf<T, kFp8, kDim, kHeadTiles, kWarps, kStages, kBlocks>, kWarps,
          size_t{kWarps} * kStages * 2 * kTileTokens * kDim * (kFp8 ? 1 : 2), name};
}

// An SM of Hopper has 227 KB for tiles, of which a block takes at most 96: that fits the 100 KB of
// other GPUs.
template <typename T, int kHeadTiles>
DecodeKernel pick(int dim, int variant) {
  if (variant == 0) {
    if (dim == 64) {
      return variantOf<T, false, 64, kHeadTiles, 4, 6, 2>("4 warps, 6 stages, 2 blocks");
    }
    if (dim == 128) {
      return variantOf<T, false, 128, kHeadTiles, 4, 3, 2>("4 warps, 3 stages, 2 blocks");
    }
    return variantOf<T, false, 256, kHeadTiles, 2, 3, 2>("2 warps, 3 stages, 2 blocks");
  }
#ifdef MILLRACE_ATTENTION_EXPERIMENTS
  if constexpr (kHeadTiles == 1) {
    if (dim == 128) {
      if (variant == 1) return variantOf<T, false, 128, 1, 3, 3, 3>("3 warps, 3 stages, 3 blocks");
      if (variant == 2) return variantOf<T, false, 128, 1, 4, 2, 3>("4 warps, 2 stages, 3 blocks");
    }
    if (dim == 64) {
      if (variant == 1) return variantOf<T, false, 64, 1, 4, 4, 3>("4 warps, 4 stages, 3 blocks");
      if (variant == 2) return variantOf<T, false, 64, 1, 4, 3, 4>("4 warps, 3 stages, 4 blocks");
    }
  }
#endif
  return {nullptr, 0, 0, nullptr};
}

// A tile has half the bytes at the same latency: more warps to hide it, not more stages.
template <typename T, int kHeadTiles>
DecodeKernel pickFp8(int dim, int variant) {
  if (variant == 0) {
    // Twice the sums do not fit the registers of 16 warps.
    if constexpr (kHeadTiles == 1) {
      if (dim == 64) return variantOf<T, true, 64, 1, 4, 6, 4>("4 warps, 6 stages, 4 blocks");
      if (dim == 128) return variantOf<T, true, 128, 1, 4, 3, 4>("4 warps, 3 stages, 4 blocks");
    } else {
      if (dim == 64) return variantOf<T, true, 64, 2, 4, 8, 3>("4 warps, 8 stages, 3 blocks");
      if (dim == 128) return variantOf<T, true, 128, 2, 4, 6, 2>("4 warps, 6 stages, 2 blocks");
    }
    return variantOf<T, true, 256, kHeadTiles, 4, 3, 2>("4 warps, 3 stages, 2 blocks");
  }
#ifdef MILLRACE_ATTENTION_EXPERIMENTS
  if constexpr (kHeadTiles == 1) {
    if (dim == 128) {
      if (variant == 1) return variantOf<T, true, 128, 1, 4, 4, 3>("4 warps, 4 stages, 3 blocks");
      if (variant == 2) return variantOf<T, true, 128, 1, 4, 6, 2>("4 warps, 6 stages, 2 blocks");
    }
    if (dim == 64) {
      if (variant == 1) return variantOf<T, true, 64, 1, 4, 8, 3>("4 warps, 8 stages, 3 blocks");
      if (variant == 2) return variantOf<T, true, 64, 1, 4, 4, 4>("4 warps, 4 stages, 4 blocks");
    }
  }
#endif
  return {nullptr, 0, 0, nullptr};
}

template <typename T, int kHeadTiles>
DecodeKernel pickOf(bool fp8, int dim, int variant) {
  return fp8 ? pickFp8<T, kHeadTiles>(dim, variant) : pick<T, kHeadTiles>(dim, variant);
}

}  // namespace

DecodeKernel decodeKernel(const AttentionShape& shape, int dim, int variant) {
  static_assert(kPassRows == 2 * kTileHeads, "passes have one or two tiles of heads");
  const bool one = passRowsOf(shape) <= kTileHeads;
  if (shape.elem == Elem::BF16) {
    return one ? pickOf<__nv_bfloat16, 1>(shape.fp8, dim, variant)
               : pickOf<__nv_bfloat16, 2>(shape.fp8, dim, variant);
  }
  return one ? pickOf<__half, 1>(shape.fp8, dim, variant)
             : pickOf<__half, 2>(shape.fp8, dim, variant);
}

}  // namespace millrace::cuda
