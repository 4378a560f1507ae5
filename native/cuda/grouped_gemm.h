// The grouped matrix product of mixture of experts on tensor cores: rows sorted by expert, each tile
// of rows times the matrix of its expert. Included by moe.cu alone.
#pragma once
#include "elements.h"
#include "launch.h"
#include "tensor_core.cuh"

namespace millrace::cuda {

// Consecutive sorted rows of one expert.
struct RowTile {
  int expert, first, count;
};

struct GroupedGemm {
  const void* a;          // row source[p] (source null: p) of [.., k]
  const int* source;
  const void* b;          // [experts, n or 2n, k]
  void* out;              // [positions, n]
  const RowTile* tiles;
  const int* tileCount;
  int64_t aStride;
  int n, k;               // both multiples of 8
};

// A tile of M rows and N rows of the matrix; kGateUp: of N / 2 gates and their N / 2 ups. Warps are
// WM x WN x WK; those along WK take turns at the steps of 16 in K and are summed at the end.
template <int M, int N, int K, int WM, int WN, int WK, int Stages>
struct GemmTile {
  static constexpr int kM = M, kN = N, kK = K, kWm = WM, kWn = WN, kWk = WK, kStages = Stages;
  static constexpr int kThreads = WM * WN * WK * 32;
  static constexpr int kStageElements = (M + N) * K;
  static constexpr int kRowTiles = M / WM / 16;    // m16 tiles of a warp
  static constexpr int kColumnTiles = N / WN / 8;  // n8 tiles of a warp, in pairs
  static constexpr int kSharedBytes = Stages * kStageElements * 2;
  static_assert(kColumnTiles % 2 == 0 && kRowTiles >= 1 && K % (16 * WK) == 0);
  static_assert((WK - 1) * WM * WN * 32 * kRowTiles * kColumnTiles * 16 <= kSharedBytes);
};

__device__ __forceinline__ unsigned sharedAddress(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// out = a * b^T, or with kGateUp silu(a * gate^T) * (a * up^T), for the rows of tile blockIdx.x and
// one tile of columns. Tiles of rows of one expert run side by side, so that its matrix comes from
// memory once. In shared memory the 16-byte chunks of a row are permuted by the row (xor), so that
// eight rows of a column of chunks lie in different banks.
template <class T, class Tile, bool kGateUp>
__global__ void __launch_bounds__(Tile::kThreads) groupedGemm(GroupedGemm p) {
  constexpr int M = Tile::kM, N = Tile::kN, K = Tile::kK, kStages = Tile::kStages;
  constexpr int kChunks = K / 8;                             // of a row
  constexpr int kRowsAtOnce = Tile::kThreads / kChunks;      // rows that all threads copy in one go
  constexpr int kACopies = M / kRowsAtOnce, kBCopies = N / kRowsAtOnce;
  constexpr int kRowTiles = Tile::kRowTiles, kColumnTiles = Tile::kColumnTiles;
  static_assert(M % kRowsAtOnce == 0 && N % kRowsAtOnce == 0);
  extern __shared__ __align__(128) unsigned char shared[];

  waitForPrevious();
  if (blockIdx.x >= *p.tileCount) return;  // the grid is that of the worst routing
  const RowTile tile = p.tiles[blockIdx.x];
  const int firstColumn = blockIdx.y * (kGateUp ? N / 2 : N);

  // What this thread copies: chunk `chunk` of rows `copyRow + j * kRowsAtOnce`.
  const int chunk = threadIdx.x % kChunks, copyRow = threadIdx.x / kChunks;
  const T* aRows[kACopies];
  bool aValid[kACopies];
#pragma unroll
  for (int j = 0; j < kACopies; j++) {
    const int row = copyRow + j * kRowsAtOnce;
    aValid[j] = row < tile.count;
    const int position = tile.first + (aValid[j] ? row : 0);
    const int64_t from = p.source ? p.source[position] : position;
    aRows[j] = static_cast<const T*>(p.a) + from * p.aStride + chunk * 8;
  }
  // Gates and ups alternate in groups of 8 rows: the two n8 tiles of a pair are gate and up of the
  // same columns, in the same thread.
  const T* matrix = static_cast<const T*>(p.b) +
                    int64_t(tile.expert) * (kGateUp ? 2 : 1) * p.n * p.k + chunk * 8;
  int bRows[kBCopies];  // of the expert's matrix, -1 beyond its end
#pragma unroll
  for (int j = 0; j < kBCopies; j++) {
    const int row = copyRow + j * kRowsAtOnce;
    const int column = kGateUp ? firstColumn + row / 16 * 8 + row % 8 : firstColumn + row;
    const bool isUp = kGateUp && row / 8 % 2 == 1;
    bRows[j] = column < p.n ? column + (isUp ? p.n : 0) : -1;
  }
  const unsigned base = sharedAddress(shared);
  const auto copyStage = [&](int step) {
    const unsigned stage = base + (step % kStages) * Tile::kStageElements * 2;
    const bool inside = step * K + chunk * 8 < p.k;
#pragma unroll
    for (int j = 0; j < kACopies; j++) {
      const int row = copyRow + j * kRowsAtOnce;
      const bool valid = inside && aValid[j];
      copyAsync16Or0(stage + (row * kChunks + (chunk ^ row % 8)) * 16,
                     valid ? aRows[j] + step * K : static_cast<const T*>(p.a), valid);
    }
#pragma unroll
    for (int j = 0; j < kBCopies; j++) {
      const int row = copyRow + j * kRowsAtOnce;
      const bool valid = inside && bRows[j] >= 0;
      copyAsync16Or0(stage + ((M + row) * kChunks + (chunk ^ row % 8)) * 16,
                     valid ? matrix + int64_t(bRows[j]) * p.k + step * K : static_cast<const T*>(p.b),
                     valid);
    }
  };

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warpM = warp % Tile::kWm, warpN = warp / Tile::kWm % Tile::kWn;
  const int warpK = warp / (Tile::kWm * Tile::kWn);
  const int aRow = warpM * kRowTiles * 16 + lane % 16;
  const int bRow = warpN * kColumnTiles * 8 + lane / 16 * 8 + lane % 8;
  float sums[kRowTiles][kColumnTiles][4] = {};

  const int steps = (p.k + K - 1) / K;
#pragma unroll
  for (int s = 0; s < kStages - 1; s++) {
    if (s < steps) copyStage(s);
    copyAsyncCommit();
  }
  for (int step = 0; step < steps; step++) {
    copyAsyncWait<kStages - 2>();
    __syncthreads();  // this step has arrived, and the stage filled next has been read by all
    if (step + kStages - 1 < steps) copyStage(step + kStages - 1);
    copyAsyncCommit();
    const unsigned stage = base + (step % kStages) * Tile::kStageElements * 2;
#pragma unroll
    for (int part = 0; part < K / 16 / Tile::kWk; part++) {
      const int slice = part * Tile::kWk + warpK;
      unsigned a[kRowTiles][4];
#pragma unroll
      for (int m = 0; m < kRowTiles; m++) {
        const int row = aRow + m * 16;
        ldmatrix4(a[m], stage + (row * kChunks + ((2 * slice + lane / 16) ^ row % 8)) * 16);
      }
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += 2) {
        const int row = bRow + n * 8;
        unsigned b[4];
        ldmatrix4(
            b, stage + ((M + row) * kChunks + ((2 * slice + lane / 8 % 2) ^ row % 8)) * 16);
#pragma unroll
        for (int m = 0; m < kRowTiles; m++) {
          Half2<T>::mma(sums[m][n], a[m], b[0], b[1]);
          Half2<T>::mma(sums[m][n + 1], a[m], b[2], b[3]);
        }
      }
    }
  }

  if constexpr (Tile::kWk > 1) {
    copyAsyncWait<0>();
    __syncthreads();
    // [share of K][warp][m][n][lane]: neighbors in a warp are neighbors in memory.
    float4* partial = reinterpret_cast<float4*>(shared);
    constexpr int kWarps = Tile::kWm * Tile::kWn, kTiles = kRowTiles * kColumnTiles;
    const int place = (warp % kWarps) * kTiles * 32 + lane;
    if (warpK > 0) {
#pragma unroll
      for (int m = 0; m < kRowTiles; m++) {
#pragma unroll
        for (int n = 0; n < kColumnTiles; n++) {
          const float(&c)[4] = sums[m][n];
          partial[(warpK - 1) * kWarps * kTiles * 32 + place + (m * kColumnTiles + n) * 32] =
              make_float4(c[0], c[1], c[2], c[3]);
        }
      }
    }
    __syncthreads();
    if (warpK > 0) return;
#pragma unroll
    for (int m = 0; m < kRowTiles; m++) {
#pragma unroll
      for (int n = 0; n < kColumnTiles; n++) {
#pragma unroll
        for (int other = 0; other < Tile::kWk - 1; other++) {
          const float4 c =
              partial[other * kWarps * kTiles * 32 + place + (m * kColumnTiles + n) * 32];
          sums[m][n][0] += c.x, sums[m][n][1] += c.y, sums[m][n][2] += c.z, sums[m][n][3] += c.w;
        }
      }
    }
  }

  // A thread holds columns 2 (lane % 4) and the next, of rows lane / 4 and 8 further.
#pragma unroll
  for (int m = 0; m < kRowTiles; m++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int row = warpM * kRowTiles * 16 + m * 16 + half * 8 + lane / 4;
      if (row >= tile.count) continue;
      T* out = static_cast<T*>(p.out) + int64_t(tile.first + row) * p.n;
#pragma unroll
      for (int n = 0; n < kColumnTiles; n += kGateUp ? 2 : 1) {
        const int tileColumn = (warpN * kColumnTiles + n) * (kGateUp ? 4 : 8);
        const int column = firstColumn + tileColumn + lane % 4 * 2;
        if (column >= p.n) continue;
        float values[2] = {sums[m][n][2 * half], sums[m][n][2 * half + 1]};
        if constexpr (kGateUp) {
          values[0] = silu<T>(values[0]) * sums[m][n + 1][2 * half];
          values[1] = silu<T>(values[1]) * sums[m][n + 1][2 * half + 1];
        }
        storeRaw<T, 2>(out + column, pack<T, 2>(values));
      }
    }
  }
}

template <class T, class Tile, bool kGateUp>
void launchGroupedGemm(const GroupedGemm& p, int maxTiles, cudaStream_t stream) {
  const auto kernel = groupedGemm<T, Tile, kGateUp>;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             Tile::kSharedBytes),
        "groupedGemm: shared memory");
  const dim3 grid(maxTiles, static_cast<unsigned>(divideUp(p.n, kGateUp ? Tile::kN / 2 : Tile::kN)));
  launch("groupedGemm", kernel, grid, Tile::kThreads, Tile::kSharedBytes, stream, p);
}

}  // namespace millrace::cuda
