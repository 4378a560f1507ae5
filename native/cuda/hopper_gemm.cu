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

constexpr int kWidth = kTileWidth;  // of k in a tile
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
  static constexpr int kOutputs = 64 * kWarpgroups * kBlocks;
  static constexpr int kColumns = kWidth / sizeof(T);
  // The tensor cores add products of e4m3 with some 14 bits (DeepSeek-AI 2024, arXiv 2412.19437, section
  // 3.3.2), so sums over kChain tiles are added to each other in float32.
  static constexpr bool kPromotes = sizeof(T) == 1;
  static constexpr int kSums = sumsOf<T>(kRows, kBlocks);
  static constexpr int kWeightBytes = kOutputs * kWidth;
  static constexpr int kStageBytes = kWeightBytes + kRows * kWidth;
  static constexpr int kKeptRows = std::min(kRows, 64 / kBlocks);
  static constexpr int kSpareBytes = kKeptRows * kOutputs * 4 + kRingBarrierBytes + 1024;  // alignment
  static constexpr int stages(int blocksOfSm) {
    return std::min(16, (kSharedOfSm / blocksOfSm - kSharedOfBlock - kSpareBytes) / kStageBytes);
  }
  static constexpr int kBlocksOfSm = kSums <= 64 && stages(2) >= 3 ? 2 : 1;
  static constexpr int kStages = stages(kBlocksOfSm);
  static constexpr int kSharedBytes = kStages * kStageBytes + kSpareBytes;
  static_assert(kStages >= 3 && 16 * kStages <= 256);
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
  using T = typename C::T;
  constexpr int kRows = C::kRows, kStages = C::kStages;
  extern __shared__ uint8_t raw[];
  uint8_t* const shared = raw + (-static_cast<uint32_t>(__cvta_generic_to_shared(raw)) & 1023);
  const uint32_t ring = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  const uint32_t full = ring + kStages * C::kStageBytes, empty = full + 8 * kStages;
  const uint32_t summed = full + kRingBarrierBytes - 16;
  float* const kept = reinterpret_cast<float*>(shared + kStages * C::kStageBytes + kRingBarrierBytes);

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int split = blockIdx.x % work.splits;
  const int firstTile = blockIdx.x / work.splits, tilesAtOnce = gridDim.x / work.splits;
  const int begin = work.steps * split / work.splits;
  const int count = work.steps * (split + 1) / work.splits - begin;
  const auto rowOf = [&](int tile) { return tile % work.rowTiles * kRows; };
  const auto outputOf = [&](int tile) { return tile / work.rowTiles * C::kOutputs; };

  startRing<kStages>(full, empty, C::kWarpgroups, summed, C::kRows * C::kOutputs * 4, work.splits);

  if (warp >= 4 * C::kWarpgroups) {
    if constexpr (C::kTrades) giveRegisters<kCopierRegisters>();
    if (warp == 4 * C::kWarpgroups) {
      const auto copyWeight = [&](int stage, int step, int output) {
        barrierExpect(full + 8 * stage, C::kStageBytes);
        copyTile(ring + stage * C::kStageBytes, &weights, (begin + step) * C::kColumns, output,
                 full + 8 * stage);
      };
      int ahead = work.early ? min(count, kStages) : 0;
      if (lane == 0) {
        prefetchMap(&weights);
        prefetchMap(&activations);
        const int output = outputOf(firstTile);
        for (int i = 0; i < ahead; i++) copyWeight(i, i, output);
      }
      waitForPrevious();
      if (lane == 0) {
        RingPlace<kStages> place;
        bool again = false;  // whether this stage has been in use
        for (int tile = firstTile; tile < work.tiles; tile += tilesAtOnce) {
          const int row = rowOf(tile), output = outputOf(tile);
          for (int i = 0; i < count; i++) {
            const int stage = place.stage;
            if (again) barrierWait(empty + 8 * stage, place.parity ^ 1);
            if (ahead > 0) {
              ahead--;
            } else {
              copyWeight(stage, i, output);
            }
            copyTile(ring + stage * C::kStageBytes + C::kWeightBytes, &activations,
                     (begin + i) * C::kColumns, row, full + 8 * stage);
            place.next();
            again = again || place.stage == 0;
          }
        }
      }
      __syncwarp();
    }
    if (work.splits > 1) clusterMeet();
  } else {
    if constexpr (C::kTrades) takeRegisters<kAdderRegisters>();
    waitForPrevious();
    const int group = warp / 4;
    using Sums = float[C::kBlocks][kRows / 2];
    Sums sums;
    RingPlace<kStages> place;
    // Adds the next tile of k to the sums, or starts them with it. Returns its stage.
    const auto multiply = [&](Sums& to, bool starts) {
      const int used = place.stage;
      const uint32_t stage = ring + used * C::kStageBytes;
      barrierWait(full + 8 * used, place.parity);
      place.next();
      productsBegin();
#pragma unroll
      for (int block = 0; block < C::kBlocks; block++) {
        const uint64_t a = rowsOf128Bytes(stage + (group * C::kBlocks + block) * 64 * kWidth);
        const uint64_t b = rowsOf128Bytes(stage + C::kWeightBytes);
#pragma unroll
        for (int k = 0; k < kWidth / 32; k++) {  // 32 bytes on: 2 in a descriptor's address
          Products<T, kRows>::add(to[block], a + 2 * k, b + 2 * k, !starts || k > 0);
        }
      }
      productsCommit();
      return used;
    };
    // The stage may be filled again.
    const auto release = [&](int stage) {
      if (threadIdx.x % kWarpgroup == 0) barrierArrive(empty + 8 * stage);
    };
    for (int tile = firstTile; tile < work.tiles; tile += tilesAtOnce) {
      if constexpr (C::kPromotes) {
        // Chains end in the round of the loop they began in: of sums that are under way from one
        // round to the next the compiler loses track, and waits for each product (ptxas C7514).
        Sums chain;
#pragma unroll
        for (int block = 0; block < C::kBlocks; block++) {
#pragma unroll
          for (int j = 0; j < kRows / 2; j++) sums[block][j] = 0.0f;
        }
        const auto addChain = [&](int last) {
          productsWait<0>();
          release(last);
#pragma unroll
          for (int block = 0; block < C::kBlocks; block++) {
            holdRegisters(chain[block]);
#pragma unroll
            for (int j = 0; j < kRows / 2; j++) sums[block][j] += chain[block][j];
          }
        };
        int i = 0;
        for (; i + kChain <= count; i += kChain) {
          int last = multiply(chain, true);
#pragma unroll
          for (int j = 1; j < kChain; j++) {
            const int used = multiply(chain, false);
            productsWait<1>();
            release(last);
            last = used;
          }
          addChain(last);
        }
        for (; i < count; i++) addChain(multiply(chain, true));
      } else {
        int last = multiply(sums, true);
        for (int i = 1; i < count; i++) {
          const int used = multiply(sums, false);
          productsWait<1>();
          release(last);
          last = used;
        }
        productsWait<0>();
        release(last);
      }
#pragma unroll
      for (int block = 0; block < C::kBlocks; block++) holdRegisters(sums[block]);
      if (work.splits == 1) {
        storeSums<C>(sums, kept, work, results, rowOf(tile), outputOf(tile));
      }
    }
    if constexpr (C::kSplits) {
      if (work.splits > 1) {
        storeSharedSums<C>(sums, shared, summed, work, results, split, rowOf(firstTile), outputOf(firstTile));
      }
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
  static const bool ready = [] {
    check(cudaFuncSetAttribute(hopperGemmKernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               C::kSharedBytes),
          "hopperGemm");
    return true;
  }();
  static_cast<void>(ready);
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
                           product.floatOut ? Elem::F32 : product.elem};
  launchCluster("hopperGemm", hopperGemmKernel<C>, dim3(blocks), tiles.splits, false,
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
  const int steps = static_cast<int>(divideUp(product.k * size, kWidth));
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
