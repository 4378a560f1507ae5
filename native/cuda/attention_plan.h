// How a step's attention is divided, and the memory layout of the plan that carries it from the host
// to the kernels. Plain C++: the planner runs, and is checked, without a GPU.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace millrace::cuda {

// Decode. A tile is 16 tokens of one sequence for one pass over one KV head (a pass serves up to 16
// query heads, the columns of two mma). All tiles of the step form one line, ordered by sequence, then
// pass, then position; every block of the persistent grid takes a stretch of it, all of about the same
// length, and its warps, the workers, take about even parts of that. So one sequence of 100,000 tokens and
// 255 short ones fill the machine alike. The tiles of one sequence and pass are an item. Stretches end
// where items end if that makes the longest one at most kSnapTiles (times the warps, of a block's) and a
// tenth longer: what is not cut needs no merge. Parts of one block are merged in its shared memory, those
// of several blocks, which costs more, in global memory.
constexpr int kTileTokens = 16;
constexpr int kPassRows = 16;
// A block gets at least so many tiles for each of its warps while there are few.
constexpr int kMinWarpTiles = 3;
constexpr int kSnapTiles = 2;

// The front of the scratch: counters of arrived parts, 0 before and after every launch.
constexpr size_t kCounterBytes = 128 << 10;

// Floats of a part of a decode's item: the rows, then a maximum and a sum for each; a multiple of 4, as they
// are read 16 bytes at a time.
constexpr int partialFloats(int rows, int headStride) {
  return (rows * (headStride + 2) + 3) / 4 * 4;
}

struct DecodeWorker {
  int begin;  // first tile on the line; the next worker's `begin` ends it; idle ones, the last, have none
  int entry;  // the DecodeEntry that holds it
  int first;  // the worker that has the first tile of the item that this one begins with
  int last;   // the worker that has the last tile of the item that this one ends with
};
struct DecodeEntry {
  int tileStart;  // tiles of one pass in the entries before
  int seq;
  int row;  // of q and out
  int context;
};

// Prefill. Rows are (token, query head of one KV head) pairs, so that short chunks fill a tile of
// rows too and all query heads of a KV head share a loaded key. Every item is run for each KV head.
struct PrefillItem {
  int seq;
  int rowBegin;  // a multiple of the tile's rows; row r is token r / group, head r % group
  int keyBegin;  // a multiple of the tile's keys
  int keyEnd;    // exclusive
  int part, parts;  // of the items with the same rows and different keys; 1: writes the output
  int slot;         // of part 0 among the partial results
  int unused;
};

// What the planner must know of the device and of the kernels that were chosen for it.
struct PlanGeometry {
  int decodeBlocks, decodeWarps;  // of the persistent grid, and of each of them
  int prefillRows, prefillKeys;
  int prefillResident;  // blocks that run at a time

  int decodeWorkers() const { return decodeBlocks * decodeWarps; }
};

int tileFirst(int context, int window);  // of the tiles that a decode reads
int tileEnd(int context);
int passesOf(const AttentionShape& shape);   // over each KV head in decode
int passRowsOf(const AttentionShape& shape);  // most query heads of a pass
// Pieces that split prefill items may have together (for each KV head one partial result).
int prefillPieces(const AttentionShape& shape, const PlanGeometry& geometry);

// Byte offsets in the plan; the workers come first, one more than there are.
size_t planEntriesAt(const PlanGeometry& geometry);
size_t planItemsAt(const PlanGeometry& geometry, int entries);

size_t planBytes(const AttentionShape& shape, const PlanGeometry& geometry, int maxTokens,
                 int maxSeqs);
AttentionPlan makePlan(const AttentionShape& shape, const AttentionBatch& batch, int paddedSeqs,
                       bool graph, const PlanGeometry& geometry, void* plan);

}  // namespace millrace::cuda
