// Attention of chunks of a prompt on Hopper, after FlashAttention-3 (Shah et al. 2024): one warp copies
// tiles of keys and values, two warpgroups multiply 64 rows each. A warpgroup issues the scores of the
// next tile before the weighted values of this one, and computes its softmax while these and the other
// warpgroup's are multiplied. Blocks stay for all their units, so that the first tiles of one are copied
// while the last of another is worked on. Keys and values in e4m3 are copied to a staging tile, and two
// warps convert them to the float16 that is multiplied. Rows and items are those of attention_prefill.cu.
#include <algorithm>

#include "attention_parts.cuh"
#include "attention_prefill_hopper.cuh"
#include "hopper.h"
#include "launch.h"

namespace millrace::cuda {

using namespace hopper_prefill;

namespace {

// Numbers of barriers of some warps; of those with a warpgroup in mind, the first.
enum { kBarrierOfConsumers = 1, kBarrierOfWarpgroup = 2 };

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    hopperPrefillKernelOf(const __grid_constant__ CUtensorMap keyMap,
                          const __grid_constant__ CUtensorMap valueMap, PrefillArgs a, int units) {
#if defined(MILLRACE_HOPPER)
  using T = typename C::T;
  using Factor = typename C::Factor;
  constexpr int kKeys = C::kKeys, kRowBytes = C::kRowBytes;
  extern __shared__ uint8_t raw[];
  uint8_t* const shared = raw + (-static_cast<uint32_t>(__cvta_generic_to_shared(raw)) & 1023);
  const uint32_t base = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  Unit* const described = reinterpret_cast<Unit*>(shared + C::kUnitsAt);
  const uint32_t unitsFull = base + C::kBarriersAt, unitsEmpty = unitsFull + 16;
  using Keys = Ring<C::kStages, C::kTileBytes>;
  using Values = Ring<C::kValueStages, C::kTileBytes>;
  using Staging = Ring<1, C::kCopyBytes>;
  const Keys keys = {base, unitsEmpty + 16};
  const Values values = {base + C::kValuesAt, keys.barriers + Keys::kBarrierBytes};
  const Staging stagedKeys = {base + C::kStagingAt, values.barriers + Values::kBarrierBytes};
  const Staging stagedValues = {stagedKeys.tiles + C::kCopyBytes,
                                stagedKeys.barriers + Staging::kBarrierBytes};

  const int warp = threadIdx.x / 32;
  int lane;  // of the warp; by an instruction that ptxas repeats rather than keep a register for it
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  if (threadIdx.x == 0) {
    constexpr int kFillers = C::kFp8 ? kConverters : 1;
    keys.init(kFillers, C::kWarps);
    values.init(kFillers, C::kWarps);
    if constexpr (C::kFp8) {
      stagedKeys.init(1, kConverters);
      stagedValues.init(1, kConverters);
    }
    for (int i = 0; i < 2; i++) {
      barrierInit(unitsFull + 8 * i, kBatch);
      barrierInit(unitsEmpty + 8 * i, C::kWarps + 1 + (C::kFp8 ? kConverters : 0));
    }
    barrierInitFence();
  }
  __syncthreads();

  // Units come longest first. Every other round over the blocks goes backwards, so that no block gets
  // the longest of each.
  const int blocks = gridDim.x, block = blockIdx.x;
  const auto numberOf = [&](int round) {
    return round * blocks + (round % 2 == 0 ? block : blocks - 1 - block);
  };
  const auto exists = [&](int round) { return numberOf(round) < units; };
  // The unit of a round. Whoever asks for the first of a batch waits until it is described.
  const auto unitAt = [&](int round) -> const Unit& {
    if (round % kBatch == 0) {
      barrierWait(unitsFull + 8 * (round / kBatch % 2), round / (2 * kBatch) % 2);
    }
    return described[round % (2 * kBatch)];
  };
  // By one lane of each warp that has asked.
  const auto releaseUnit = [&](int round) {
    if (round % kBatch == kBatch - 1) barrierArrive(unitsEmpty + 8 * (round / kBatch % 2));
  };

  if (warp >= C::kWarps) {
    giveRegisters<40>();
    if (warp == C::kWarps + 1) {
      // Describes units: the plan, the lengths and the block ids come with the step, not from a kernel.
      for (int first = 0; exists(first); first += kBatch) {
        const int batch = first / kBatch, round = first + lane;
        if (batch >= 2) barrierWait(unitsEmpty + 8 * (batch % 2), (batch / 2 - 1) % 2);
        if (lane >= kBatch) continue;
        if (exists(round)) described[round % (2 * kBatch)] = unitOf<C>(a, numberOf(round));
        barrierArrive(unitsFull + 8 * (batch % 2));
      }
    } else if (warp == C::kWarps) {
      constexpr int kBoxes = kKeys / kBox, kPanelBytes = C::kCopyBytes / C::kPanels;
      constexpr int kBoxBytes = kPanelBytes / kBoxes;
      if (lane == 0) {
        prefetchMap(&keyMap);
        prefetchMap(&valueMap);
      }
      // Each lane knows the place of one box. Those that no row sees are none of the map's rows: zeros.
      const auto wanted = [&](const Unit& unit, int key) {
        return lane < kBoxes && key < unit.keyEnd && key + kBox > unit.lowKey;
      };
      const auto blockIdOf = [&](const Unit& unit, int key) {
        return wanted(unit, key) ? __ldg(a.blockTables + unit.table + key / kBox / a.blockTiles) : 0;
      };
      int round = 0, key = unitAt(0).keyBegin + lane * kBox;
      int id = blockIdOf(described[0], key);
      waitForPrevious();
      const auto copy = [&](const CUtensorMap& map, uint32_t tile, int place, const auto& ring) {
        int rows[kBoxes];
#pragma unroll
        for (int box = 0; box < kBoxes; box++) rows[box] = __shfl_sync(kAll, place, box);
        ring.waitEmpty(tile);
        if (lane == 0) {
          barrierExpect(ring.full(tile), C::kCopyBytes);
#pragma unroll
          for (int box = 0; box < kBoxes; box++) {
#pragma unroll
            for (int panel = 0; panel < C::kPanels; panel++) {
              copyTile(ring.at(tile) + panel * kPanelBytes + box * kBoxBytes, &map, panel * 64,
                       rows[box], ring.full(tile));
            }
          }
        }
        __syncwarp();
      };
      const auto copyKeys = [&](uint32_t tile, int place) {
        if constexpr (C::kFp8) copy(keyMap, tile, place, stagedKeys);
        else copy(keyMap, tile, place, keys);
      };
      const auto copyValues = [&](uint32_t tile, int place) {
        if constexpr (C::kFp8) copy(valueMap, tile, place, stagedValues);
        else copy(valueMap, tile, place, values);
      };
      uint32_t tile = 0;
      int placeBefore = 0;
      for (; exists(round); tile++) {
        const Unit& unit = described[round % (2 * kBatch)];
        const int place =
            wanted(unit, key)
                ? ((id * a.kvHeads + unit.kvHead) * a.blockTiles + key / kBox % a.blockTiles) * kBox
                : -kBox;
        const int endOfTile = key - lane * kBox + kKeys;
        const bool last = endOfTile >= unit.keyEnd;
        // The id for the next tile arrives while this one is copied.
        const int nextRound = round + last;
        if (exists(nextRound)) {
          const Unit& next = last ? unitAt(nextRound) : unit;
          key = (last ? next.keyBegin : endOfTile) + lane * kBox;
          id = blockIdOf(next, key);
        }
        // As they are multiplied. Behind its values a tile's keys would wait until the softmax is over
        // that runs beside the products with older values.
        copyKeys(tile, place);
        if (tile > 0) copyValues(tile - 1, placeBefore);
        placeBefore = place;
        if (last && lane == 0) releaseUnit(round);
        round = nextRound;
      }
      copyValues(tile - 1, placeBefore);
    } else if constexpr (C::kFp8) {
      // Eight rows of 64 e4m3 at a time, 16 bytes a lane, become eight rows of 128 bytes with their
      // swizzle. Eight neighboring lanes have two rows: they read and write all banks once.
      constexpr int kSteps = C::kCopyBytes / 512 / kConverters, kAhead = 2;
      static_assert(kSteps % kAhead == 0);
      const int part = warp - C::kWarps - 2;
      const uint32_t source = part * kSteps * 512 + lane * 16;
      const uint32_t target = part * kSteps * 1024 + swizzled<kTileWidth>(lane / 4, 2 * (lane % 4));
      const auto load = [&](uint32_t (&w)[4], uint32_t from) {
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                     : "r"(from)
                     : "memory");
      };
      const auto store = [&](uint32_t to, uint32_t a, uint32_t b) {
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to),
                     "r"(halvesOfE4m3(a & 0xffff)), "r"(halvesOfE4m3(a >> 16)),
                     "r"(halvesOfE4m3(b & 0xffff)), "r"(halvesOfE4m3(b >> 16))
                     : "memory");
      };
      const auto convert = [&](uint32_t tile, const Staging& staged, const auto& ring) {
        ring.waitEmpty(tile);
        staged.waitFull(tile);
        uint32_t from = staged.at(tile) + source, to = ring.at(tile) + target;
        uint32_t w[kAhead][4];
#pragma unroll
        for (int j = 0; j < kAhead; j++) load(w[j], from + j * 512);
#pragma unroll 1
        for (int i = kSteps; i > 0; i -= kAhead, to += kAhead * 1024) {
          from += kAhead * 512;
#pragma unroll
          for (int j = 0; j < kAhead; j++) {
            store(to + j * 1024, w[j][0], w[j][1]);
            store((to ^ 16) + j * 1024, w[j][2], w[j][3]);
            if (i > kAhead) load(w[j], from + j * 512);
          }
        }
        fenceForAsync();
        __syncwarp();
        if (lane == 0) {
          barrierArrive(staged.empty(tile));
          barrierArrive(ring.full(tile));
        }
      };
      // In the order in which they are copied.
      uint32_t tile = 0;
      for (int round = 0; exists(round); round++) {
        const Unit& unit = unitAt(round);
        for (int key = unit.keyBegin; key < unit.keyEnd; key += kKeys, tile++) {
          convert(tile, stagedKeys, keys);
          if (tile > 0) convert(tile - 1, stagedValues, values);
        }
        __syncwarp();
        if (lane == 0) releaseUnit(round);
      }
      convert(tile - 1, stagedValues, values);
    }
    return;
  }

  takeRegisters<232>();
  waitForPrevious();
  constexpr int kSteps = C::kDim / 16, kKeySteps = kKeys / 16;
  constexpr int kChunks = C::kDim / 8, kRowsAtOnce = 32 / kChunks;  // of 16 bytes a lane
  const int g = lane / 4, t = lane % 4, warpgroup = warp / 4;
  const int warpRow = warp * 16;
  const uint32_t queries = base + C::kQueriesAt + warpRow * kRowBytes;
  const uint32_t results = base + C::kResultsAt + warpRow * kRowBytes;
  const int copyRow = lane / kChunks, copyChunk = lane % kChunks;
  const auto isWide = [&](const void* data, int64_t stride) {
    return ((reinterpret_cast<uintptr_t>(data) | stride * 2 | a.headDim * 2) & 15) == 0;
  };

  // The warp's rows of the queries of a round.
  const auto copyQueries = [&](int round) {
    const Unit& unit = unitAt(round);
    // Lane r knows where row r % 16 lies.
    const int64_t offset =
        rowOffset(a, unit, min(warpRow + lane % 16, unit.rows - 1), a.qStride);
    const bool wide = isWide(a.q, a.qStride);
#pragma unroll
    for (int i = 0; i < 16; i += kRowsAtOnce) {
      const int row = i + copyRow, column = copyChunk * 8;
      const T* from = static_cast<const T*>(a.q) + __shfl_sync(kAll, offset, row) + column;
      const uint32_t to = queries + swizzled<kRowBytes>(row, copyChunk);
      const bool real = warpRow + row < unit.rows;
      if (wide) {
        copyAsync16Or0(to, from, real && column < a.headDim);
      } else {
        // Rows are 4-byte aligned at least: head sizes are even.
#pragma unroll
        for (int j = 0; j < 4; j++) {
          copyAsync4Or0(to + 4 * j, from + 2 * j, real && column + 2 * j < a.headDim);
        }
      }
    }
    copyAsyncCommit();
  };

  // Values of keys that no row sees may be anything, and 0 times infinity is not 0: in a box of which
  // some are seen they become zeros. Every warpgroup does it, as none waits for the other.
  const auto mendValues = [&](const Unit& unit, int key0, uint32_t tile) {
    const int low = unit.lowKey - key0, high = unit.keyEnd - key0;
    const bool atLow = low > 0 && low < kKeys && low % kBox != 0;
    const bool atHigh = high < kKeys && high % kBox != 0;
    if (!atLow && !atHigh) return;
    const auto clear = [&](int begin, int end) {
#pragma unroll 1
      for (int i = begin * kChunks + static_cast<int>(threadIdx.x) % kWarpgroup; i < end * kChunks;
           i += kWarpgroup) {
        const int row = i / kChunks, chunk = i % kChunks;  // a whole row: in any order
        asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(
                         values.at(tile) + chunk / 8 * C::kPanelBytes + row * kTileWidth +
                         chunk % 8 * 16),
                     "r"(0)
                     : "memory");
      }
    };
    if (atLow) clear(low / kBox * kBox, low);
    if (atHigh) clear(high, (high + kBox - 1) / kBox * kBox);
    fenceForAsync();
    syncSome<kWarpgroup>(kBarrierOfWarpgroup + warpgroup);
  };
  const auto release = [&](uint32_t empty) {
    if (lane == 0) barrierArrive(empty);
  };

  float s[kKeys / 2], o[C::kDim / 2];
  uint32_t q[kSteps][4], p[kKeySteps][4];
  // The compiler sees that all lanes have the same then, and keeps descriptors where the products read
  // them: else it moves each there, ahead of the first product.
  const auto same = [&](uint32_t address) { return __shfl_sync(kAll, address, 0); };
  const auto multiplyKeys = [&](uint32_t tile) {
    const uint64_t b = rowsOf128Bytes(same(keys.at(tile)));
#pragma unroll
    for (int k = 0; k < kSteps; k++) {  // 16 columns on
      FragmentProducts<Factor, kKeys, false>::add(
          s, q[k], advanced(b, k / 4 * C::kPanelBytes + k % 4 * 32), k > 0);
    }
    productsCommit();
  };
  const auto multiplyValues = [&](uint32_t tile, bool more) {
    const uint64_t b = panelsOf128Bytes(same(values.at(tile)), C::kPanelBytes);
#pragma unroll
    for (int k = 0; k < kKeySteps; k++) {  // 16 rows on
      FragmentProducts<Factor, C::kDim, true>::add(o, p[k], advanced(b, k * 16 * kTileWidth),
                                                   more || k > 0);
    }
    productsCommit();
  };

  copyQueries(0);
  uint32_t tile = 0;  // of all that this block works on
  for (int round = 0; exists(round); round++) {
    const Unit& unit = described[round % (2 * kBatch)];
    copyAsyncWait<0>();
    __syncwarp();
#pragma unroll
    for (int k = 0; k < kSteps; k++) {
      ldmatrix4(q[k], (queries + laneOfValues<kRowBytes>(lane)) ^ (k << 5));
#pragma unroll
      for (int i = 0; i < 4; i++) q[k][i] = converted<T, Factor>(q[k][i]);
    }
    __syncwarp();
    if (exists(round + 1)) copyQueries(round + 1);

    // Of the rows g and g + 8; rows past the end see what the last sees.
    const int ofLane =
        unit.firstPosition +
        (unit.rowBegin + min(warpRow + lane % 16, unit.rows - 1)) / a.group;
    const int position[2] = {__shfl_sync(kAll, ofLane, g), __shfl_sync(kAll, ofLane, g + 8)};
    const int lowPosition = __shfl_sync(kAll, ofLane, 0);
    float top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};

    // Turns the scores of keys from key0 on into weights. keep: the factor of what was summed before.
    const auto weigh = [&](int key0, float (&keep)[2]) {
      // The last row's window begins less than a tile of rows after the first one's.
      if (key0 + kKeys - 1 > lowPosition || (a.window > 0 && key0 < unit.lowKey + C::kRows)) {
#pragma unroll
        for (int i = 0; i < kKeys / 2; i++) {
          const int key = key0 + i / 4 * 8 + 2 * t + i % 2, at = position[i / 2 % 2];
          if (key > at || (a.window > 0 && key <= at - a.window)) s[i] = -INFINITY;
        }
      }
      // Both rows' maxima first: their chains of dependent instructions run side by side.
      float offset[2];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float newTop = top[half];
#pragma unroll
        for (int i = 2 * half; i < kKeys / 2; i += 4) newTop = fmaxf(newTop, fmaxf(s[i], s[i + 1]));
        newTop = quadMax(newTop);
        // Rounded, so that it is exactly 1 where the maximum stays, and nothing has to be corrected.
        offset[half] = __fmul_rn(finiteOr0(newTop), a.scaleLog2);
        keep[half] = exp2Fast(__fmul_rn(top[half], a.scaleLog2) - offset[half]);
        top[half] = newTop;
      }
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float more = 0;
#pragma unroll
        for (int i = 2 * half; i < kKeys / 2; i += 4) {
#pragma unroll
          for (int j = i; j < i + 2; j++) {
            s[j] = exp2Fast(fmaf(s[j], a.scaleLog2, -offset[half]));
            more += s[j];
          }
        }
        sum[half] = sum[half] * keep[half] + more;
      }
    };
    const auto packWeights = [&] {
#pragma unroll
      for (int k = 0; k < kKeySteps; k++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
          p[k][i] = Half2<Factor>::pack(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
        }
      }
    };

    float keep[2];
    int key0 = unit.keyBegin;
    keys.waitFull(tile);
    productsBegin();
    multiplyKeys(tile);
    productsWait<0>();
    holdRegisters(s);
    release(keys.empty(tile));
    weigh(key0, keep);
    packWeights();
    values.waitFull(tile);
    for (bool more = false; key0 + kKeys < unit.keyEnd; more = true) {
      mendValues(unit, key0, tile);
      keys.waitFull(tile + 1);
      productsBegin();
      multiplyKeys(tile + 1);
      multiplyValues(tile, more);
      productsWait<1>();
      holdRegisters(s);
      release(keys.empty(tile + 1));
      key0 += kKeys;
      weigh(key0, keep);
      // Of the sums, too, though none is below 0: ptxas moves the waits above the softmax, which is to
      // run beside the products, but not above a vote that needs all of it.
      const bool corrects =
          __any_sync(kAll, keep[0] != 1.0f || keep[1] != 1.0f || fminf(sum[0], sum[1]) < 0.0f);
      values.waitFull(tile + 1);
      productsWait<0>();
      holdRegisters(o);
      release(values.empty(tile));
      tile++;
      if (corrects) {
#pragma unroll
        for (int i = 0; i < C::kDim / 2; i++) o[i] *= keep[i / 2 % 2];
      }
      packWeights();
    }
    mendValues(unit, key0, tile);
    productsBegin();
    multiplyValues(tile, key0 != unit.keyBegin);
    productsWait<0>();
    holdRegisters(o);
    release(values.empty(tile));
    tile++;

    sum[0] = quadSum(sum[0]);
    sum[1] = quadSum(sum[1]);
    if (unit.parts == 1) {
      // Through shared memory, so that a row is written 16 bytes at a time.
      const float inverse[2] = {1.0f / sum[0], 1.0f / sum[1]};
#pragma unroll
      for (int i = 0; i < C::kDim / 2; i += 2) {
        const int half = i / 2 % 2;
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(
                         results + swizzled<kRowBytes>(g + 8 * half, i / 4) + 4 * t),
                     "r"(Half2<T>::pack(o[i] * inverse[half], o[i + 1] * inverse[half]))
                     : "memory");
      }
      const int64_t offset =
          rowOffset(a, unit, min(warpRow + lane % 16, unit.rows - 1), a.outStride);
      const bool wide = isWide(a.out, a.outStride);
      __syncwarp();
