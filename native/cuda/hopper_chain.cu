// Products that follow one another, in one kernel whose blocks are all there at once and wait for each
// other between products. A product is computed as in hopper_gemm.cu: outputs are the rows of wgmma, one
// warp keeps a ring of tiles filled, one or two warpgroups multiply. The weight of the next product is
// asked for while the blocks wait, as far as the ring has room. With two warpgroups and many rows each product is
// cut in the way that suits it.
#include "hopper_chain.h"

#include <algorithm>
#include <array>
#include <atomic>

#include "hopper_chain.cuh"
#include "launch.h"

namespace millrace::cuda {

using namespace hopper;
using namespace hopper::chain;

namespace {

constexpr int kPhaseBarrierBytes = 4 * 8 * kChainPhases;

template <int kRows_, int kWarpgroups_>
struct Config {
  using T = hopper::chain::T;
  static constexpr int kRows = kRows_;  // of x
  static constexpr int kWarpgroups = kWarpgroups_, kBlocks = 1;
  static constexpr int kOutputs = kWarpgroupOutputs * kWarpgroups;
  static constexpr int kAdders = kWarpgroup * kWarpgroups;
  static constexpr int kThreads = kAdders + kWarpgroup;
  static constexpr bool kHalved = kWarpgroups == 2 && kRows >= 64;
  using Parts = std::conditional_t<kHalved, Halved<Config>, Undivided<Config>>;
  // A product waits some 100 cycles for the one it adds to, so sums of some columns of k are kept apart.
  static constexpr int kSets = kRows <= 32 ? 4 : 1;
  // To tell other blocks of results takes two or three times as long while copies are on their way. Where
  // that is much of a phase, the last of the next weight is asked for only then.
  static constexpr bool kHolds = kRows <= 32;
  static constexpr int kWeightBytes = kOutputs * kTileWidth;
  static constexpr int kStageBytes = kWeightBytes + kRows * kTileWidth;
  // Sums, or results, on their way to where they are stored; not in the ring, which is full of what comes next.
  static constexpr int kHandedRows = kHalved ? std::max(kRows, 4 * partRowsOf(kRows / 2, 2)) : 4 * partRowsOf(kRows, 4);
  static constexpr int kHandedBytes = kHandedRows * kOutputs * (kHalved ? 2 : 4);
  // Of all rows, and of those that a last tile has past them.
  static constexpr int kScaleBytes = (kChainMaxRows + kRows) * 4;
  static constexpr int kSpareBytes = kRingBarrierBytes + kPhaseBarrierBytes + kHandedBytes + kScaleBytes +
                                     1024;  // alignment
  static constexpr int kStages =
      std::min(16, (kSharedOfSm - kSharedOfBlock - kSpareBytes) / kStageBytes);
  static constexpr int kSharedBytes = kStages * kStageBytes + kSpareBytes;
  static_assert(kStages >= 4);
};

// What other blocks send this one of their sums.
template <class P>
__device__ __forceinline__ int sentBytes(const Work& work, const Phase& phase) {
  const Share share = shareOf(work, phase);
  const int begin = share.split * phase.partRows, end = min(begin + phase.partRows, phase.tileRows);
  return (end - begin) * P::kOutputs * 4 * P::kTerms * (share.splits - P::kKeepsOwn);
}

// ---------------------------------------------------------------- the kernel

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1) hopperChainKernel(const __grid_constant__ Work work) {
#if defined(MILLRACE_HOPPER)
  uint8_t* const shared = alignedShared();
  Ring<C> ring(shared);
  // For each phase: what was stored before it is there to be read; the scales are; the other blocks'
  // sums are; the other blocks have been told of the results.
  const uint32_t entered = ring.behind(), scaled = entered + 8 * kChainPhases;
  const uint32_t summed = scaled + 8 * kChainPhases, told = summed + 8 * kChainPhases;
  float* const handed = reinterpret_cast<float*>(shared + Ring<C>::kBytes + kPhaseBarrierBytes);
  float* const scales = handed + C::kHandedBytes / 4;

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  constexpr int kCopier = C::kAdders / 32, kScalers = 3;  // warps behind those that multiply

  if (threadIdx.x == 0) {
    ring.init(C::kWarpgroups);
    for (int p = 0; p < work.count; p++) {
      barrierInit(entered + 8 * p, 1);
      barrierInit(told + 8 * p, 1);
      barrierInit(scaled + 8 * p, kScalers);
      barrierInit(summed + 8 * p, 1);
      barrierExpect(summed + 8 * p, sentBytes<typename C::Parts>(work, work.phases[p]));
    }
    barrierInitFence();
  }
  clusterMeet();  // nobody's barriers are written to before

  if (warp == kCopier) {
    if (lane == 0) {
      Ring<C> weightRing = ring, xRing = ring;  // the same, with a place for each
      bool took = false;  // whether this block had a part in the phase before
      for (int p = 0; p < work.count; p++) {
        prefetchMap(&work.phases[p].weight);
        prefetchMap(&work.phases[p].x);
      }
      for (int p = 0; p < work.count; p++) {
        const Phase& phase = work.phases[p];
        const Share share = shareOf(work, phase);
        const bool halves = C::kHalved && phase.cut == Cut::HalfK;
        const auto columnOf = [&](int step) { return (share.begin + step) * (kColumns << halves); };
        const auto copyWeight = [&](int step, int output) {
          weightRing.waitEmpty();
          weightRing.expect(phase.stageBytes);
          const uint32_t to = weightRing.at(), done = weightRing.full();
          const int column = columnOf(step);
          copyPairedTile(to, &phase.weight, column, output / 16, done);
          if (halves) copyPairedTile(to + C::kWeightBytes / 2, &phase.weight, column + kColumns, output / 16, done);
          weightRing.next();
        };
        const auto copyX = [&](int step, int row) {
          const uint32_t to = xRing.at() + C::kWeightBytes, done = xRing.full();
          const int column = columnOf(step);
          copyTile(to, &phase.x, column, row, done);
          if (halves) copyTile(to + C::kRows / 2 * kTileWidth, &phase.x, column + kColumns, row, done);
          xRing.next();
        };
        // The weight of its first tile does not wait for the other blocks.
        const bool taking = share.tile < phase.tiles;
        const Place firstPlace = placeOf(phase, share.tile);
        const int ahead = taking ? min(share.steps, C::kStages) : 0;
        for (int i = 0; i < ahead; i++) {
          if (C::kHolds && took && i == ahead * 3 / 4) barrierWait(told + 8 * (p - 1), 0);
          copyWeight(i, firstPlace.output);
        }
        took = taking;
        if (p == 0) waitForPrevious();
        if (!taking) continue;
        if (p > 0) awaitCount(work.counters + p - 1, work.phases[p - 1].arrivals);
        fenceGlobalForAsync();
        barrierArrive(entered + 8 * p);
        for (int tile = share.tile; tile < phase.tiles; tile += share.tilesAtOnce) {
          const bool first = tile == share.tile;
          const Place place = first ? firstPlace : placeOf(phase, tile);
          for (int i = 0; i < share.steps; i++) {
            if (!first || i >= ahead) copyWeight(i, place.output);
            copyX(i, place.row);
          }
        }
      }
    }
    __syncwarp();
  } else if (warp > kCopier) {
    // A lane a row.
    const int own = (warp - kCopier - 1) * 32 + lane;
    for (int p = 1; p < work.count; p++) {
      const Phase& phase = work.phases[p];
      const Share share = shareOf(work, phase);
      if (!phase.scaled || share.tile >= phase.tiles) continue;
      // Of the rows whose results this block stores: with more than one tile that may be any.
      const bool oneTile = share.tile + share.tilesAtOnce >= phase.tiles;
      const int begin = oneTile ? placeOf(phase, share.tile).row + share.split * phase.partRows : 0;
      const int end = oneTile ? min(begin + phase.partRows, work.rows) : work.rows;
      barrierWait(entered + 8 * p, 0);
#pragma unroll 1
      for (int row = begin + own; row < end; row += 32 * kScalers) {
        const float* squares = work.squares[(p - 1) % 2] + row;
        float sum = 0.0f;
#pragma unroll 1
        for (int i = 0; i < phase.parts; i += 8) {
#pragma unroll
          for (int j = 0; j < 8; j++) {
            if (i + j < phase.parts) sum += __ldcg(squares + (i + j) * kChainMaxRows);
          }
        }
        scales[row] = rsqrtf(sum * phase.perInput + phase.eps);
      }
      __syncwarp();
      if (lane == 0) barrierArrive(scaled + 8 * p);
    }
  } else {
    waitForPrevious();
    using P = typename C::Parts;
    float sums[C::kSets][1][C::kRows / 2];
    for (int p = 0; p < work.count; p++) {
      const Phase& phase = work.phases[p];
      const Share share = shareOf(work, phase);
      if (share.tile >= phase.tiles) continue;
      for (int tile = share.tile; tile < phase.tiles; tile += share.tilesAtOnce) {
        const Tile results = {placeOf(phase, tile), work, phase, share, tile == share.tile,
                              phase.scaled ? scales : nullptr, work.squares[p % 2]};
        Part<P> part(results);
        const Whole<C> whole(results);
        if constexpr (C::kHalved) {
          // Behind x of the first half of k is that of the second.
          const int half = phase.cut == Cut::HalfK ? threadIdx.x / kWarpgroup * P::kRows * kTileWidth : 0;
          if (phase.cut == Cut::Full) sumStages<C>(ring, share.steps, sums, C::kWeightBytes);
          else sumStages<P>(ring, share.steps, halfOf(sums), C::kWeightBytes + half);
        } else {
          sumStages<C>(ring, share.steps, sums, C::kWeightBytes);
        }
        barrierWait(entered + 8 * p, 0);
        if (Whole<C>::suits(results)) {
          if (results.scales) barrierWait(scaled + 8 * p, 0);
          whole.store(sums[0][0], reinterpret_cast<uint8_t*>(handed));
        } else if constexpr (C::kHalved) {
          finish<P>(halfOf(sums)[0], part, results, handed, summed + 8 * p, scaled + 8 * p);
        } else {
          finish<P>(sums[0], part, results, handed, summed + 8 * p, scaled + 8 * p);
        }
      }
      if (p + 1 == work.count) break;
      syncAdders<C::kAdders>();
      if (threadIdx.x == 0) {
        arriveAt(work.counters + p);
        barrierArrive(told + 8 * p);
      }
    }
  }
  __syncthreads();
  // The last block leaves the counters as it found them: nobody looks at them any more.
  if (threadIdx.x == 0 && atomicAdd(work.counters + kChainPhases, 1u) + 1 == gridDim.x) {
    for (int i = 0; i < kCounters; i++) work.counters[i] = 0;
  }
#endif
}

// ---------------------------------------------------------------- launching

// Clusters of so many blocks that the GPU has room for at once: those that wait for each other.
template <class C>
int clustersAtOnce(int cluster) {
  static std::array<std::atomic<int>, 9> known{};  // of a machine's GPUs, which are taken to be alike
  if (known.at(cluster) > 0) return known[cluster];
  int count = 0;
  allowShared<hopperChainKernel<C>>("hopperChain", C::kSharedBytes);
  const LaunchShape shape(dim3(cluster), cluster, C::kThreads, C::kSharedBytes);
  check(cudaOccupancyMaxActiveClusters(&count, hopperChainKernel<C>, &shape.config),
        "cudaOccupancyMaxActiveClusters");
  known[cluster] = count;
  return count;
}

// As many as there are blocks for, and no parts that are all ramp.
int splitShiftOf(int tiles, int steps, int most, int blocks) {
  int shift = 0;
  while (2 << shift <= most && tiles * (2 << shift) <= blocks && steps >= 4 << shift) shift++;
  return shift;
}

// Of a row, where the narrowest tiles have a sum each.
size_t squaresOf(int width) { return divideUp(width, kWarpgroupOutputs); }

// Sums that something is added to, or that are normed, are shared by as many blocks as there are. Others are
// cut so that a block copies the least.
template <class C>
Cut cutOf(const ChainPhase& phase, int rows, int blocks) {
  if (!C::kHalved) return Cut::Full;
  if (phase.residual || phase.normWeight) return Cut::HalfK;
  const auto copied = [&](int tileRows) {
    const int64_t tiles = divideUp(phase.n, C::kOutputs) * divideUp(rows, tileRows);
    return divideUp(tiles, blocks) * (C::kOutputs + tileRows);
  };
  return copied(C::kRows / 2) < copied(C::kRows) ? Cut::HalfRows : Cut::Full;
}

template <class C>
Work workOf(const Chain& chain, int rows, int cluster, int blocks) {
  using P = typename C::Parts;
  Work work = {};
  int widest = 0;
  for (int p = 0; p < chain.count; p++) {
    if (chain.phases[p].normWeight) widest = std::max(widest, chain.phases[p].n);
  }
  work.count = chain.count;
  work.rows = rows;
  work.cluster = cluster;
  work.counters = static_cast<unsigned int*>(chain.scratch);
  work.squares[0] = reinterpret_cast<float*>(static_cast<uint8_t*>(chain.scratch) + kCounterBytes);
  work.squares[1] = work.squares[0] + kChainMaxRows * squaresOf(widest);
  for (int p = 0; p < chain.count; p++) {
    const ChainPhase& from = chain.phases[p];
    Phase& to = work.phases[p];
    constexpr CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    to.cut = cutOf<C>(from, rows, blocks);
    const bool halves = to.cut == Cut::HalfK;
    to.tileRows = to.cut == Cut::Full ? C::kRows : C::kRows / 2;
    to.tileOutputs = halves ? kWarpgroupOutputs : C::kOutputs;
    to.stageBytes = (C::kOutputs + (halves ? C::kRows : to.tileRows)) * kTileWidth;
    to.rowTiles = static_cast<int>(divideUp(rows, to.tileRows));
    to.perRowTile = static_cast<unsigned int>(divideUp(int64_t{1} << 32, to.rowTiles));
    to.weight = pairedTileMap(type, sizeof(T), from.weight, from.k, from.n, to.tileOutputs,
                              from.gated ? Pairs::Halves : Pairs::Neighbors);
    to.x = tileMap(type, sizeof(T), from.x, from.k, rows, from.xStride, to.tileRows);
    to.columns = from.gated ? from.n / 2 : from.n;
    to.perInput = 1.0f / from.k;
    to.steps = static_cast<int>(divideUp(from.k, kColumns << halves));
    to.tiles = static_cast<int>(divideUp(from.n, to.tileOutputs)) * to.rowTiles;
    const int most = std::min(cluster, P::kMostTerms / P::kTerms);
    to.splitShift = C::kHalved && !halves ? 0 : splitShiftOf(to.tiles, to.steps, most, blocks);
    to.partRows = partRowsOf(to.tileRows, 1 << to.splitShift);
    to.arrivals = std::min(to.tiles << to.splitShift, blocks);
    to.parts = p > 0 ? static_cast<int>(divideUp(chain.phases[p - 1].n, work.phases[p - 1].tileOutputs)) : 0;
    to.gated = from.gated;
    to.scaled = from.scaled;
    to.eps = from.eps;
    to.bias = from.bias;
    to.normWeight = from.normWeight;
    to.residual = static_cast<const T*>(from.residual);
    to.out = static_cast<T*>(from.out);
    to.normed = from.normWeight ? static_cast<T*>(from.normed) : nullptr;
    to.residualStride = static_cast<int>(from.residualStride);
    to.outStride = static_cast<int>(from.outStride);
    to.normedStride = static_cast<int>(from.normedStride);
  }
  return work;
}

template <class C>
void launchChain(const Chain& chain, int rows, int cluster, cudaStream_t stream) {
  const int blocks = cluster * clustersAtOnce<C>(cluster);
  const Work work = workOf<C>(chain, rows, cluster, blocks);
  launchCluster("hopperChain", hopperChainKernel<C>, dim3(blocks), cluster, C::kThreads,
                C::kSharedBytes, stream, work);
}

// Calls f with the tag of the kernel of these tiles; false if there is none.
template <class F>
bool withConfig(const ChainTiles& tiles, F&& f) {
  const auto with = [&](auto rows) {
    constexpr int kRows = decltype(rows)::value;
    if (tiles.rows != kRows) return false;
    if constexpr (kRows < 128) {
      if (tiles.outputs == 64) return f(TypeTag<Config<kRows, 1>>{}), true;
    }
    if (tiles.outputs == 128) return f(TypeTag<Config<kRows, 2>>{}), true;
    return false;
  };
  return with(std::integral_constant<int, 16>{}) || with(std::integral_constant<int, 32>{}) ||
         with(std::integral_constant<int, 64>{}) || with(std::integral_constant<int, 80>{}) ||
         with(std::integral_constant<int, 96>{}) || with(std::integral_constant<int, 112>{}) ||
         with(std::integral_constant<int, 128>{});
}

bool aligned(const ChainPhase& phase) {
  const int columns = phase.gated ? phase.n / 2 : phase.n;
  return phase.n % 16 == 0 && packable(
      Elem::BF16,
      {phase.weight, phase.x, phase.bias, phase.residual, phase.out, phase.normWeight, phase.normed},
      {phase.n, columns, phase.k, phase.xStride, phase.residualStride, phase.outStride,
       phase.normedStride});
}

}  // namespace

