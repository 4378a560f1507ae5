// Attention of one query token a sequence, split over keys (flash-decoding, Dao et al. 2023), with
// the step's tiles dealt out about evenly to warps as in stream-K (Osama et al. 2023).
//
// Each warp has its own ring of tiles in shared memory and fills it over the borders of sequences,
// so that memory never waits for a softmax, a merge or another warp. The query heads of a KV head
// are the rows of one mma. A warp that did not have all keys of a row leaves a partial result; the
// last one to arrive merges them.
#include "attention_decode.cuh"
#include "attention_mma.cuh"
#include "e4m3.cuh"
#include "launch.h"

namespace millrace::cuda {

namespace {

constexpr unsigned kAll = 0xffffffffu;

// A place on the line of tiles.
struct Cursor {
  int entry, pass, tile;        // tile counts from the entry's first
  int tiles, firstTile;         // of the entry
  int seq, row, context;

  __device__ void enter(const DecodeArgs& a) {
    const int4 e = __ldg(reinterpret_cast<const int4*>(a.entries + entry));
    seq = e.y;
    row = e.z;
    context = e.w;
    firstTile = a.window > 0 && context > a.window ? (context - a.window) / kTileTokens : 0;
    tiles = (context + kTileTokens - 1) / kTileTokens - firstTile;
  }
  __device__ void start(const DecodeArgs& a, int firstEntry, int position, int passes) {
    entry = firstEntry;
    enter(a);
    const int within = position - __ldg(&a.entries[entry].tileStart) * passes;
    pass = within / tiles;
    tile = within - pass * tiles;
  }
  // Not past the end of the line: entries are read only if there is another tile.
  __device__ void next(const DecodeArgs& a, int passes) {
    if (++tile < tiles) return;
    tile = 0;
    if (++pass < passes) return;
    pass = 0;
    entry++;
    enter(a);
  }
  __device__ int keyLow(const DecodeArgs& a) const {
    return a.window > 0 && context > a.window ? context - a.window : 0;
  }
};

__device__ __forceinline__ float* partialAt(const DecodeArgs& a, int slot) {
  return a.partials + static_cast<int64_t>(slot) * partialFloats(a.passRows, a.headStride);
}

template <typename T>
__device__ __forceinline__ void storePair(T* row, int column, int width, float x, float y) {
  if (column < width) *reinterpret_cast<uint32_t*>(row + column) = Half2<T>::pack(x, y);
}

// Merges the partial results of workers first, first + stride, ... of the item that began at worker
// `first0`, and writes rows of the output, or the merged partial result into the first one's place.
// Slots: a worker's item that goes on with the next worker and began here has 2 w + 1, one that
// began before has 2 w.
template <typename T, int kDim>
__device__ void mergeParts(const DecodeArgs& a, int first0, int first, int stride, int count,
                           int rows, T* out, int lane) {
  constexpr int kUnroll = 8;
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
template <typename T, int kDim>
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
  mergeParts<T, kDim>(a, first, leader, 1, inGroup, rows, groups == 1 ? out : nullptr, lane);
  if (groups == 1) return;
  if (!lastToArrive(a.counters + 2 * (2 * first + 1) + 1, groups, lane)) return;
  mergeParts<T, kDim>(a, first, first, size, groups, rows, out, lane);
}

template <typename T, bool kFp8, int kDim, int kWarps, int kStages, int kBlocks>
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

  waitForPrevious();
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  const int worker = blockIdx.x * kWarps + warp;
  // begin, entry, first, last
  const int4 mine = __ldg(reinterpret_cast<const int4*>(a.workers + worker));
  const int count = __ldg(&a.workers[worker + 1].begin) - mine.x;
  if (count == 0) return;
  const int passes = a.kvHeads * a.passes;

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
  load.start(a, mine.y, mine.x, passes);
  Cursor use = load;
  int idsEntry = -1, idsAt = 0, id = 0;  // block ids of 32 tiles, one a lane

