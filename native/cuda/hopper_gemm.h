// Dense products of few rows on Hopper (compute capability 9.0), beside those of cuBLASLt: gemm.cpp
// times both and takes the faster. What it does and its limits: dev/gemm.md.
#pragma once
#include <string>
#include <vector>

#include "gemm.h"

namespace millrace::cuda {

// How a product is cut. A block computes `outputs` x `rows` results, `splits` blocks (a cluster) a share
// of k each.
struct HopperTiles {
  int outputs, rows, splits;
};
std::string describe(const HopperTiles& tiles);

// Most rows for which it is tried: beyond, the library's tiles are as good.
constexpr int kHopperMaxRows = 512;

// What is worth trying for a product of so many rows; empty if it cannot be done.
std::vector<HopperTiles> hopperTiles(const Product& product, int rows);
// Residual, bias and scales included. Any number of rows works with any tiles that were proposed.
void hopperGemm(const Product& product, const ProductCall& call, const HopperTiles& tiles, int rows,
                cudaStream_t stream);

}  // namespace millrace::cuda