#pragma unroll
      for (int i = 0; i < 16; i += kRowsAtOnce) {
        const int row = i + copyRow, column = copyChunk * 8;
        T* to = static_cast<T*>(a.out) + __shfl_sync(kAll, offset, row) + column;
        uint32_t words[4];
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                     : "r"(results + swizzled<kRowBytes>(row, copyChunk))
                     : "memory");
        if (warpRow + row >= unit.rows) continue;
        if (wide) {
          if (column < a.headDim) {
            *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
          }
        } else {
#pragma unroll
          for (int j = 0; j < 4; j++) {
            if (column + 2 * j < a.headDim) reinterpret_cast<uint32_t*>(to)[j] = words[j];
          }
        }
      }
    } else {
      const PrefillParts<C::kRows> parts(a, unit.slot, unit.kvHead);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const int row = warpRow + g + 8 * half;
        if (row >= unit.rows) continue;
        float* to = parts.sumsOf(unit.part, row);
#pragma unroll
        for (int i = 2 * half; i < C::kDim / 2; i += 4) {
          const int column = i / 4 * 8 + 2 * t;
          if (column < a.headStride) {
            *reinterpret_cast<float2*>(to + column) = make_float2(o[i], o[i + 1]);
          }
        }
        if (t == 0) *parts.weightOf(unit.part, row) = make_float2(top[half] * a.scaleLog2, sum[half]);
      }
      constexpr int kConsumers = C::kWarps * 32;
      __shared__ int isLast;
      __threadfence();
      syncSome<kConsumers>(kBarrierOfConsumers);
      if (threadIdx.x == 0) isLast = parts.arrive(unit.parts);
      syncSome<kConsumers>(kBarrierOfConsumers);
      if (isLast) {
        __threadfence();
        parts.template merge<T>(unit.parts, unit.rows, threadIdx.x, kConsumers, [&](int row) {
          return static_cast<T*>(a.out) + rowOffset(a, unit, row, a.outStride);
        });
      }
    }
    __syncwarp();
    if (lane == 0) releaseUnit(round);
  }
