// The host's side of what only Hopper has: whether it is there, and the maps its copy engine reads.
#pragma once
#include <cuda.h>

#include <cstdint>

namespace millrace::cuda {

// Whether the current device is a Hopper and this build has the code of sm_90a for it.
bool hopperAvailable();
// Of the device that is current when first asked; a machine's GPUs are taken to be alike.
int multiprocessors();

// Bytes of a row of a tile, the width of the swizzle.
constexpr int kTileWidth = 128;

// Tiles of `tileRows` x `rowBytes` of `rows` x `columns` elements of `size` bytes, `stride` elements
// from row to row; zeros beyond them. In shared memory rows of kTileWidth have the 128-byte swizzle,
// and shorter ones lie one behind the other as they are.
CUtensorMap tileMap(CUtensorMapDataType type, int size, const void* data, int columns, int rows,
                    int64_t stride, int tileRows, int rowBytes = kTileWidth);

// Tiles of pairs of rows: eight first ones, the eight that belong to them, the next eight first ones, and so on,
// tileRows in all. A row belongs to the one before it, or one of the lower half to one of the upper. `rows`, of
// the matrix, is a multiple of 16.
enum class Pairs { Neighbors, Halves };
CUtensorMap pairedTileMap(CUtensorMapDataType type, int size, const void* data, int columns, int rows,
                          int tileRows, Pairs pairs);

}  // namespace millrace::cuda