size_t chainScratchBytes(int width) {
  return kCounterBytes + 2 * kChainMaxRows * squaresOf(width) * sizeof(float);
}

std::string describe(const ChainTiles& tiles) {
  return std::to_string(tiles.outputs) + " x " + std::to_string(tiles.rows) + ", clusters of " +
         std::to_string(tiles.cluster);
}

std::vector<ChainTiles> chainTiles(const Chain& chain, int rows) {
  std::vector<ChainTiles> list;
  if (rows > kChainMaxRows || !hopperAvailable()) return list;
  for (int p = 0; p < chain.count; p++) {
    const ChainPhase& phase = chain.phases[p];
    if (!aligned(phase)) return list;
    if (phase.scaled && (p == 0 || !chain.phases[p - 1].normWeight)) return list;
  }
  std::vector<int> wanted;  // the smallest that holds all rows, or the largest there is, and half of it
  int most = 16;
  while (most < std::min(rows, 128)) most *= 2;
  if (most > 16) wanted.push_back(most / 2);
  wanted.push_back(most);
  // Where that holds all rows, too, in as many tiles.
  for (int tile : {80, 96, 112}) {
    if (divideUp(rows, tile) == divideUp(rows, 128) && rows > 64) wanted.push_back(tile);
  }
  const auto propose = [&](const ChainTiles& tiles) {
    int clusters = 0;
    withConfig(tiles, [&](auto tag) { clusters = clustersAtOnce<typename decltype(tag)::Type>(tiles.cluster); });
    if (clusters > 0) list.push_back(tiles);
  };
  for (int tile : wanted) {
    for (int cluster : {4, 8}) {
      if (rows <= 128) propose({64, tile, cluster});
      if (tile < 64) propose({128, tile, cluster});
    }
    if (tile >= 64) propose({128, tile, 2});  // halved: no more than two blocks share a sum
  }
  return list;
}

void hopperChain(const Chain& chain, const ChainTiles& tiles, int rows, cudaStream_t stream) {
  if (rows == 0) return;
  const bool found = withConfig(tiles, [&](auto tag) {
    launchChain<typename decltype(tag)::Type>(chain, rows, tiles.cluster, stream);
  });
  if (!found) throw CudaError("hopperChain: no kernel for tiles of " + describe(tiles));
}

}  // namespace millrace::cuda
