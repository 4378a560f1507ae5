// Attention of chunks of a prompt over paged keys, after FlashAttention-2 (Dao 2023): a block takes
// a tile of query rows and walks over the keys that they see, with a softmax that is corrected as it
// goes. A row is a token and a query head of one KV head (attention_plan.h).
#include <algorithm>

#include "attention_mma.cuh"
#include "attention_parts.cuh"
#include "attention_prefill.cuh"
#include "e4m3.cuh"
#include "launch.h"

namespace millrace::cuda {

namespace {

// kRowTiles: tiles of 16 rows a warp. Two of them use each loaded key fragment twice, but leave no
// registers for the queries, which then stay in shared memory.
// Keys and values in e4m3 are copied to a staging tile and converted to float16 from there.
template <typename T, bool kFp8, int kDim, int kWarps, int kRowTiles, int kKeys, int kBlocks>
__global__ __launch_bounds__(kWarps * 32, kBlocks) void prefillKernelOf(PrefillArgs a) {
  using C = typename ComputeOf<T, kFp8>::Type;
  constexpr int kThreads = kWarps * 32;
  constexpr int kRows = kWarps * kRowTiles * 16;
  constexpr int kSteps = kDim / 16, kKeySteps = kKeys / 16;
  constexpr int kRowBytes = kDim * 2, kTileBytes = kKeys * kRowBytes;
  constexpr int kTiles = kFp8 ? 2 : 4;  // of keys and of values, in 16 bits
  constexpr int kChunks = kDim / 8;                // of a row
  constexpr int kRowsAtOnce = kThreads / kChunks;  // that the block copies with one instruction
  constexpr bool kKeepQ = kRowTiles == 1 && kDim <= 128;
  constexpr int kChunks8 = kDim / 16, kRowsAtOnce8 = kThreads / kChunks8;  // likewise of e4m3
  static_assert(kRowsAtOnce8 <= 32 && kKeys % kRowsAtOnce8 == 0, "whole rows are copied");
  static_assert(kThreads % kChunks == 0 && kKeys % kRowsAtOnce == 0, "whole rows are copied");
  static_assert(kRowsAtOnce <= 16, "a copy instruction stays within 16 tokens of a block");
  extern __shared__ __align__(1024) unsigned char shared[];

  waitForPrevious();
  const int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
  const int g = lane >> 2, t = lane & 3;
  const int kvHead = blockIdx.x;
  const PrefillItem item = a.items[blockIdx.y];
  const int firstRowOfQ = __ldg(a.queryStart + item.seq);
  const int length = __ldg(a.queryStart + item.seq + 1) - firstRowOfQ;
  const int firstPosition = __ldg(a.contextLens + item.seq) - length;
  const int* table = a.blockTables + __ldg(a.blockTableStart + item.seq);
  const int rows = min(kRows, length * a.group - item.rowBegin);  // of this tile
  const int tiles = (item.keyEnd - item.keyBegin + kKeys - 1) / kKeys;

  // The first key that any row sees; memory before it may be another sequence's by now.
  const int lowKey =
      a.window > 0 ? firstPosition + item.rowBegin / a.group - a.window + 1 : 0;

  const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const uint32_t sharedQ = base + kTiles * kTileBytes;
  const uint32_t staging = sharedQ + (kKeepQ ? 0 : kRows * kRowBytes);
  const int copyChunk = thread % kChunks, copyRow = thread / kChunks;
  const bool copies = copyChunk * 8 < a.headStride;
  if (!copies) {
    for (int row = copyRow; row < kTiles * kKeys; row += kRowsAtOnce) {
      asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(
                       base + swizzled<kRowBytes>(row, copyChunk)),
                   "r"(0)
                   : "memory");
    }
  }