  auto produce = [&](int stage) {
    if (load.entry != idsEntry || load.tile < idsAt || load.tile >= idsAt + 32) {
      idsEntry = load.entry;
      // From the start of the entry where that serves its other heads too.
      idsAt = load.tiles <= 32 ? 0 : load.tile;
      const int tile = min(idsAt + lane, load.tiles - 1) + load.firstTile;
      id = __ldg(a.blockTables + __ldg(a.blockTableStart + load.seq) + tile / a.blockTiles);
    }
    const int block = __shfl_sync(kAll, id, load.tile - idsAt);
    const int tile = load.firstTile + load.tile;
    const int head = load.pass / a.passes;
    const int64_t at = (static_cast<int64_t>(block) * a.kvHeads + head) * a.blockTiles +
                       tile % a.blockTiles;
    const int64_t offset = at * (kTileTokens * rowBytes) + copyRow * rowBytes + copyChunk * 16;
    const char* keys = static_cast<const char*>(a.keys) + offset;
    const char* values = static_cast<const char*>(a.values) + offset;
    const uint32_t target = ring + stage * (2 * kTileBytes);
    const int low = load.keyLow(a) - tile * kTileTokens, high = load.context - tile * kTileTokens;
    const int step = kRowsAtOnce * rowBytes;
    if (!copies) return;
    if (low <= 0 && high >= kTileTokens) {
#pragma unroll
      for (int j = 0; j < kCopies; j++) {
        const uint32_t to = target + swizzled<kRowBytes>(copyRow + j * kRowsAtOnce, copyChunk);
        copyAsync16(to, keys + j * step);
        copyAsync16(to + kTileBytes, values + j * step);
      }
      return;
    }
    // Keys that are not seen may be anything in memory, and 0 times infinity is not 0.
#pragma unroll
    for (int j = 0; j < kCopies; j++) {
      const int row = copyRow + j * kRowsAtOnce;
      const bool wanted = row >= low && row < high;
      const uint32_t to = target + swizzled<kRowBytes>(row, copyChunk);
      copyAsync16Or0(to, keys + j * step, wanted);
      copyAsync16Or0(to + kTileBytes, values + j * step, wanted);
    }
  };

#pragma unroll
  for (int s = 0; s < kStages - 1; s++) {
    if (s < count) {
      produce(s);
      if (s + 1 < count) load.next(a, passes);
    }
    copyAsyncCommit();
  }

  const int g = lane >> 2, t = lane & 3;
  auto loadQ = [&](uint32_t(&into)[4], const T* base, int rows, int s) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      // Of e4m3 a thread has four neighboring columns of a key: queries follow.
      const int row = g + (i & 1) * 8;
      const int column = s * 16 + (kFp8 ? 4 * t + (i >> 1) * 2 : 2 * t + (i >> 1) * 8);
      into[i] = 0;
      if (row < rows && column < a.headDim) {
        into[i] = converted<T, C>(
            __ldg(reinterpret_cast<const uint32_t*>(base + row * a.headDim + column)));
      }
    }
  };
  const uint32_t keysLane = laneOfKeys<kRowBytes>(lane);
  const uint32_t valuesLane = laneOfValues<kRowBytes>(lane);
  // Queries in registers; of large heads they are read again for every tile, from the L1 cache.
  constexpr bool kKeepQ = kDim <= 128;
  uint32_t q[kKeepQ ? kSteps : 1][4];
  float o[2 * kSteps][4];
  float top[2], sum[2];
  int begunAt = 0, rows = 0;
  bool fresh = true;
  int stage = 0;

  for (int k = 0; k < count; k++) {
    copyAsyncWait<kStages - 2>();
    __syncwarp();
    if (k + kStages - 1 < count) {
      produce(stage == 0 ? kStages - 1 : stage - 1);
      if (k + kStages < count) load.next(a, passes);
    }
    copyAsyncCommit();

    const int kvHead = use.pass / a.passes;
    const int headInGroup = (use.pass - kvHead * a.passes) * kPassRows;
    const int head = kvHead * a.group + headInGroup;
    const T* queries = static_cast<const T*>(a.q) + use.row * a.qStride +
                       static_cast<int64_t>(head) * a.headDim;
    if (fresh) {
      fresh = false;
      begunAt = use.tile;
      rows = min(kPassRows, a.group - headInGroup);
      if (kKeepQ) {
#pragma unroll
        for (int s = 0; s < kSteps; s++) loadQ(q[kKeepQ ? s : 0], queries, rows, s);
      }
#pragma unroll
      for (int n = 0; n < 2 * kSteps; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;
      top[0] = top[1] = -INFINITY;
      sum[0] = sum[1] = 0;
    }

    // Scores of 16 keys, in two sums each to shorten the chain.
    const uint32_t tileK = ring + stage * (2 * kTileBytes), tileV = tileK + kTileBytes;
    float s[2][4] = {}, s2[2][4] = {};
    if constexpr (kFp8) {
      // A word of a key is the k pairs b0 and b1 of one step.
#pragma unroll
      for (int kk = 0; kk < kSteps; kk += 2) {
        uint32_t w[4];
        ldmatrix4(w, (tileK + valuesLane) ^ (kk << 4));
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
          if (!kKeepQ) loadQ(q[0], queries, rows, kk + odd);
          const uint32_t(&query)[4] = q[kKeepQ ? kk + odd : 0];
#pragma unroll
          for (int n = 0; n < 2; n++) {
            const uint32_t word = w[2 * odd + n];
            Half2<C>::mma(odd ? s2[n] : s[n], query, halvesOfE4m3(word & 0xffff),
                          halvesOfE4m3(word >> 16));
          }
        }
      }
    } else {
#pragma unroll
      for (int kk = 0; kk < kSteps; kk++) {
        uint32_t b[4];
        if (!kKeepQ) loadQ(q[0], queries, rows, kk);
        const uint32_t(&query)[4] = q[kKeepQ ? kk : 0];
        ldmatrix4(b, (tileK + keysLane) ^ (kk << 5));
        Half2<C>::mma(kk & 1 ? s2[0] : s[0], query, b[0], b[1]);
        Half2<C>::mma(kk & 1 ? s2[1] : s[1], query, b[2], b[3]);
      }
    }
    const int token = (use.firstTile + use.tile) * kTileTokens;
    const int low = use.keyLow(a) - token, high = use.context - token;
    const bool edge = low > 0 || high < kTileTokens;
    float newTop[2] = {top[0], top[1]};
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int column = n * 8 + 2 * t + (i & 1);
        s[n][i] = (s[n][i] + s2[n][i]) * a.scaleLog2;
        if (edge && (column < low || column >= high)) s[n][i] = -INFINITY;
        newTop[i >> 1] = fmaxf(newTop[i >> 1], s[n][i]);
      }
    }
    // Every tile holds a key that is seen, so the maxima are finite.
    newTop[0] = quadMax(newTop[0]);
    newTop[1] = quadMax(newTop[1]);
    const float keep[2] = {exp2Fast(top[0] - newTop[0]), exp2Fast(top[1] - newTop[1])};
    if (__any_sync(kAll, newTop[0] > top[0] || newTop[1] > top[1])) {
#pragma unroll
      for (int n = 0; n < 2 * kSteps; n++) {
        o[n][0] *= keep[0];
        o[n][1] *= keep[0];
        o[n][2] *= keep[1];
        o[n][3] *= keep[1];
      }
    }
    top[0] = newTop[0];
    top[1] = newTop[1];
    sum[0] *= keep[0];
    sum[1] *= keep[1];
