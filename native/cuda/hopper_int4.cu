// out^T = weight . x^T by wgmma with the weight in registers: 64 outputs are the rows of its tile, and each
// thread makes its part of them from codes, exactly, as int4_gemm.cu does. Sums of a group of columns
// are scaled in float32; where groups have offsets, a second product, of ones, gives the sums of x that
// they multiply. One warp copies codes, scales and x to a ring, one warpgroup multiplies; the blocks of
// an SM fill each other's waits.
#include "hopper_int4.h"

#include <algorithm>

#include "hopper.h"
#include "hopper_tiles.cuh"
#include "int4_codes.cuh"
#include "launch.h"

namespace millrace::cuda {

using namespace hopper;

namespace {

template <class T_, int kRows_, int kGroup_, bool kOffsets_>
struct Config {
  using T = T_;
  static constexpr int kRows = kRows_, kGroup = kGroup_;
  static constexpr bool kOffsets = kOffsets_;
  static constexpr int kWarpgroups = 1, kBlocks = 1, kOutputs = kInt4Rows;
  // A stage is 64 columns: x, codes, and the scales of the groups that begin there, pairs with offsets.
  static constexpr int kXBytes = kRows * kTileWidth;
  static constexpr int kScaleBytes = kOutputs * (kOffsets ? 8 : 4);
  static constexpr int kGroupsOfStage = std::max(1, kInt4Columns / kGroup);
  static constexpr int kStagesOfGroup = std::max(1, kGroup / kInt4Columns);
  static constexpr int kStageBytes =
      (kXBytes + kInt4BlockBytes + kGroupsOfStage * kScaleBytes + 1023) / 1024 * 1024;
  static constexpr int kPitch = kOutputs + 4;
  static constexpr int kTurnedRows = 16;
  static constexpr int kSpareBytes = kTurnedRows * kPitch * 4 + 256 + 1024;  // barriers, alignment
  // Stages whose codes are in registers. With offsets there is room for one, and the second of a group
  // waits for the products of the first.
  static constexpr int kUnpacked = kOffsets ? 1 : kStagesOfGroup;
  // As many blocks as have the registers: of sums (all, a group's, those of x) and of codes. Of 5 warps
  // a block one of the SM's four parts has 3 with 2 blocks, 4 with 3, 5 with 4.
  static constexpr int kRegisters = kRows / 2 * (kOffsets ? 3 : 2) + 16 * kUnpacked + (kOffsets ? 56 : 48);
  static constexpr int kBlocksOfSm = kRegisters <= 96 ? 4 : kRegisters <= 128 ? 3 : kRegisters <= 168 ? 2 : 1;
  static constexpr int kThreads = kWarpgroup + 32;
  static constexpr int kStages = std::min(
      12, (kSharedOfSm / kBlocksOfSm - kSharedOfBlock - kSpareBytes) / kStageBytes);
  static constexpr int kSharedBytes = kStages * kStageBytes + kSpareBytes;
  static_assert(kStages >= 3 && kRows * kPitch * 4 <= kStages * kStageBytes);
};

struct Work : Tiles {
  const uint8_t* codes;
  const uint8_t* scales;
  int steps;   // of 64 columns
  int groups;  // as they are kept
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocksOfSm)
    hopperInt4Kernel(const __grid_constant__ CUtensorMap activations, Work work, Results results) {
#if defined(MILLRACE_HOPPER)
  using T = typename C::T;
  constexpr int kRows = C::kRows, kStages = C::kStages, kWarps = 4;
  extern __shared__ uint8_t raw[];
  uint8_t* const shared = raw + (-static_cast<uint32_t>(__cvta_generic_to_shared(raw)) & 1023);
  const uint32_t ring = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const uint32_t full = ring + kStages * C::kStageBytes, empty = full + 8 * kStages;
  float* const turned = reinterpret_cast<float*>(shared + kStages * C::kStageBytes + 256);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int split = blockIdx.x % work.splits;
  const int firstTile = blockIdx.x / work.splits, tilesAtOnce = gridDim.x / work.splits;
  // A share of k has whole groups.
  const int units = (work.steps + C::kStagesOfGroup - 1) / C::kStagesOfGroup;
  const int begin = units * split / work.splits * C::kStagesOfGroup;
  const int end = min(work.steps, units * (split + 1) / work.splits * C::kStagesOfGroup);
  const int count = end - begin;
  const auto rowOf = [&](int tile) { return tile % work.rowTiles * kRows; };
  const auto blockOf = [&](int tile) { return tile / work.rowTiles; };  // of 64 outputs

  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; i++) {
      barrierInit(full + 8 * i, 1);
      barrierInit(empty + 8 * i, kWarps);
    }
    barrierInitFence();
  }
  if (work.splits > 1) clusterSync();
  else __syncthreads();