  int ids[kKeySteps];
  const int lastTile = (item.keyEnd - 1) >> 4;
  auto loadIds = [&](int tile) {
#pragma unroll
    for (int i = 0; i < kKeySteps; i++) {
      const int at = min((item.keyBegin + tile * kKeys) / 16 + i, lastTile);
      ids[i] = __ldg(table + at / a.blockTiles);
    }
  };
  auto copyTile = [&](int tile) {
    if (!copies) return;
    const int key0 = item.keyBegin + tile * kKeys;
    const uint32_t target = base + (tile & 1) * (2 * kTileBytes);
#pragma unroll
    for (int i = 0; i < kKeySteps; i++) {
      const int at = min(key0 / 16 + i, lastTile);
      const int64_t block = (static_cast<int64_t>(ids[i]) * a.kvHeads + kvHead) * a.blockTiles +
                            at % a.blockTiles;
      const int64_t offset = block * (16 * a.headStride) + copyChunk * 8;
      const T* keys = static_cast<const T*>(a.keys) + offset;
      const T* values = static_cast<const T*>(a.values) + offset;
#pragma unroll
      for (int j = 0; j < 16; j += kRowsAtOnce) {
        const int row = copyRow + j;
        // Memory of keys that are not seen may hold anything, and 0 times infinity is not 0.
        const int key = key0 + i * 16 + row;
        const bool wanted = key >= lowKey && key < item.keyEnd;
        const uint32_t to = target + swizzled<kRowBytes>(i * 16 + row, copyChunk);
        copyAsync16Or0(to, keys + row * a.headStride, wanted);
        copyAsync16Or0(to + kTileBytes, values + row * a.headStride, wanted);
      }
    }
  };

  // A thread converts what it has copied.
  const int row8 = thread / kChunks8, chunk8 = thread % kChunks8;
  const bool copies8 = chunk8 * 16 < a.headStride;
  auto copyTile8 = [&](int tile) {
    if (!copies8) return;
    const int key0 = item.keyBegin + tile * kKeys;
#pragma unroll
    for (int j = 0; j < kKeys; j += kRowsAtOnce8) {
      const int row = row8 + j, key = key0 + row;
      const int id = kRowsAtOnce8 > 16 && row8 >= 16 ? ids[min(j / 16 + 1, kKeySteps - 1)]
                                                     : ids[j / 16];
      const int64_t block = (static_cast<int64_t>(id) * a.kvHeads + kvHead) * a.blockTiles +
                            min(key / 16, lastTile) % a.blockTiles;
      const int64_t offset = (block * 16 + row % 16) * a.headStride + chunk8 * 16;
      const bool wanted = key >= lowKey && key < item.keyEnd;
      const uint32_t to = staging + row * kDim + chunk8 * 16;
      copyAsync16Or0(to, static_cast<const char*>(a.keys) + offset, wanted);
      copyAsync16Or0(to + kKeys * kDim, static_cast<const char*>(a.values) + offset, wanted);
    }
  };
  auto convertTile8 = [&] {
    if (!copies8) return;
#pragma unroll
    for (int j = 0; j < kKeys; j += kRowsAtOnce8) {
      const int row = row8 + j;
#pragma unroll
      for (int values = 0; values < 2; values++) {
        uint32_t w[4];
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                     : "r"(staging + values * (kKeys * kDim) + row * kDim + chunk8 * 16)
                     : "memory");
#pragma unroll
        for (int i = 0; i < 2; i++) {
          asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(
                           base + values * kTileBytes +
                           swizzled<kRowBytes>(row, 2 * chunk8 + i)),
                       "r"(halvesOfE4m3(w[2 * i] & 0xffff)), "r"(halvesOfE4m3(w[2 * i] >> 16)),
                       "r"(halvesOfE4m3(w[2 * i + 1] & 0xffff)),
                       "r"(halvesOfE4m3(w[2 * i + 1] >> 16))
                       : "memory");
        }
      }
    }
  };

  loadIds(0);
  if constexpr (kFp8) copyTile8(0);
  else copyTile(0);
  copyAsyncCommit();
  if (tiles > 1) loadIds(1);

  // Rows are 4-byte aligned at least: head sizes are even.
  auto rowOfQ = [&](int row) {
    const int r = item.rowBegin + row, token = r / a.group;
    return static_cast<const T*>(a.q) + (firstRowOfQ + token) * a.qStride +
           (static_cast<int64_t>(kvHead) * a.group + r - token * a.group) * a.headDim;
  };
  const int warpRow = warp * kRowTiles * 16;
  uint32_t q[kKeepQ ? kSteps : 1][4];
  if (kKeepQ) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = warpRow + g + half * 8;
      const T* from = rowOfQ(min(row, rows - 1));