#pragma unroll
    for (int n = 0; n < 2; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        s[n][i] = exp2Fast(s[n][i] - newTop[i >> 1]);
        sum[i >> 1] += s[n][i];
      }
    }
    const uint32_t p[4] = {Half2<C>::pack(s[0][0], s[0][1]), Half2<C>::pack(s[0][2], s[0][3]),
                           Half2<C>::pack(s[1][0], s[1][1]), Half2<C>::pack(s[1][2], s[1][3])};
    if constexpr (kFp8) {
      // Transposed by pairs of columns; even and odd ones go to two tiles of the output.
#pragma unroll
      for (int n = 0; n < kSteps; n += 2) {
        uint32_t w[4];
        ldmatrix4Trans(w, (tileV + valuesLane) ^ (n << 4));
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = __byte_perm(w[i], 0, 0x3120);
#pragma unroll
        for (int i = 0; i < 2; i++) {
          Half2<C>::mma(o[2 * (n + i)], p, halvesOfE4m3(w[2 * i] & 0xffff),
                        halvesOfE4m3(w[2 * i + 1] & 0xffff));
          Half2<C>::mma(o[2 * (n + i) + 1], p, halvesOfE4m3(w[2 * i] >> 16),
                        halvesOfE4m3(w[2 * i + 1] >> 16));
        }
      }
    } else {
#pragma unroll
      for (int n = 0; n < kSteps; n++) {
        uint32_t b[4];
        ldmatrix4Trans(b, (tileV + valuesLane) ^ (n << 5));
        Half2<C>::mma(o[2 * n], p, b[0], b[1]);
        Half2<C>::mma(o[2 * n + 1], p, b[2], b[3]);
      }
    }
    stage = stage + 1 == kStages ? 0 : stage + 1;

    const bool ended = use.tile + 1 == use.tiles;
    if (ended || k + 1 == count) {
      fresh = true;
      sum[0] = quadSum(sum[0]);
      sum[1] = quadSum(sum[1]);
      // Neighboring columns of the output, in 2 * kSteps pairs a row.
      const auto columnOf = [&](int n) {
        return kFp8 ? n / 2 * 16 + 4 * t + n % 2 * 2 : n * 8 + 2 * t;
      };
      const auto pairOf = [&](int n, int half) {
        if (kFp8) return make_float2(o[n & ~1][2 * half + (n & 1)], o[n | 1][2 * half + (n & 1)]);
        return make_float2(o[n][2 * half], o[n][2 * half + 1]);
      };
      T* out = static_cast<T*>(a.out) + use.row * a.outStride +
               static_cast<int64_t>(head) * a.headDim;
      if (ended && begunAt == 0) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int row = g + half * 8;
          if (row >= rows) continue;
          const float inverse = 1.0f / sum[half];
#pragma unroll
          for (int n = 0; n < 2 * kSteps; n++) {
            const float2 pair = pairOf(n, half);
            storePair(out + row * a.headDim, columnOf(n), a.headDim, pair.x * inverse,
                      pair.y * inverse);
          }
        }
      } else {
        float* part = partialAt(a, 2 * worker + (begunAt == 0 ? 1 : 0));
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int row = g + half * 8;
          if (row >= rows) continue;
#pragma unroll
          for (int n = 0; n < 2 * kSteps; n++) {
            const int column = columnOf(n);
            if (column < a.headStride) {
              *reinterpret_cast<float2*>(part + row * a.headStride + column) = pairOf(n, half);
            }
          }
          if (t == 0) {
            *reinterpret_cast<float2*>(part + a.passRows * a.headStride + 2 * row) =
                make_float2(top[half], sum[half]);
          }
        }
        arrive<T, kDim>(a, worker, begunAt == 0 ? worker : mine.z, ended ? worker : mine.w, rows,
                        out, lane);
      }
    }
    if (k + 1 < count) use.next(a, passes);
  }
}

