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
  // A stage is some panels of 64 columns: x, codes, and the scales of its groups, pairs with offsets. Few
  // large stages: one thread copies, and what it does for each counts.
  static constexpr int kPanels = kRows == 16 ? 4 : 2;
  static constexpr int kXBytes = kRows * kTileWidth;  // of a panel
  static constexpr int kScaleBytes = kOutputs * (kOffsets ? 8 : 4);  // of a group
  static constexpr int kPanelsOfGroup = std::max(1, kGroup / kInt4Columns);
  static constexpr int kGroupsOfPanel = std::max(1, kInt4Columns / kGroup);
  static constexpr int kCodesAt = kPanels * kXBytes, kScalesAt = kCodesAt + kPanels * kInt4BlockBytes;
  static constexpr int kStageBytes =
      (kScalesAt + kPanels * kGroupsOfPanel / kPanelsOfGroup * kScaleBytes + 1023) / 1024 * 1024;
  static constexpr int kKeptRows = 16;
  static constexpr int kSpareBytes =
      kKeptRows * kOutputs * 4 + kRingBarrierBytes + kSummedBytes + 1024;  // alignment
  // Panels whose codes are in registers. With offsets there is room for one, and the second of a group
  // waits for the products of the first.
  static constexpr int kUnpacked = kOffsets ? 1 : kPanelsOfGroup;
  // As many blocks as have the registers: of sums (all, a group's, those of x) and of codes. Of 5 warps
  // a block one of the SM's four parts has 3 with 2 blocks, 4 with 3, 5 with 4.
  static constexpr int kRegisters = kRows / 2 * (kOffsets ? 3 : 2) + 16 * kUnpacked + (kOffsets ? 60 : 48);
  static constexpr int kBlocksOfSm = kRegisters <= 96 ? 4 : kRegisters <= 128 ? 3 : kRegisters <= 168 ? 2 : 1;
  static constexpr int kThreads = kWarpgroup + 32;
  static constexpr int kStages = std::min(
      12, (kSharedOfSm / kBlocksOfSm - kSharedOfBlock - kSpareBytes) / kStageBytes);
  static constexpr int kSharedBytes = kStages * kStageBytes + kSpareBytes;
  static_assert(kStages >= 2 && kPanels % kPanelsOfGroup == 0 && kRows * kOutputs * 4 <= kStages * kStageBytes);
};