  if (warp == kWarps) {
    const auto copyWeight = [&](int stage, int block, int step) {
      const uint32_t barrier = full + 8 * stage, target = ring + stage * C::kStageBytes + C::kXBytes;
      const bool begins = step % C::kStagesOfGroup == 0;
      constexpr uint32_t kScales = C::kGroupsOfStage * C::kScaleBytes;
      barrierExpect(barrier, C::kXBytes + kInt4BlockBytes + (begins ? kScales : 0));
      copyBytes(target, work.codes + (int64_t(block) * work.steps + step) * kInt4BlockBytes,
                kInt4BlockBytes, barrier);
      if (begins) {
        const int group = step * C::kGroupsOfStage / C::kStagesOfGroup;
        copyBytes(target + kInt4BlockBytes,
                  work.scales + (int64_t(block) * work.groups + group) * C::kScaleBytes, kScales, barrier);
      }
    };
    int ahead = min(count, kStages);
    if (lane == 0) {
      prefetchMap(&activations);
      for (int i = 0; i < ahead; i++) copyWeight(i, blockOf(firstTile), begin + i);
    }
    waitForPrevious();
    if (lane == 0) {
      RingPlace<kStages> place;
      bool again = false;  // whether this stage has been in use
      for (int tile = firstTile; tile < work.tiles; tile += tilesAtOnce) {
        const int row = rowOf(tile), block = blockOf(tile);
        for (int step = begin; step < end; step++) {
          const int stage = place.stage;
          if (again) barrierWait(empty + 8 * stage, place.parity ^ 1);
          if (ahead > 0) ahead--;
          else copyWeight(stage, block, step);
          copyTile(ring + stage * C::kStageBytes, &activations, step * kInt4Columns, row,
                   full + 8 * stage);
          place.next();
          again = again || place.stage == 0;
        }
      }
    }
    __syncwarp();
    if (work.splits > 1) clusterSync();
  } else {
    waitForPrevious();
    float sums[1][kRows / 2];
    float chain[kRows / 2];                         // of a group
    float ofX[C::kOffsets ? kRows / 2 : 1] = {};    // of a group, the same in all rows
    uint32_t codes[C::kUnpacked][4][4];
    RingPlace<kStages> place;
    const auto stageAt = [&](int stage) { return ring + stage * C::kStageBytes; };
    const auto release = [&](int stage) {
      if (lane == 0) barrierArrive(empty + 8 * stage);
    };
    // The warp's 16 outputs of a stage that is there: a lane's part of four products.
    const auto unpackCodes = [&](int stage, uint32_t (&to)[4][4]) {
      uint32_t w[4];
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                   : "r"(stageAt(stage) + C::kXBytes + warp * 512 + lane * 16)
                   : "memory");
#pragma unroll
      for (int k = 0; k < 4; k++) codesOf<T>(w[k], to[k]);
    };
    constexpr uint32_t kOne = std::is_same_v<T, __half> ? 0x3c003c00u : 0x3f803f80u;
    const uint32_t ones[4] = {kOne, kOne, kOne, kOne};
    // Products of 16 columns first .. last of a stage.
    const auto multiply = [&](int stage, const uint32_t (&a)[4][4], int first, int last, bool more) {
      const uint64_t b = rowsOf128Bytes(stageAt(stage));
#pragma unroll
      for (int k = first; k < last; k++) {  // 32 bytes on: 2 in a descriptor's address
        FragmentProducts<T, kRows, false>::add(chain, a[k], b + 2 * k, more || k > first);
        if constexpr (C::kOffsets) {
          FragmentProducts<T, kRows, false>::add(ofX, ones, b + 2 * k, more || k > first);
        }
      }
      productsCommit();
    };
    // Scales of the outputs lane / 4 and 8 further of a warp, with offsets behind them.
    struct Scale {
      float scale[2], offset[2];
    };
    const auto scalesOf = [&](int stage, int group) {
      Scale of;
      const uint8_t* at = shared + stage * C::kStageBytes + C::kXBytes + kInt4BlockBytes + group * C::kScaleBytes;
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int output = warp * 16 + lane / 4 + 8 * i;
        if constexpr (C::kOffsets) {
          const float2 pair = reinterpret_cast<const float2*>(at)[output];
          of.scale[i] = pair.x, of.offset[i] = pair.y;
        } else {
          of.scale[i] = reinterpret_cast<const float*>(at)[output];
        }
      }
      return of;
    };
    const auto addChain = [&](const Scale& of) {
      productsWait<0>();
      holdRegisters(chain);
      if constexpr (C::kOffsets) holdRegisters(ofX);
#pragma unroll
      for (int j = 0; j < kRows / 2; j++) {
        sums[0][j] += of.scale[j / 2 % 2] * chain[j];
        if constexpr (C::kOffsets) sums[0][j] += of.offset[j / 2 % 2] * ofX[j];
      }
    };
    for (int tile = firstTile; tile < work.tiles; tile += tilesAtOnce) {
#pragma unroll
      for (int j = 0; j < kRows / 2; j++) sums[0][j] = 0.0f;
      const auto next = [&] {
        const int stage = place.stage;
        barrierWait(full + 8 * stage, place.parity);
        place.next();
        return stage;
      };
      int i = 0;
      if constexpr (C::kStagesOfGroup == 2) {
        for (; i + 2 <= count; i += 2) {
          const int first = next();
          const Scale of = scalesOf(first, 0);
          unpackCodes(first, codes[0]);
          productsBegin();
          multiply(first, codes[0], 0, 4, false);
          const int second = next();
          if constexpr (C::kUnpacked == 1) productsWait<0>();
          unpackCodes(second, codes[C::kUnpacked - 1]);
          productsBegin();
          multiply(second, codes[C::kUnpacked - 1], 0, 4, true);
          addChain(of);
          release(first);
          release(second);
        }
      }
      // One stage at a time, with one group or two, or half of one at the end of a row.
      for (; i < count; i++) {
        const int stage = next();
        unpackCodes(stage, codes[0]);
#pragma unroll
        for (int group = 0; group < C::kGroupsOfStage; group++) {
          const Scale of = scalesOf(stage, group);
          constexpr int kProducts = 4 / C::kGroupsOfStage;
          productsBegin();
          multiply(stage, codes[0], group * kProducts, (group + 1) * kProducts, false);
          addChain(of);
        }
        release(stage);
      }
      if (work.splits == 1) {
        storeSums<C>(sums, turned, work, results, rowOf(tile), blockOf(tile) * C::kOutputs);
      }
    }
    if (work.splits > 1) {
      addSplits<C>(sums, shared, work, results, split, rowOf(firstTile),
                   blockOf(firstTile) * C::kOutputs);
    }
  }
  if (work.splits > 1) clusterSync();  // nobody leaves while others read its sums
