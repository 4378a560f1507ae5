// What blocks of a chain of products say to each other, and the way of their sums to the results. C, a
// kernel's configuration, has what hopper_tiles.cuh wants, kAdders (threads that multiply), and kHalved: whether
// phases may be cut otherwise than into full tiles. P is a tile whose sums are shared: Undivided<C> or Halved<C>.
#pragma once
#include "hopper.cuh"
#include "hopper.h"
#include "hopper_chain.h"
#include "hopper_tiles.cuh"

namespace millrace::cuda::hopper::chain {

using T = __nv_bfloat16;
constexpr int kColumns = kTileWidth / sizeof(T);  // of k in a tile
// Blocks that have done with each phase, then blocks that have left.
constexpr int kCounters = kChainPhases + 1;
constexpr size_t kCounterBytes = 256;

// What a tile of a phase is: kOutputs x kRows; as many outputs of half the rows; or of half the rows 64 outputs, of
// which each of two warpgroups sums half of k.
enum class Cut { Full, HalfRows, HalfK };

struct Phase {
  CUtensorMap weight, x;
  Cut cut;
  int columns;    // of out
  float perInput;  // 1 / k
  int steps;      // of k, stages of the ring
  int stageBytes;
  int tileRows, tileOutputs;
  int rowTiles;
  unsigned int perRowTile;  // 2^32 / rowTiles, rounded up: a division takes 60 instructions
  int tiles;      // of results, row tiles of the same outputs one after the other
  int splitShift;  // 2 to this power blocks of a cluster share a sum over k
  int partRows;    // that a block finishes of a tile; the last may have less
  int arrivals;   // blocks that have a part in it
  int parts;      // sums of squares in a row of the phase before
  bool gated, scaled;
  float eps;
  const float *bias, *normWeight;
  const T* residual;
  T *out, *normed;
  int residualStride, outStride, normedStride;
};

struct Work {
  Phase phases[kChainPhases];
  int count, rows, cluster;  // cluster: a power of two
  unsigned int* counters;
  float* squares[2];  // [parts, kChainMaxRows], of phases in turn
};

// ---------------------------------------------------------------- between blocks

__device__ __forceinline__ void arriveAt(unsigned int* counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}
__device__ __forceinline__ void awaitCount(const unsigned int* counter, unsigned int count) {
  unsigned int seen;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
  } while (seen < count);
}
// The copy engine, too, reads what this thread has been told is stored in global memory.
__device__ __forceinline__ void fenceGlobalForAsync() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

__device__ __forceinline__ void storeWord(uint32_t address, uint32_t word) {
  asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(word) : "memory");
}

// ---------------------------------------------------------------- results

__device__ __forceinline__ Share shareOf(const Work& work, const Phase& phase) {
  Share share;
  const int shift = phase.splitShift;
  share.splits = 1 << shift;
  share.tile = blockIdx.x >> shift;
  share.tilesAtOnce = gridDim.x >> shift;
  share.split = blockIdx.x & (share.splits - 1);
  share.firstBlock = (blockIdx.x & (work.cluster - 1)) - share.split;
  share.begin = phase.steps * share.split >> shift;
  share.steps = (phase.steps * (share.split + 1) >> shift) - share.begin;
  return share;
}

struct Place {
  int row, output;
};
__device__ __forceinline__ Place placeOf(const Phase& phase, int tile) {
  const int outputs = phase.rowTiles == 1 ? tile : __umulhi(tile, phase.perRowTile);
  return {(tile - outputs * phase.rowTiles) * phase.tileRows, outputs * phase.tileOutputs};
}

// A tile's place in the results, and what its sums are to become.
struct Tile : Place {
  const Work& work;
  const Phase& phase;
  const Share& share;
  bool first;  // of the block's in this phase: nothing of another is read any more
  const float* scales;  // null: as they are
  float* squares;
  // Behind the rows that this block finishes.
  __device__ __forceinline__ int endOfPart() const {
    return min(row + min(phase.partRows * (share.split + 1), phase.tileRows), work.rows);
  }
  __device__ __forceinline__ float scaleOf(int row) const { return scales ? scales[row] : 1.0f; }
  // The first column of the results: a gate and its up are one.
  __device__ __forceinline__ int column() const { return phase.gated ? output / 2 : output; }
};