// kBlocks is how many blocks an SM of Hopper has room for.
template <typename T, bool kFp8, int kDim, int kWarps, int kStages, int kBlocks>
DecodeKernel variantOf(const char* name) {
  return {decodeKernelOf<T, kFp8, kDim, kWarps, kStages, kBlocks>, kWarps,
          size_t{kWarps} * kStages * 2 * kTileTokens * kDim * (kFp8 ? 1 : 2), name};
}

template <typename T>
DecodeKernel pick(int dim, int variant) {
  // 96 KB a block: two blocks on an SM of Hopper, one where there are 100 KB.
  if (variant == 0) {
    if (dim == 64) return variantOf<T, false, 64, 4, 6, 2>("4 warps, 6 stages, 2 blocks");
    if (dim == 128) return variantOf<T, false, 128, 4, 3, 2>("4 warps, 3 stages, 2 blocks");
    return variantOf<T, false, 256, 2, 3, 2>("2 warps, 3 stages, 2 blocks");
  }
#ifdef MILLRACE_ATTENTION_EXPERIMENTS
  if (dim == 128) {
    if (variant == 1) return variantOf<T, false, 128, 4, 2, 3>("4 warps, 2 stages, 3 blocks");
    if (variant == 2) return variantOf<T, false, 128, 2, 3, 4>("2 warps, 3 stages, 4 blocks");
    if (variant == 3) return variantOf<T, false, 128, 2, 6, 2>("2 warps, 6 stages, 2 blocks");
  }
  if (dim == 64) {
    if (variant == 1) return variantOf<T, false, 64, 4, 4, 3>("4 warps, 4 stages, 3 blocks");
    if (variant == 2) return variantOf<T, false, 64, 4, 3, 3>("4 warps, 3 stages, 3 blocks");
    if (variant == 3) return variantOf<T, false, 64, 8, 6, 1>("8 warps, 6 stages, 1 block");
  }
#endif
  return {nullptr, 0, 0, nullptr};
}

// As many bytes are on their way as with 16 bits, in twice the stages.
template <typename T>
DecodeKernel pickFp8(int dim, int variant) {
  if (variant == 0) {
    if (dim == 64) return variantOf<T, true, 64, 4, 8, 3>("4 warps, 8 stages, 3 blocks");
    if (dim == 128) return variantOf<T, true, 128, 4, 6, 2>("4 warps, 6 stages, 2 blocks");
    return variantOf<T, true, 256, 2, 6, 2>("2 warps, 6 stages, 2 blocks");
  }
#ifdef MILLRACE_ATTENTION_EXPERIMENTS
  if (dim == 128 && variant == 1) {
    return variantOf<T, true, 128, 8, 6, 1>("8 warps, 6 stages, 1 block");
  }
  if (dim == 128 && variant == 2) {
    return variantOf<T, true, 128, 4, 4, 3>("4 warps, 4 stages, 3 blocks");
  }
  if (dim == 64 && variant == 1) {
    return variantOf<T, true, 64, 4, 8, 2>("4 warps, 8 stages, 2 blocks");
  }
  if (dim == 64 && variant == 2) {
    return variantOf<T, true, 64, 4, 6, 4>("4 warps, 6 stages, 4 blocks");
  }
#endif
  return {nullptr, 0, 0, nullptr};
}

}  // namespace

DecodeKernel decodeKernel(Elem elem, bool fp8, int dim, int variant) {
  if (elem == Elem::BF16) {
    return fp8 ? pickFp8<__nv_bfloat16>(dim, variant) : pick<__nv_bfloat16>(dim, variant);
  }
  return fp8 ? pickFp8<__half>(dim, variant) : pick<__half>(dim, variant);
}

}  // namespace millrace::cuda
