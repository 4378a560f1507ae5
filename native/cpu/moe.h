// The mixture-of-experts operation: route, group the rows by expert, two products for each expert,
// weighted sum for each token.
#pragma once
#include <vector>

#include "isa.h"
#include "memory.h"
#include "program.h"
#include "thread_pool.h"
#include "weights.h"

namespace millrace {

// Tokens computed together: bounds the workspace, as every token takes topK rows of it.
constexpr int kMoeTokens = 512;

struct MoeCall {
  const WeightStore* weights;
  int gateUp, down;
  int experts, topK;
  bool normalize;
  const float* router;  // [rows, experts]
  size_t routerStride;
  Rows x;  // floats where gateUp has integers
  float* out;  // [rows, width]
  size_t outStride;
};

class MoeRunner {
 public:
  // Allocates for products of the given sizes, the largest of all mixtures of a program.
  MoeRunner(const Kernels& kernels, ThreadPool& pool, bool bf16Inputs);
  void reserve(const WeightStore& weights, int gateUp, int down, int topK, int maxTokens);
  size_t bytes() const { return memory_.bytes(); }
  void run(const MoeCall& call, int rows);

 private:
  void runChunk(const MoeCall& call, int firstRow, int rows);
  void route(const MoeCall& call, int firstRow, int token);
  void groupByExpert(int experts, int assignments);

  const Kernels& kernels_;
  ThreadPool& pool_;
  // How a weight wants its rows: bytes of a number (1: quantized) and from one row to the next.
  struct Input {
    bool integers;
    size_t bytes, rowBytes;
  };
  Input inputOf(const PackedMatrix& weight) const;

  bool bf16Inputs_;
  size_t rowsCapacity_ = 0, xBytes_ = 0, innerBytes_ = 0, quantizedBytes_ = 0, outStride_ = 0;
  Memory memory_;
  // Inputs of the two products, what the first one leaves where the second wants it quantized.
  uint8_t *x_ = nullptr, *inner_ = nullptr, *quantized_ = nullptr;
  float* out_ = nullptr;
  std::vector<int32_t> expert_, row_;  // of each assignment (token, rank)
  std::vector<float> share_;
  std::vector<int32_t> start_;  // first grouped row of each expert, and the end
  std::vector<int32_t> token_, group_;  // of each grouped row: whose it is, and its expert
  std::vector<int32_t> firstItem_;
};

}  // namespace millrace