// Tiles whose sums are shared. kTerms: warpgroups whose sums are added; kMostTerms: with all blocks'.
template <class C>
struct Undivided : C {
  static constexpr int kTerms = 1, kMostTerms = C::kRows % 64 == 0 || C::kRows < 64 ? 8 : 4;
  static constexpr bool kKeepsOwn = false;
};

// Of Cut::HalfK, with up to two blocks.
template <class C>
struct Halved : C {
  static constexpr int kRows = C::kRows / 2, kOutputs = kWarpgroupOutputs;
  static constexpr int kTerms = 2, kMostTerms = 4;
  // Half of the sums are the block's own: these are not sent but stored.
  static constexpr bool kKeepsOwn = true;
};

// Of the rows of a tile each of some blocks finishes so many, the last what is left: whole eights, or a power of two.
constexpr int partRowsOf(int tileRows, int blocks) {
  const int part = tileRows / blocks;
  return part < 8 ? part : static_cast<int>(roundUp(part, 8));
}

// 2 to this power packs of eight outputs a tile has in a row.
template <class C>
constexpr int kPacksShift = C::kOutputs == 128 ? 4 : 3;

// A tile's outputs come in pairs, which are in rows of the weight's tile that are eight apart: what a thread has of
// the products. Neighbors, or a gate and its up. So two sums lie side by side where they are added.

// Which of the warpgroups that sum the same outputs this thread's is.
template <class P>
__device__ __forceinline__ int termOf() {
  return P::kTerms == 1 ? 0 : threadIdx.x / kWarpgroup;
}

// Where a lane's pair of a row lies.
template <class P>
__device__ __forceinline__ int pairAt(int row) {
  return sumsAt<P>(row, threadIdx.x % (2 * P::kOutputs) / 32 * 16 + threadIdx.x % 32 / 4 * 2);
}

// Sums of a tile that this block has alone.
template <class P>
__device__ __forceinline__ void keepPairs(const float (&sums)[P::kRows / 2], float* to) {
  const int row = threadIdx.x % 4 * 2;
  to += termOf<P>() * P::kRows * P::kOutputs;
  float* const at[2] = {to + pairAt<P>(row), to + pairAt<P>(row + 1)};
#pragma unroll
  for (int eight = 0; eight < P::kRows; eight += 8) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const float* own = sums + eight / 2 + i;
      *reinterpret_cast<float2*>(at[i] + eight * P::kOutputs) = make_float2(own[0], own[2]);
    }
  }
}

// Blocks that share a sum: each finishes a part of the rows, for which all send it their sums; `summed` counts them.
// They lie one warpgroup's behind the other's, in the order of blocks: results do not depend on who came when.
template <class P>
class Sharing {
 public:
  __device__ __forceinline__ Sharing(float* to, uint32_t summed, const Share& share, int part)
      : to_(to),
        here_(static_cast<uint32_t>(__cvta_generic_to_shared(to))),
        summed_(summed - here_),
        share_(share),
        term_(share.split * P::kTerms + termOf<P>()),
        part_(part),
        at_{pairAt<P>(firstRow(0)), pairAt<P>(firstRow(1))} {}

  __device__ __forceinline__ void send(const float (&sums)[P::kRows / 2]) const {
#pragma unroll
    for (int eight = 0; eight < P::kRows; eight += 8) {
      const int of = blockOf(eight);
      const uint32_t there = blockAddress(here_, share_.firstBlock + of);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int at = at_[i] + (part_ >= 8 ? (eight - of * part_) * P::kOutputs : 0);
        const float* own = sums + eight / 2 + i;
        if (P::kKeepsOwn && of == share_.split) {
          *reinterpret_cast<float2*>(to_ + at) = make_float2(own[0], own[2]);
        } else {
          storeThere(there + 4 * at, own[0], own[2], there + summed_);
        }
      }
    }
  }

 private:
  // Of the lane's two rows of eight, from where this warpgroup's sums begin.
  __device__ __forceinline__ int firstRow(int i) const {
    const int row = threadIdx.x % 4 * 2 + i;
    return term_ * part_ + (part_ < 8 ? row & (part_ - 1) : row);
  }

  // The block that finishes the lane's rows of eight. Parts of less than eight rows divide eight; of whole eights all
  // lanes send to the same block.
  __device__ __forceinline__ int blockOf(int eight) const {
    if (part_ < 8) return (eight + static_cast<int>(threadIdx.x) % 4 * 2) * share_.splits / P::kRows;
    if ((P::kRows & (P::kRows - 1)) == 0) return eight * share_.splits / P::kRows;
    int of = 0;
#pragma unroll
    for (int block = 1; block < P::kMostTerms / P::kTerms; block++) of += eight >= block * part_;
    return of;
  }

  float* const to_;
  const uint32_t here_, summed_;  // the barrier from there on
  const Share& share_;
  const int term_, part_;
  const int at_[2];
};