#endif
}

template <class C>
PrefillKernel kernelOf() {
  constexpr auto kernel = hopperPrefillKernelOf<C>;
  const auto run = [](PrefillArgs a, int items, int resident, cudaStream_t stream) {
    constexpr CUtensorMapDataType type = C::kFp8 ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                         : std::is_same_v<typename C::T, __half>
                                             ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                             : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    // Rows without end: what is read is known by the block ids.
    const auto mapOf = [&](const void* data) {
      return tileMap(type, C::kFp8 ? 1 : 2, data, a.headStride, INT32_MAX, a.headStride, kBox,
                     C::kFp8 ? kTileWidth / 2 : kTileWidth);
    };
    const int units = items * a.kvHeads;
    launch("attention prefill", kernel, dim3(std::min(units, resident)), C::kThreads, C::kSharedBytes,
           stream, mapOf(a.keys), mapOf(a.values), a, units);
  };
  return {reinterpret_cast<const void*>(kernel), C::kThreads, C::kRows, C::kKeys, C::kSharedBytes, "wgmma",
          run};
}

template <typename T, bool kFp8>
PrefillKernel pick(int dim) {
  return dim == 64 ? kernelOf<Config<T, kFp8, 64>>() : kernelOf<Config<T, kFp8, 128>>();
}

}  // namespace

PrefillKernel hopperPrefillKernel(Elem elem, bool fp8, int dim) {
  if (elem == Elem::BF16) return fp8 ? pick<__nv_bfloat16, true>(dim) : pick<__nv_bfloat16, false>(dim);
  return fp8 ? pick<__half, true>(dim) : pick<__half, false>(dim);
}

}  // namespace millrace::cuda
