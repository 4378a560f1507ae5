// out^T = weight . x^T by wgmma: the outputs are the 64 rows of its tile, so that few rows of x waste
// nothing. One warp keeps a ring of tiles filled, one or two warpgroups multiply. Blocks stay for all
// their tiles: while the sums of one are stored, the ring fills for the next.
#include "hopper_gemm.h"

#include <algorithm>

#include "hopper.cuh"
#include "hopper.h"
#include "hopper_tiles.cuh"
#include "launch.h"

namespace millrace::cuda {

using namespace hopper;

namespace {

// 128 threads with the first and 256 with the second have no more than 384 with 168.
constexpr int kCopierRegisters = 40, kAdderRegisters = 232;

constexpr int kChain = 4;  // tiles of e4m3, 512 columns

// Registers of a thread for its sums.
template <class T>
constexpr int sumsOf(int rows, int blocks) {
  return blocks * rows / 2 * (sizeof(T) == 1 ? 2 : 1);
}
constexpr int kMostSums = 192;

template <class T_, int kRows_, int kWarpgroups_, int kBlocks_>
struct Config {
  using T = T_;
  static constexpr int kRows = kRows_;               // of x
  static constexpr int kWarpgroups = kWarpgroups_;
  static constexpr int kBlocks = kBlocks_;           // of 64 outputs, for each warpgroup
  static constexpr int kOutputs = kWarpgroupOutputs * kWarpgroups * kBlocks;
  static constexpr int kColumns = kTileWidth / sizeof(T);
  // The tensor cores add products of e4m3 with some 14 bits (DeepSeek-AI 2024, arXiv 2412.19437, section
  // 3.3.2), so sums over kChain tiles are added to each other in float32.
  static constexpr bool kPromotes = sizeof(T) == 1;
  static constexpr int kSets = 1;
  static constexpr int kSums = sumsOf<T>(kRows, kBlocks);
  static constexpr int kWeightBytes = kOutputs * kTileWidth;
  static constexpr int kStageBytes = kWeightBytes + kRows * kTileWidth;
  static constexpr int kKeptRows = std::min(kRows, 64 / kBlocks);
  static constexpr int kSpareBytes =
      kKeptRows * kOutputs * 4 + kRingBarrierBytes + kSummedBytes + 1024;  // alignment
  static constexpr int stages(int blocksOfSm) {
    return std::min(16, (kSharedOfSm / blocksOfSm - kSharedOfBlock - kSpareBytes) / kStageBytes);
  }
  static constexpr int kBlocksOfSm = kSums <= 64 && stages(2) >= 3 ? 2 : 1;
  static constexpr int kStages = stages(kBlocksOfSm);
  static constexpr int kSharedBytes = kStages * kStageBytes + kSpareBytes;
  static_assert(kStages >= 3);
  // Blocks that share a sum over k add it up through the ring, where it has room.
  static constexpr bool kSplits = kRows * kOutputs * 4 <= kStages * kStageBytes;
  // Where a thread of two has many sums, a third warpgroup, of which one warp copies, gives its
  // registers to them.
  static constexpr bool kTrades = kWarpgroups == 2 && kBlocksOfSm == 1;
  static constexpr int kThreads = kWarpgroup * kWarpgroups + (kTrades ? kWarpgroup : 32);
};

struct Work : Tiles {
  int steps;   // tiles of k
  bool early;  // the weight was there before the previous kernel
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, C::kBlocksOfSm)
    hopperGemmKernel(const __grid_constant__ CUtensorMap weights,
                     const __grid_constant__ CUtensorMap activations, Work work, Results results) {
#if defined(MILLRACE_HOPPER)
  uint8_t* const shared = alignedShared();
  Ring<C> ring(shared);
  const uint32_t summed = ring.behind();
  float* const kept = reinterpret_cast<float*>(shared + Ring<C>::kBytes + kSummedBytes);
  const Share share = shareOf(work, work.steps);
  startRing(ring, C::kWarpgroups, summed, work.splits);

  if (threadIdx.x >= kWarpgroup * C::kWarpgroups) {
    if constexpr (C::kTrades) giveRegisters<kCopierRegisters>();
    if (threadIdx.x == kWarpgroup * C::kWarpgroups) {
      prefetchMap(&weights);
      prefetchMap(&activations);
      const auto copyWeight = [&](const Ring<C>& to, int step, int output) {
        to.expect(C::kStageBytes);
        copyTile(to.at(), &weights, step * C::kColumns, output, to.full());
      };
      const auto copyX = [&](const Ring<C>& to, int step, int row) {
        copyTile(to.at() + C::kWeightBytes, &activations, step * C::kColumns, row, to.full());
      };
      fillRing(ring, work, share, work.early, copyWeight, copyX);
    }
    __syncwarp();
    if (work.splits > 1) clusterMeet();
  } else {
    if constexpr (C::kTrades) takeRegisters<kAdderRegisters>();
    waitForPrevious();
    float sums[1][C::kBlocks][C::kRows / 2];
    for (int tile = share.tile; tile < work.tiles; tile += share.tilesAtOnce) {
      if constexpr (C::kPromotes) {
        // Chains end in the round of the loop they began in: of sums that are under way from one
        // round to the next the compiler loses track, and waits for each product (ptxas C7514). Their
        // length is a constant, so that their loop is unrolled.
        float chain[1][C::kBlocks][C::kRows / 2];
#pragma unroll
        for (int block = 0; block < C::kBlocks; block++) {
#pragma unroll
          for (int j = 0; j < C::kRows / 2; j++) sums[0][block][j] = 0.0f;
        }
        const auto addChain = [&](int steps) {
          sumStages<C>(ring, steps, chain, C::kWeightBytes);
#pragma unroll
          for (int block = 0; block < C::kBlocks; block++) {
#pragma unroll
            for (int j = 0; j < C::kRows / 2; j++) sums[0][block][j] += chain[0][block][j];
          }
        };
        int i = 0;
        for (; i + kChain <= share.steps; i += kChain) addChain(kChain);
        for (; i < share.steps; i++) addChain(1);
      } else {
        sumStages<C>(ring, share.steps, sums, C::kWeightBytes);
      }
      if (work.splits == 1) storeSums<C>(sums[0], kept, work, results, tile);
    }
    if constexpr (C::kSplits) {
      if (work.splits > 1) storeSharedSums<C>(sums[0], shared, summed, work, results, share);
    }
  }
#endif
}

// ---------------------------------------------------------------- launching

template <class C>
void launchTiles(const Product& product, const ProductCall& call, const HopperTiles& tiles, int rows,
                 cudaStream_t stream) {
  using T = typename C::T;
  constexpr int kSize = sizeof(T);
  constexpr CUtensorMapDataType type = kSize == 1                   ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                       : std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                                   : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  allowShared<hopperGemmKernel<C>>("hopperGemm", C::kSharedBytes);
  const CUtensorMap weights =
      tileMap(type, kSize, call.weight, product.k, product.n, product.k, C::kOutputs);
  const CUtensorMap x = tileMap(type, kSize, call.x, product.k, rows, product.xStride, C::kRows);
  const int rowTiles = static_cast<int>(divideUp(rows, C::kRows));
  const int outputTiles = static_cast<int>(divideUp(product.n, C::kOutputs));
  const int steps = static_cast<int>(divideUp(product.k, C::kColumns));
  const int count = outputTiles * rowTiles;
  const Work work = {{product.n, rows, rowTiles, count, tiles.splits}, steps, !product.freshWeight};
  const int atOnce = C::kBlocksOfSm * multiprocessors();
  const int blocks = tiles.splits > 1 ? count * tiles.splits : std::min(count, atOnce);
  const Results results = {call.weightScales, call.xScales, product.bias ? call.biasFloats : nullptr,
                           product.residual ? call.residual : nullptr, call.out,
                           product.residualStride, product.outStride,
                           product.floatOut ? Elem::F32 : product.elem,
                           product.best ? static_cast<BestKey*>(call.out) : nullptr};
  launchCluster("hopperGemm", hopperGemmKernel<C>, dim3(blocks), tiles.splits,
                C::kThreads, C::kSharedBytes, stream, weights, x, work, results);
}

// Calls f with the tag of the kernel of these tiles; false if there is none.
template <class T, int kRows, class F>
bool withOutputs(int outputs, F&& f) {
  const auto with = [&](auto warpgroups, auto blocks) {
    constexpr int kWarpgroups = decltype(warpgroups)::value, kBlocks = decltype(blocks)::value;
    if constexpr (sumsOf<T>(kRows, kBlocks) <= kMostSums) {
      using C = Config<T, kRows, kWarpgroups, kBlocks>;
      if (outputs == C::kOutputs) return f(TypeTag<C>{}), true;
    }
    return false;
  };
  constexpr std::integral_constant<int, 1> one;
  constexpr std::integral_constant<int, 2> two;
  return with(one, one) || with(two, one) || with(two, two);
}

template <class T, class F>
bool withRows(const HopperTiles& tiles, F&& f) {
  switch (tiles.rows) {
    case 16: return withOutputs<T, 16>(tiles.outputs, f);
    case 32: return withOutputs<T, 32>(tiles.outputs, f);
    case 64: return withOutputs<T, 64>(tiles.outputs, f);
    case 128: return withOutputs<T, 128>(tiles.outputs, f);
    case 192: return withOutputs<T, 192>(tiles.outputs, f);
    case 256: return withOutputs<T, 256>(tiles.outputs, f);
  }
  return false;
}

template <class F>
bool withConfig(const Product& product, const HopperTiles& tiles, F&& f) {
  if (product.fp8) return withRows<__nv_fp8_e4m3>(tiles, f);
  if (product.elem == Elem::F16) return withRows<__half>(tiles, f);
  return withRows<__nv_bfloat16>(tiles, f);
}

}  // namespace

std::string describe(const HopperTiles& tiles) {
  std::string text = std::to_string(tiles.outputs) + " x " + std::to_string(tiles.rows);
  if (tiles.splits > 1) text += ", k in " + std::to_string(tiles.splits);
  return text;
}

std::vector<HopperTiles> hopperTiles(const Product& product, int rows) {
  std::vector<HopperTiles> list;
  const int size = product.fp8 ? 1 : 2;
  const bool aligned = product.alignment == 16 && product.n % 8 == 0 && product.k * size % 16 == 0 &&
                       product.xStride * size % 16 == 0 && product.residualStride % 8 == 0 &&
                       product.outStride % 8 == 0;
  if (product.elem == Elem::F32 || !aligned || rows > kHopperMaxRows) return list;
  const int steps = static_cast<int>(divideUp(product.k * size, kTileWidth));
  for (int tile : {16, 32, 64, 128, 192, 256}) {
    if (tile < 128 && tile * 4 < rows) continue;
    for (int outputs : {64, 128, 256}) {
      const bool fills = divideUp(product.n, outputs) >= multiprocessors();
      // Fewer rows than there are, where that makes blocks for more SMs: an SM takes in less of x.
      if (tile < std::min(rows, 128) && fills) continue;
      for (int splits : {1, 2, 4, 8}) {
        const HopperTiles tiles = {outputs, tile, splits};
        // Short parts are all ramp, and what has blocks for every SM need not be split.
        const bool enough = divideUp(product.n, outputs) * splits > 8 * multiprocessors();
        if (splits > 1 && (steps < 4 * splits || enough)) continue;
        bool canSplit = false;
        const auto look = [&](auto tag) { canSplit = decltype(tag)::Type::kSplits; };
        if (withConfig(product, tiles, look) && (splits == 1 || canSplit)) list.push_back(tiles);
      }
    }
    if (tile >= rows) break;
  }
  return list;
}

void hopperGemm(const Product& product, const ProductCall& call, const HopperTiles& tiles, int rows,
                cudaStream_t stream) {
  if (rows == 0) return;
  const bool found = withConfig(product, tiles, [&](auto tag) {
    launchTiles<typename decltype(tag)::Type>(product, call, tiles, rows, stream);
  });
  if (!found) throw CudaError("hopperGemm: no kernel for tiles of " + describe(tiles));
}

}  // namespace millrace::cuda