#endif
}

int multiprocessors() {
  static const int count = [] {
    int device = 0, found = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&found, cudaDevAttrMultiProcessorCount, device),
          "cudaDeviceGetAttribute");
    return found;
  }();
  return count;
}

template <class C>
void launchTiles(Elem elem, const Int4Linear& step, Matrix x, int rows, cudaStream_t stream) {
  using T = typename C::T;
  static const bool ready = [] {
    check(cudaFuncSetAttribute(hopperInt4Kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               C::kSharedBytes),
          "hopperInt4");
    return true;
  }();
  static_cast<void>(ready);
  const Int4Weight& weight = step.weight;
  constexpr CUtensorMapDataType type =
      std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const CUtensorMap map = tileMap(type, sizeof(T), x.data, weight.k, rows, x.stride, C::kRows);
  const int steps = static_cast<int>(divideUp(weight.k, kInt4Columns));
  const int outputTiles = static_cast<int>(divideUp(weight.n, kInt4Rows));
  const int rowTiles = static_cast<int>(divideUp(rows, C::kRows));
  const int tiles = outputTiles * rowTiles;
  // Blocks for all places there are, as long as each has enough of k.
  const int places = C::kBlocksOfSm * multiprocessors();
  int splits = 1;
  while (splits < 8 && tiles * splits * 4 < places * 3 && steps >= 16 * splits) splits *= 2;
  Work work{{weight.n, rows, rowTiles, tiles, splits}};
  work.codes = weight.data;
  work.scales = weight.data + size_t(outputTiles) * steps * kInt4BlockBytes;
  work.steps = steps;
  work.groups = static_cast<int>(divideUp(int64_t(steps) * kInt4Columns, weight.group));
  const Results results = {nullptr, nullptr, step.bias, step.residual, step.out.data,
                           step.residualStride, step.out.stride, step.floatOut ? Elem::F32 : elem};
  const int blocks = splits > 1 ? tiles * splits : std::min(tiles, places);
  launchCluster("hopperInt4", hopperInt4Kernel<C>, dim3(blocks), splits, C::kThreads, C::kSharedBytes,
                stream, map, work, results);
}

