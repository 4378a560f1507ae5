// How one matrix product is cut into items of work for the thread pool.
#pragma once
#include <algorithm>

#include "gemm.h"

namespace millrace {

// Bytes of input rows that stay in L2 while the panels of a weight pass by.
constexpr size_t kInputBytes = 256 << 10;
// Bytes of the panels of one register tile: two tiles (one in use, one on its way) leave room for
// the rows.
constexpr size_t kTileBytes = 288 << 10;
// Items for each thread: enough that one which loses its time slice does not hold up the others.
constexpr int kItemsPerThread = 16;

struct GemmPlan {
  int rows, rowChunk, chunks;
  int pairs, width, itemPairs, itemsPerChunk;

  int items() const { return chunks * itemsPerChunk; }

  // Fills in which rows and panels item i stands for: all panels for a chunk of rows, then the next
  // chunk. `threads` items further is what this thread is likely to take next, so the first panels
  // of that are loaded meanwhile; past the end those of `nextWeight`, which is multiplied next.
  void cut(int item, int threads, GemmTile& tile, size_t inputBytes,
           const uint8_t* nextWeight) const {
    const int row = item / itemsPerChunk * rowChunk, i = item % itemsPerChunk;
    tile.rows = std::min(rowChunk, rows - row);
    tile.firstPair = i * itemPairs;
    tile.pairs = std::min(itemPairs, pairs - tile.firstPair);
    tile.width = width;
    tile.x.data = static_cast<const uint8_t*>(tile.x.data) + row * tile.x.stride * inputBytes;
    GemmOutput& out = tile.out;
    if (out.f32) out.f32 += row * out.f32Stride;
    if (out.bf16) out.bf16 += row * out.bf16Stride;
    if (out.residual) out.residual += row * out.residualStride;
    const int next = i + threads;
    const PackedMatrix& w = *tile.weight;
    if (next < itemsPerChunk) {
      tile.prefetch = w.data + size_t(next) * itemPairs * w.pairBytes;
    } else if (item / itemsPerChunk == chunks - 1 && nextWeight) {
      tile.prefetch = nextWeight + size_t(next - itemsPerChunk) * width * w.pairBytes;
    }
  }
};

// Pairs of panels in a register tile. Few rows wait for the weights, and one stream from memory is
// faster than two (measured: 58 GB/s against 42); many rows need not be loaded as often beside two
// pairs, but the difference is of a few percent, so that even shares for the threads decide.
inline int chooseWidth(const PackedMatrix& w, int rows, int chunks, int threads) {
  if (rows <= 32 || 2 * w.pairBytes > kTileBytes) return 1;
  const auto turns = [&](int width) {
    const int tiles = (w.pairs + width - 1) / width * chunks;
    return (tiles + threads - 1) / threads * width;
  };
  return turns(2) * 50 <= turns(1) * 51 ? 2 : 1;
}

inline GemmPlan planGemm(const PackedMatrix& w, int rows, size_t inputBytes, int threads) {
  GemmPlan plan{};
  const int mostRows = std::max(24, static_cast<int>(kInputBytes / (w.k * inputBytes)));
  plan.rows = rows;
  plan.chunks = std::max(1, (rows + mostRows - 1) / mostRows);
  plan.rowChunk = (rows + plan.chunks - 1) / plan.chunks;
  plan.pairs = w.pairs;
  plan.width = chooseWidth(w, rows, plan.chunks, threads);
  const int share = w.pairs * plan.chunks / (threads * kItemsPerThread);
  plan.itemPairs = std::max(plan.width, std::min(share, 16) / plan.width * plan.width);
  plan.itemsPerChunk = (w.pairs + plan.itemPairs - 1) / plan.itemPairs;
  return plan;
}

}  // namespace millrace