#pragma unroll
      for (int s = 0; s < kSteps; s++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
          const int column = s * 16 + i * 8 + 2 * t;
          q[kKeepQ ? s : 0][half + 2 * i] =
              row < rows && column < a.headDim
                  ? converted<T, C>(__ldg(reinterpret_cast<const uint32_t*>(from + column)))
                  : 0u;
        }
      }
    }
  } else {
    const bool wide =
        ((reinterpret_cast<uintptr_t>(a.q) | (a.qStride * 2) | (a.headDim * 2)) & 15) == 0;
    for (int row = copyRow; row < kRows; row += kRowsAtOnce) {
      const T* from = rowOfQ(min(row, rows - 1)) + copyChunk * 8;
      uint32_t words[4] = {0, 0, 0, 0};
      if (row < rows) {
        if (wide) {
          if (copyChunk * 8 < a.headDim) {
            const uint4 v = __ldg(reinterpret_cast<const uint4*>(from));
            words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
          }
        } else {
#pragma unroll
          for (int i = 0; i < 4; i++) {
            if (copyChunk * 8 + 2 * i < a.headDim) {
              words[i] = __ldg(reinterpret_cast<const uint32_t*>(from) + i);
            }
          }
        }
      }
#pragma unroll
      for (int i = 0; i < 4; i++) words[i] = converted<T, C>(words[i]);
      asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(
                       sharedQ + swizzled<kRowBytes>(row, copyChunk)),
                   "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3])
                   : "memory");
    }
  }

  float o[kRowTiles][2 * kSteps][4];
  float top[kRowTiles][2], sum[kRowTiles][2];
  int position[kRowTiles][2];  // of the rows g and g + 8; rows past the end see what the last sees
#pragma unroll
  for (int m = 0; m < kRowTiles; m++) {
#pragma unroll
    for (int n = 0; n < 2 * kSteps; n++) o[m][n][0] = o[m][n][1] = o[m][n][2] = o[m][n][3] = 0;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      top[m][half] = -INFINITY;
      sum[m][half] = 0;
      const int row = min(warpRow + m * 16 + g + half * 8, rows - 1);
      position[m][half] = firstPosition + (item.rowBegin + row) / a.group;
    }
  }
  const int lowPosition = firstPosition + (item.rowBegin + min(warpRow, rows - 1)) / a.group;
  const int highPosition =
      firstPosition + (item.rowBegin + min(warpRow + kRowTiles * 16, rows) - 1) / a.group;
  const bool idle = warpRow >= rows;
  const uint32_t keysLane = laneOfKeys<kRowBytes>(lane), valuesLane = laneOfValues<kRowBytes>(lane);

  for (int tile = 0; tile < tiles; tile++) {
    copyAsyncWait<0>();
    __syncthreads();  // the tile is there for all, and all are done with the other buffer
    if constexpr (kFp8) convertTile8();
    if (tile + 1 < tiles) {
      if constexpr (kFp8) copyTile8(tile + 1);
      else copyTile(tile + 1);
      copyAsyncCommit();
      if (tile + 2 < tiles) loadIds(tile + 2);
    }
    if constexpr (kFp8) __syncthreads();  // the tile is converted
    const int key0 = item.keyBegin + tile * kKeys;
    // Nothing that this warp's rows see.
    if (idle || key0 > highPosition ||
        (a.window > 0 && key0 + kKeys - 1 <= lowPosition - a.window)) {
      continue;
    }
    const uint32_t tileK = base + (kFp8 ? 0 : tile & 1) * (2 * kTileBytes), tileV = tileK + kTileBytes;

    float s[kRowTiles][2 * kKeySteps][4] = {};
#pragma unroll
    for (int kk = 0; kk < kSteps; kk++) {
      uint32_t fromShared[kRowTiles][4];
      if (!kKeepQ) {
#pragma unroll
        for (int m = 0; m < kRowTiles; m++) {
          ldmatrix4(fromShared[m],
                    (sharedQ + (warpRow + m * 16) * (kDim * 2) + valuesLane) ^ (kk << 5));
        }
      }
#pragma unroll
      for (int n = 0; n < kKeySteps; n++) {
        uint32_t b[4];
        ldmatrix4(b, (tileK + n * (16 * kDim * 2) + keysLane) ^ (kk << 5));
#pragma unroll
        for (int m = 0; m < kRowTiles; m++) {
          const uint32_t(&query)[4] = kKeepQ ? q[kKeepQ ? kk : 0] : fromShared[m];
          Half2<C>::mma(s[m][2 * n], query, b[0], b[1]);
          Half2<C>::mma(s[m][2 * n + 1], query, b[2], b[3]);
        }
      }
    }

    if (key0 + kKeys - 1 > lowPosition || (a.window > 0 && key0 <= highPosition - a.window)) {
#pragma unroll
      for (int m = 0; m < kRowTiles; m++) {
#pragma unroll
        for (int n = 0; n < 2 * kKeySteps; n++) {
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const int key = key0 + n * 8 + 2 * t + (i & 1), at = position[m][i >> 1];
            if (key > at || (a.window > 0 && key <= at - a.window)) s[m][n][i] = -INFINITY;
          }
        }
      }
    }