// A thread's share of a block's part of a tile: in each round N results of a row, always of the same columns.
// One code in a loop for every way to divide a product: attention drives a chain's instructions out of the
// caches between one layer and the next, and those that are executed once are waited for.
template <class P>
class Part {
 public:
  // Biases and the norm's weights are on their way from here on.
  __device__ __forceinline__ explicit Part(const Tile& tile)
      : tile_(tile),
        rows_(tile.phase.partRows),
        lanesShift_(kLanesShift - tile.phase.gated),
        column_((turnedThread(lanesShift_) & ((1 << lanesShift_) - 1)) * N),
        output_(tile.column() + column_),
        first_(turnedThread(lanesShift_) >> lanesShift_),
        step_(P::kAdders >> lanesShift_),
        row_(tile.row + tile.share.split * rows_ + first_),
        rowsHere_(output_ < tile.phase.columns ? tile.endOfPart() - row_ : 0) {
    const Phase& phase = tile.phase;
#pragma unroll
    for (int i = 0; i < N; i++) bias_[i] = more_[i] = 0.0f;
    if (output_ >= phase.columns) return;
    const float* const ofUps = phase.bias ? phase.bias + phase.columns : nullptr;
    const float* const more = phase.gated ? ofUps : phase.normWeight;
    if (phase.bias) loadFloats<N>(phase.bias + output_, bias_);
    if (more) loadFloats<N>(more + output_, more_);
  }

  // And these, once what other blocks have stored is there.
  __device__ __forceinline__ void loadResiduals() {
#pragma unroll
    for (int round = 0; round < 2; round++) residual_[round] = residualOf(round * step_);
  }

  __device__ __forceinline__ void store(const float* sums) {
    const Phase& phase = tile_.phase;
    float* const squaresOfTile = tile_.squares + tile_.output / P::kOutputs * kChainMaxRows;
#pragma unroll 1
    for (int at = 0; __any_sync(~0u, at < rowsHere_); at += step_) {
      const bool there = at < rowsHere_;
      const int inPart = min(first_ + at, rows_ - 1);  // lanes without a row read another's
      const int row = min(row_ + at, tile_.work.rows - 1);
      const float scale = tile_.scaleOf(row);
      float values[N] = {}, others[N];
      load(sums, inPart, phase.gated ? 2 * column_ : column_, phase.gated ? 2 : 1, others, values);
      if (phase.gated) {
        float pairs[2 * N];
#pragma unroll
        for (int i = 0; i < N; i++) pairs[i] = others[i], pairs[N + i] = values[i];
#pragma unroll
        for (int i = 0; i < N; i++) {
          values[i] = silu<T>(pairs[2 * i] * scale + bias_[i]) * (pairs[2 * i + 1] * scale + more_[i]);
        }
      } else {
        unpack<T, N>(residual_[0], others);  // zeros without a residual
        residual_[0] = residual_[1];
        residual_[1] = residualOf(at + 2 * step_);
#pragma unroll
        for (int i = 0; i < N; i++) values[i] = values[i] * scale + bias_[i] + others[i];
      }
      const Raw<T, N> rounded = pack<T, N>(values);
      if (there) storeRaw<T, N>(phase.out + int64_t{row} * phase.outStride + output_, rounded);
      if (!phase.normed) continue;
      unpack<T, N>(rounded, values);
      float squares = 0.0f;
#pragma unroll
      for (int i = 0; i < N; i++) {
        squares += values[i] * values[i];
        values[i] *= more_[i];
      }
      if (!there) squares = 0.0f;
      else storeRaw<T, N>(phase.normed + int64_t{row} * phase.normedStride + output_, pack<T, N>(values));
#pragma unroll
      for (int apart = P::kOutputs / N / 2; apart > 0; apart /= 2) {
        squares += __shfl_xor_sync(~0u, squares, N == 8 && apart == 4 ? 1 << kLanesShift : apart);
      }
      if (there && column_ == 0) squaresOfTile[row] = squares;
    }
  }