template <class T, int kRows>
void launchGroups(Elem elem, const Int4Linear& step, Matrix x, int rows, cudaStream_t stream) {
  const auto with = [&](auto group) {
    constexpr int kGroup = decltype(group)::value;
    if (step.weight.offsets) {
      launchTiles<Config<T, kRows, kGroup, true>>(elem, step, x, rows, stream);
    } else {
      launchTiles<Config<T, kRows, kGroup, false>>(elem, step, x, rows, stream);
    }
  };
  if (step.weight.group == 32) return with(std::integral_constant<int, 32>{});
  if (step.weight.group == 64) return with(std::integral_constant<int, 64>{});
  with(std::integral_constant<int, 128>{});
}

template <class T>
void launchRows(Elem elem, const Int4Linear& step, Matrix x, int rows, cudaStream_t stream) {
  if (rows <= 16) return launchGroups<T, 16>(elem, step, x, rows, stream);
  if (rows <= 32) return launchGroups<T, 32>(elem, step, x, rows, stream);
  launchGroups<T, 64>(elem, step, x, rows, stream);
}

}  // namespace

bool hopperInt4Takes(const Int4Linear& step) {
  // Results are written, and residuals read, eight at a time.
  const Elem out = step.floatOut ? Elem::F32 : Elem::BF16;
  return packable(out, {step.out.data, step.residual, step.bias},
                  {step.out.stride, step.residual ? step.residualStride : 0}) &&
         step.weight.n % 8 == 0;
}

void hopperInt4(Elem elem, const Int4Linear& step, Matrix x, int rows, cudaStream_t stream) {
  if (elem == Elem::F16) return launchRows<__half>(elem, step, x, rows, stream);
  launchRows<__nv_bfloat16>(elem, step, x, rows, stream);
}

}  // namespace millrace::cuda