#pragma unroll
    for (int m = 0; m < kRowTiles; m++) {
      float keep[2], offset[2];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float newTop = top[m][half];
#pragma unroll
        for (int n = 0; n < 2 * kKeySteps; n++) {
          newTop = fmaxf(newTop, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
        }
        newTop = quadMax(newTop);
        offset[half] = finiteOr0(newTop) * a.scaleLog2;
        keep[half] = exp2Fast(top[m][half] * a.scaleLog2 - offset[half]);
        top[m][half] = newTop;
        float part = 0;
#pragma unroll
        for (int n = 0; n < 2 * kKeySteps; n++) {
#pragma unroll
          for (int i = 2 * half; i < 2 * half + 2; i++) {
            s[m][n][i] = exp2Fast(fmaf(s[m][n][i], a.scaleLog2, -offset[half]));
            part += s[m][n][i];
          }
        }
        sum[m][half] = sum[m][half] * keep[half] + part;
      }
      if (__any_sync(kAll, keep[0] != 1.0f || keep[1] != 1.0f)) {
#pragma unroll
        for (int n = 0; n < 2 * kSteps; n++) {
          o[m][n][0] *= keep[0];
          o[m][n][1] *= keep[0];
          o[m][n][2] *= keep[1];
          o[m][n][3] *= keep[1];
        }
      }
    }

#pragma unroll
    for (int kk = 0; kk < kKeySteps; kk++) {
      uint32_t p[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; m++) {
        p[m][0] = Half2<C>::pack(s[m][2 * kk][0], s[m][2 * kk][1]);
        p[m][1] = Half2<C>::pack(s[m][2 * kk][2], s[m][2 * kk][3]);
        p[m][2] = Half2<C>::pack(s[m][2 * kk + 1][0], s[m][2 * kk + 1][1]);
        p[m][3] = Half2<C>::pack(s[m][2 * kk + 1][2], s[m][2 * kk + 1][3]);
      }
#pragma unroll
      for (int n = 0; n < kSteps; n++) {
        uint32_t b[4];
        ldmatrix4Trans(b, (tileV + kk * (16 * kDim * 2) + valuesLane) ^ (n << 5));
#pragma unroll
        for (int m = 0; m < kRowTiles; m++) {
          Half2<C>::mma(o[m][2 * n], p[m], b[0], b[1]);
          Half2<C>::mma(o[m][2 * n + 1], p[m], b[2], b[3]);
        }
      }
    }
  }

  auto rowOfOut = [&](int row) {
    const int r = item.rowBegin + row, token = r / a.group;
    return static_cast<T*>(a.out) + (firstRowOfQ + token) * a.outStride +
           (static_cast<int64_t>(kvHead) * a.group + r - token * a.group) * a.headDim;
  };
  const PrefillParts<kRows> parts(a, item.slot, kvHead);