 private:
  // Where there are few rows, they are shared by more threads.
  static constexpr int N = P::kRows <= 32 ? 4 : 8;
  static_assert(P::kOutputs == 64 || P::kOutputs == 128);
  static constexpr int kLanesShift = kPacksShift<P> + (N == 4);

  // Eight lanes that read 16 bytes each at a time, of 32 that belong to each, have all banks if they are of two rows,
  // one even and one odd (sumsAt): so lanes 4 .. 7 change places with the first of the next row's.
  static __device__ __forceinline__ int turnedThread(int lanesShift) {
    const int thread = threadIdx.x;
    if (N < 8) return thread;
    const int differs = (thread >> 2 ^ thread >> lanesShift) & 1;
    return thread ^ (differs << 2 | differs << lanesShift);
  }

  // Past this SM's first cache: other blocks may have written them since the kernel began.
  __device__ __forceinline__ Raw<T, N> residualOf(int at) const {
    const Phase& phase = tile_.phase;
    if (!phase.residual || at >= rowsHere_) return {};
    const T* from = phase.residual + int64_t{row_ + at} * phase.residualStride + output_;
    return __ldcg(reinterpret_cast<const Raw<T, N>*>(from));
  }
  // `times` N sums that follow one another, by one code; the last to `values`, those before to `others`. All
  // terms are asked for before the first is added.
  __device__ __forceinline__ void load(const float* sums, int row, int at, int times, float (&others)[N],
                                       float (&values)[N]) const {
    const int terms = tile_.share.splits * P::kTerms;
#pragma unroll 1
    for (int time = 0; time < times; time++) {
      float of[P::kMostTerms][N];
#pragma unroll
      for (int term = 0; term < P::kMostTerms; term++) {
#pragma unroll
        for (int j = 0; j < N; j += 4) {
          float four[4] = {};
          if (term < terms) {
            loadFloats<4>(sums + sumsAt<P>(term * rows_ + row, at + time * N + j), four);
          }
#pragma unroll
          for (int i = 0; i < 4; i++) of[term][j + i] = four[i];
        }
      }
#pragma unroll
      for (int i = 0; i < N; i++) {
        others[i] = values[i];
        values[i] = of[0][i];
      }
#pragma unroll
      for (int term = 1; term < P::kMostTerms; term++) {
#pragma unroll
        for (int i = 0; i < N; i++) values[i] += of[term][i];
      }
    }
  }

  const Tile& tile_;
  const int rows_, lanesShift_;  // of the part; 2 to this power lanes have a row
  const int column_, output_, first_, step_, row_;
  const int rowsHere_;  // of this thread's and those behind it
  float bias_[N], more_[N];  // more: the ups' biases, or the weights of the norm
  Raw<T, N> residual_[2];    // of the next rounds
};

// A whole tile's results of a product that nothing is added to but biases. Sums become results where they are,
// in registers, and are turned around as such: half of the bytes.
template <class C>
class Whole {
 public:
  static __device__ __forceinline__ bool suits(const Tile& tile) {
    if (C::kHalved) return tile.phase.cut != Cut::HalfK;
    return tile.share.splits == 1 && !tile.phase.residual && !tile.phase.normed;
  }

  // Biases are on their way from here on.
  __device__ __forceinline__ explicit Whole(const Tile& tile) : tile_(tile) {
    const Phase& phase = tile.phase;
    bias_[0] = bias_[1] = 0.0f;
    if (!phase.bias) return;
    const int pair = threadIdx.x / 32 * 8 + threadIdx.x % 32 / 4;  // of the tile
    const int first = tile.column() + (phase.gated ? pair : 2 * pair);
    if (first >= phase.columns) return;
    bias_[0] = phase.bias[first];
    bias_[1] = phase.bias[first + (phase.gated ? phase.columns : 1)];
  }

  __device__ __forceinline__ void store(const float (&sums)[C::kRows / 2], uint8_t* results) const {
    if (!tile_.first) syncAdders<C::kAdders>();
    if (tile_.phase.gated) turn<true>(sums, results);
    else turn<false>(sums, results);
    syncAdders<C::kAdders>();
    copyOut(results);
  }

 private:
  // Where eight outputs of a row are, of 2 to the power of `shift` such packs: eight rows' are in banks of
  // their own.
  static __device__ __forceinline__ int packAt(int shift, int row, int pack) {
    const int turn = shift >= 3 ? row & 7 : row >> (3 - shift) & ((1 << shift) - 1);
    return ((row << shift) + (pack ^ turn)) * 16;
  }

