// Products that follow one another with little between them, in one kernel on Hopper (compute capability
// 9.0): from attention's output to the queries, keys and values of the next layer. Blocks stay, and wait
// for each other between products; sums, norms, gates and residuals happen as results are stored. Limits
// and times: dev/chain.md.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <string>
#include <vector>

namespace millrace::cuda {

// out [rows, n] = x [rows, k] . weight [n, k]^T (+ bias) (+ residual), all in bfloat16 but the bias and
// the weights of norms, which are float32. n is a multiple of 16. Strides in elements, multiples of 8 like k; pointers are
// multiples of 16 bytes.
struct ChainPhase {
  const void* weight = nullptr;
  int n = 0, k = 0;
  const void* x = nullptr;
  int64_t xStride = 0;
  // x is `normed` of the phase before, so results are scaled: 1 / sqrt(mean of squares + eps).
  bool scaled = false;
  float eps = 0;
  const float* bias = nullptr;     // [n], or null
  const void* residual = nullptr;  // [rows, n], or null; may be `out`
  int64_t residualStride = 0;
  // weight has gates in its first half of rows, and out [rows, n / 2] = silu(gate) * up.
  bool gated = false;
  void* out = nullptr;
  int64_t outStride = 0;
  // Not null: out is wanted normed, too. normed [rows, n] = out * normWeight, to which the scale is missing.
  const float* normWeight = nullptr;  // [n]
  void* normed = nullptr;
  int64_t normedStride = 0;
};

constexpr int kChainPhases = 4;
constexpr int kChainMaxRows = 256;

struct Chain {
  ChainPhase phases[kChainPhases];
  int count = 0;
  void* scratch = nullptr;  // chainScratchBytes, zeros before the first use; not used by two at once
};

// Squares of rows of up to `width` columns, and the counters of blocks.
size_t chainScratchBytes(int width);

// How a chain is cut: a block computes `outputs` x `rows` results at a time, and up to `cluster` blocks
// share a sum over k. With tiles of 128 x 64 and more that are two, and each product has such tiles, or smaller ones
// if these suit it better (Cut in hopper_chain.cuh).
struct ChainTiles {
  int outputs, rows, cluster;
};
std::string describe(const ChainTiles& tiles);

// What is worth trying for so many rows; empty if it cannot be done.
std::vector<ChainTiles> chainTiles(const Chain& chain, int rows);
// Any number of rows up to kChainMaxRows works with any tiles that were proposed for the chain. Two of them
// must not run beside each other on a GPU: each might have blocks that wait for those the other keeps out.
void hopperChain(const Chain& chain, const ChainTiles& tiles, int rows, cudaStream_t stream);

}  // namespace millrace::cuda