#pragma unroll
  for (int m = 0; m < kRowTiles; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float total = quadSum(sum[m][half]);
      const int row = warpRow + m * 16 + g + half * 8;
      if (row >= rows) continue;
      if (item.parts == 1) {
        const float inverse = 1.0f / total;
        T* to = rowOfOut(row);
#pragma unroll
        for (int n = 0; n < 2 * kSteps; n++) {
          const int column = n * 8 + 2 * t;
          if (column < a.headDim) {
            *reinterpret_cast<uint32_t*>(to + column) =
                Half2<T>::pack(o[m][n][2 * half] * inverse, o[m][n][2 * half + 1] * inverse);
          }
        }
      } else {
        float* to = parts.sumsOf(item.part, row);
#pragma unroll
        for (int n = 0; n < 2 * kSteps; n++) {
          const int column = n * 8 + 2 * t;
          if (column < a.headStride) {
            *reinterpret_cast<float2*>(to + column) =
                make_float2(o[m][n][2 * half], o[m][n][2 * half + 1]);
          }
        }
        if (t == 0) {
          *parts.weightOf(item.part, row) = make_float2(top[m][half] * a.scaleLog2, total);
        }
      }
    }
  }
  if (item.parts == 1) return;

  __shared__ int isLast;
  __threadfence();
  __syncthreads();
  if (thread == 0) isLast = parts.arrive(item.parts);
  __syncthreads();
  if (!isLast) return;
  __threadfence();
  parts.template merge<T>(item.parts, rows, thread, kThreads, rowOfOut);
}

// kBlocks is how many blocks an SM of Hopper shall have room for.
template <typename T, bool kFp8, int kDim, int kWarps, int kRowTiles, int kKeys, int kBlocks>
PrefillKernel variantOf(const char* name) {
  constexpr int kRows = kWarps * kRowTiles * 16;
  constexpr bool kKeepQ = kRowTiles == 1 && kDim <= 128;
  constexpr size_t kSharedBytes = size_t{(kFp8 ? 3 : 4) * kKeys + (kKeepQ ? 0 : kRows)} * kDim * 2;
  constexpr auto kernel = prefillKernelOf<T, kFp8, kDim, kWarps, kRowTiles, kKeys, kBlocks>;
  const auto run = [](PrefillArgs a, int items, int, cudaStream_t stream) {
    // Items in y: at most 65,535 a launch.
    constexpr int kMaxItems = 65535;
    for (int from = 0; from < items; from += kMaxItems) {
      launch("attention prefill", kernel, dim3(a.kvHeads, std::min(kMaxItems, items - from)),
             kWarps * 32, kSharedBytes, stream, a);
      a.items += kMaxItems;
    }
  };
  return {reinterpret_cast<const void*>(kernel), kWarps * 32, kRows, kKeys, kSharedBytes, name, run};
}

template <typename T, bool kFp8>
PrefillKernel pick(int dim, int variant) {
  if (variant == 0) {
    if (dim == 64) return variantOf<T, kFp8, 64, 4, 2, 64, 2>("128 rows, 4 warps, 64 keys");
    if (dim == 128) return variantOf<T, kFp8, 128, 4, 2, 64, 2>("128 rows, 4 warps, 64 keys");
    return variantOf<T, kFp8, 256, 4, 1, 32, 2>("64 rows, 4 warps, 32 keys");
  }
#ifdef MILLRACE_ATTENTION_EXPERIMENTS
  if constexpr (!kFp8) {
    if (dim == 64) {
      if (variant == 1) return variantOf<T, false, 64, 4, 1, 64, 3>("64 rows, 4 warps, 64 keys");
      if (variant == 2) return variantOf<T, false, 64, 4, 1, 128, 2>("64 rows, 4 warps, 128 keys");
    }
    if (dim == 128) {
      if (variant == 1) {
        return variantOf<T, false, 128, 4, 1, 64, 2>("64 rows, 4 warps, 64 keys, 2 blocks");
      }
      if (variant == 2) {
        return variantOf<T, false, 128, 4, 1, 64, 3>("64 rows, 4 warps, 64 keys, 3 blocks");
      }
      if (variant == 3) return variantOf<T, false, 128, 8, 1, 64, 1>("128 rows, 8 warps, 64 keys");
      if (variant == 4) return variantOf<T, false, 128, 4, 2, 32, 2>("128 rows, 4 warps, 32 keys");
    }
  }
#endif
  return {};
}

}  // namespace

PrefillKernel prefillKernel(Elem elem, bool fp8, int dim, int variant) {
  if (elem == Elem::BF16) {
    return fp8 ? pick<__nv_bfloat16, true>(dim, variant) : pick<__nv_bfloat16, false>(dim, variant);
  }
  return fp8 ? pick<__half, true>(dim, variant) : pick<__half, false>(dim, variant);
}

}  // namespace millrace::cuda