  template <bool kGated>
  __device__ __forceinline__ void turn(const float (&sums)[C::kRows / 2], uint8_t* results) const {
    constexpr int kShift = kPacksShift<C> - kGated;
    constexpr int kEightRows = (8 << kShift) * 16;  // bytes
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    const uint32_t here = static_cast<uint32_t>(__cvta_generic_to_shared(results));
    // Of gates and ups one result a row: a warp's eight make a pack. Of neighbors two, and two packs. Eight rows
    // on are as far in shared memory, as turns repeat.
    const uint32_t turned = here + packAt(kShift, lane % 16, warp);
    const uint32_t pairs[2] = {here + packAt(kShift, 2 * t, 2 * warp + g / 4) + g % 4 * 4,
                               here + packAt(kShift, 2 * t + 1, 2 * warp + g / 4) + g % 4 * 4};
    const float* scales = tile_.scales ? tile_.scales + tile_.row + t * 2 : nullptr;
#pragma unroll
    for (int first = 0; first < C::kRows; first += 16) {
      if (C::kHalved && first * 2 >= C::kRows && tile_.phase.cut == Cut::HalfRows) break;
      uint32_t packed[2];
#pragma unroll
      for (int eight = 0; eight < 2; eight++) {
        const float* own = sums + first / 2 + eight * 4;
        float2 scale = {1.0f, 1.0f};
        if (scales) scale = *reinterpret_cast<const float2*>(scales + first + eight * 8);
        const float a = own[0] * scale.x + bias_[0], b = own[1] * scale.y + bias_[0];
        const float c = own[2] * scale.x + bias_[1], d = own[3] * scale.y + bias_[1];
        if constexpr (kGated) {
          packed[eight] = Half2<T>::pack(silu<T>(a) * c, silu<T>(b) * d);
        } else {
          const int on = (first / 8 + eight) * kEightRows;
          storeWord(pairs[0] + on, Half2<T>::pack(a, c));
          storeWord(pairs[1] + on, Half2<T>::pack(b, d));
        }
      }
      if constexpr (kGated) storeTurned(turned + first / 8 * kEightRows, packed);
    }
  }

  // Of every row a thread has the same pack, and rows a multiple of eight apart: so their places are, too.
  __device__ __forceinline__ void copyOut(const uint8_t* results) const {
    const Phase& phase = tile_.phase;
    const int shift = kPacksShift<C> - phase.gated;
    const int pack = threadIdx.x & ((1 << shift) - 1), first = threadIdx.x >> shift, step = C::kAdders >> shift;
    const int column = tile_.column() + pack * 8;
    const int end = column < phase.columns ? min(tile_.phase.tileRows, tile_.work.rows - tile_.row) : 0;
    const uint8_t* from = results + packAt(shift, first, pack);
    T* to = phase.out + int64_t{tile_.row + first} * phase.outStride + column;
#pragma unroll 2
    for (int row = first; row < end; row += step) {
      storeRaw<T, 8>(to, *reinterpret_cast<const uint4*>(from));
      from += C::kAdders * 16;
      to += step * phase.outStride;
    }
  }

  const Tile& tile_;
  float bias_[2];  // of gate and up, or of a thread's two outputs
};

// The half of the registers that sums of half a tile are in.
template <int N>
__device__ __forceinline__ float (&halfOf(float (&sums)[1][1][N]))[1][1][N / 2] {
  return reinterpret_cast<float(&)[1][1][N / 2]>(sums);
}

// Sums of a tile that blocks may share become results.
template <class P>
__device__ __forceinline__ void finish(const float (&sums)[1][P::kRows / 2], Part<P>& part, const Tile& tile,
                                       float* handed, uint32_t summed, uint32_t scaled) {
  part.loadResiduals();
  if (tile.share.splits == 1) {
    if (!tile.first) syncAdders<P::kAdders>();
    keepPairs<P>(sums[0], handed);
    syncAdders<P::kAdders>();
  } else {
    Sharing<P>(handed, summed, tile.share, tile.phase.partRows).send(sums[0]);
    if (P::kKeepsOwn) syncAdders<P::kAdders>();
    barrierWait(summed, 0);
  }
  if (tile.scales) barrierWait(scaled, 0);
  part.store(handed);
}

}  // namespace millrace::cuda::hopper::chain