struct Work : Tiles {
  const uint8_t* codes;
  const uint8_t* scales;
  int panels;  // of 64 columns
  int groups;  // as they are kept
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocksOfSm)
    hopperInt4Kernel(const __grid_constant__ CUtensorMap activations, Work work, Results results) {
#if defined(MILLRACE_HOPPER)
  using T = typename C::T;
  constexpr int kRows = C::kRows, kWarps = 4;
  uint8_t* const shared = alignedShared();
  Ring<C> ring(shared);
  const uint32_t summed = ring.behind();
  float* const kept = reinterpret_cast<float*>(shared + Ring<C>::kBytes + kSummedBytes);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Share share = shareOf(work, (work.panels + C::kPanels - 1) / C::kPanels);
  const int end = share.begin + share.steps;
  const auto panelsOf = [&](int step) { return min(C::kPanels, work.panels - step * C::kPanels); };
  startRing(ring, kWarps, summed, work.splits);

  if (warp == kWarps) {
    if (lane == 0) {
      prefetchMap(&activations);
      const auto copyWeight = [&](const Ring<C>& to, int step, int output) {
        const int64_t block = output / C::kOutputs;
        const int first = step * C::kPanels, panels = panelsOf(step);
        const int firstGroup = first * C::kGroupsOfPanel / C::kPanelsOfGroup;
        const uint32_t scales =
            (panels * C::kGroupsOfPanel + C::kPanelsOfGroup - 1) / C::kPanelsOfGroup * C::kScaleBytes;
        to.expect(C::kPanels * C::kXBytes + panels * kInt4BlockBytes + scales);
        copyBytes(to.at() + C::kCodesAt, work.codes + (block * work.panels + first) * kInt4BlockBytes,
                  panels * kInt4BlockBytes, to.full());
        copyBytes(to.at() + C::kScalesAt,
                  work.scales + (block * work.groups + firstGroup) * C::kScaleBytes, scales, to.full());
      };
      const auto copyX = [&](const Ring<C>& to, int step, int row) {
        // Beyond k there are zeros.
#pragma unroll
        for (int panel = 0; panel < C::kPanels; panel++) {
          copyTile(to.at() + panel * C::kXBytes, &activations,
                   (step * C::kPanels + panel) * kInt4Columns, row, to.full());
        }
      };
      fillRing(ring, work, share, true, copyWeight, copyX);
    }
    __syncwarp();
    if (work.splits > 1) clusterMeet();
  } else {
    waitForPrevious();
    float sums[1][kRows / 2];
    float chain[kRows / 2];                         // of a group
    float ofX[C::kOffsets ? kRows / 2 : 1] = {};    // of a group, the same in all rows
    uint32_t codes[C::kUnpacked][4][4];
    // The warp's 16 outputs of a panel: a lane's part of four products.
    const auto unpackCodes = [&](int stage, int panel, uint32_t (&to)[4][4]) {
      uint32_t w[4];
      asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                   : "r"(ring.at(stage) + C::kCodesAt + panel * kInt4BlockBytes + warp * 512 + lane * 16)
                   : "memory");
#pragma unroll
      for (int k = 0; k < 4; k++) codesOf<T>(w[k], to[k]);
    };
    constexpr uint32_t ones[4] = {kOnes<T>, kOnes<T>, kOnes<T>, kOnes<T>};
    // Products of 16 columns first .. last of a panel.
    const auto multiply = [&](int stage, int panel, const uint32_t (&a)[4][4], int first, int last,
                              bool more) {
      const uint64_t b = rowsOf128Bytes(ring.at(stage) + panel * C::kXBytes);
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
      const uint8_t* at = shared + stage * C::kStageBytes + C::kScalesAt + group * C::kScaleBytes;
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
    for (int tile = share.tile; tile < work.tiles; tile += share.tilesAtOnce) {
#pragma unroll
      for (int j = 0; j < kRows / 2; j++) sums[0][j] = 0.0f;
      for (int step = share.begin; step < end; step++) {
        const int stage = ring.stage, panels = panelsOf(step);
        ring.waitFull();
        ring.next();
        for (int panel = 0; panel < panels; panel += C::kPanelsOfGroup) {
          unpackCodes(stage, panel, codes[0]);
          if constexpr (C::kGroupsOfPanel == 1) {
            const Scale of = scalesOf(stage, panel / C::kPanelsOfGroup);
            productsBegin();
            multiply(stage, panel, codes[0], 0, 4, false);
            // A group ends early where k does.
            if (C::kPanelsOfGroup == 2 && panel + 1 < panels) {
              if constexpr (C::kUnpacked == 1) productsWait<0>();
              unpackCodes(stage, panel + 1, codes[C::kUnpacked - 1]);
              productsBegin();
              multiply(stage, panel + 1, codes[C::kUnpacked - 1], 0, 4, true);
            }
            addChain(of);
          } else {
#pragma unroll
            for (int group = 0; group < 2; group++) {
              const Scale of = scalesOf(stage, 2 * panel + group);
              productsBegin();
              multiply(stage, panel, codes[0], 2 * group, 2 * group + 2, false);
              addChain(of);
            }
          }
        }
        if (lane == 0) ring.release(stage);
      }
      if (work.splits == 1) storeSums<C>(sums, kept, work, results, tile);
    }
    if (work.splits > 1) storeSharedSums<C>(sums, shared, summed, work, results, share);
  }
#endif
}

template <class C>
void launchTiles(Elem elem, const Int4Linear& step, Matrix x, int rows, cudaStream_t stream) {
  using T = typename C::T;
  allowShared<hopperInt4Kernel<C>>("hopperInt4", C::kSharedBytes);
  const Int4Weight& weight = step.weight;
  constexpr CUtensorMapDataType type =
      std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const CUtensorMap map = tileMap(type, sizeof(T), x.data, weight.k, rows, x.stride, C::kRows);
  const int panels = int4BlocksOfK(weight.k);
  const int rowTiles = static_cast<int>(divideUp(rows, C::kRows));
  const int tiles = int4BlocksOfN(weight.n) * rowTiles;
  // A block for each SM at least, as long as it has enough of k; adding parts costs as well.
  const int places = C::kBlocksOfSm * multiprocessors();
  int splits = 1;
  while (splits < 8 && tiles * splits < multiprocessors() && panels >= 16 * splits) splits *= 2;
  Work work{{weight.n, rows, rowTiles, tiles, splits}};
  work.codes = weight.data;
  work.scales = reinterpret_cast<const uint8_t*>(int4Scales(weight));
  work.panels = panels;
  work.groups = int4GroupsKept(weight.k, weight.group);
  const Results results = {nullptr, nullptr, step.bias, step.residual, step.out.data,
                           step.residualStride, step.out.stride, step.floatOut ? Elem::F32 : elem};
  const int blocks = splits > 1 ? tiles * splits : std::min(tiles, places);
  launchCluster("hopperInt4", hopperInt4Kernel<C>, dim3(blocks), splits, C::kThreads,
                C::kSharedBytes, stream, map, work, results);
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
