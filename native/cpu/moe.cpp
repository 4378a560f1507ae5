#include "moe.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "gemm_plan.h"

namespace millrace {

MoeRunner::MoeRunner(const Kernels& kernels, ThreadPool& pool, bool bf16Inputs)
    : kernels_(kernels), pool_(pool), bf16Inputs_(bf16Inputs) {}

MoeRunner::Input MoeRunner::inputOf(const PackedMatrix& weight) const {
  if (weight.integer.bits > 0) return {true, 1, kernels_.gemm.rowBytes(weight)};
  const size_t bytes = bf16Inputs_ ? 2 : 4;
  return {false, bytes, alignUp(weight.k, 32) * bytes};
}

void MoeRunner::reserve(const WeightStore& weights, int gateUp, int down, int topK, int maxTokens) {
  const PackedMatrix first = weights.matrix(gateUp), second = weights.matrix(down);
  const Input inner = inputOf(second);
  rowsCapacity_ = std::max(rowsCapacity_, size_t(std::min(maxTokens, kMoeTokens)) * topK);
  xBytes_ = std::max(xBytes_, inputOf(first).rowBytes);
  innerBytes_ = std::max(innerBytes_, inner.integers ? alignUp(second.k, 16) * 4 : inner.rowBytes);
  if (inner.integers) quantizedBytes_ = std::max(quantizedBytes_, inner.rowBytes);
  outStride_ = std::max(outStride_, alignUp(second.n, 16));
  const size_t rowBytes = xBytes_ + innerBytes_ + quantizedBytes_ + outStride_ * sizeof(float);
  memory_ = Memory(rowsCapacity_ * rowBytes);
  x_ = memory_.data();
  inner_ = x_ + rowsCapacity_ * xBytes_;
  quantized_ = inner_ + rowsCapacity_ * innerBytes_;
  out_ = reinterpret_cast<float*>(quantized_ + rowsCapacity_ * quantizedBytes_);
  expert_.resize(rowsCapacity_);
  row_.resize(rowsCapacity_);
  share_.resize(rowsCapacity_);
  token_.resize(rowsCapacity_);
  group_.resize(rowsCapacity_);
  start_.resize(std::max<size_t>(start_.size(), weights.spec(down).experts + 1));
  firstItem_.resize(start_.size());
}

void MoeRunner::run(const MoeCall& call, int rows) {
  for (int row = 0; row < rows; row += kMoeTokens) {
    runChunk(call, row, std::min(kMoeTokens, rows - row));
  }
}

// The experts of a token, likeliest first, and their shares. A logit that is NaN is never larger, so
// a row of them takes the first experts, with shares of NaN.
void MoeRunner::route(const MoeCall& call, int firstRow, int token) {
  const float* logits = call.router + (firstRow + token) * call.routerStride;
  int32_t* chosen = expert_.data() + token * call.topK;
  float* shares = share_.data() + token * call.topK;
  int count = 0;
  for (int e = 0; e < call.experts; e++) {
    if (count == call.topK && !(logits[e] > logits[chosen[count - 1]])) continue;
    int place = count < call.topK ? count++ : count - 1;
    for (; place > 0 && logits[e] > logits[chosen[place - 1]]; place--) {
      chosen[place] = chosen[place - 1];
    }
    chosen[place] = e;
  }
  const float top = logits[chosen[0]];
  float sum = 0, chosenSum = 0;
  for (int e = 0; e < call.experts; e++) sum += std::exp(logits[e] - top);
  for (int rank = 0; rank < call.topK; rank++) {
    shares[rank] = std::exp(logits[chosen[rank]] - top);
    chosenSum += shares[rank];
  }
  const float scale = 1.0f / (call.normalize ? chosenSum : sum);
  for (int rank = 0; rank < call.topK; rank++) shares[rank] *= scale;
}

// A counting sort: start_, row_ (where an assignment went), token_ (whose a grouped row is).
void MoeRunner::groupByExpert(int experts, int assignments) {
  std::fill(start_.begin(), start_.begin() + experts + 1, 0);
  for (int a = 0; a < assignments; a++) start_[expert_[a] + 1]++;
  for (int e = 0; e < experts; e++) start_[e + 1] += start_[e];
  for (int a = 0; a < assignments; a++) row_[a] = start_[expert_[a]]++;
  for (int e = experts; e > 0; e--) start_[e] = start_[e - 1];
  start_[0] = 0;
}

void MoeRunner::runChunk(const MoeCall& call, int firstRow, int rows) {
  const int assignments = rows * call.topK;
  pool_.parallel(rows, [&](int token, int) { route(call, firstRow, token); });
  groupByExpert(call.experts, assignments);
  for (int a = 0; a < assignments; a++) {
    token_[row_[a]] = firstRow + a / call.topK;
    group_[row_[a]] = expert_[a];
  }
  const WeightStore& weights = *call.weights;
  const PackedMatrix gateUp = weights.matrix(call.gateUp), down = weights.matrix(call.down);
  const Input first = inputOf(gateUp), second = inputOf(down);
  const size_t xBytes = first.integers ? sizeof(float) : first.bytes;
  const size_t copied = size_t(gateUp.k + gateUp.k % 2 * bf16Inputs_) * xBytes;
  pool_.parallel(assignments, [&](int i, int) {
    const uint8_t* from = static_cast<const uint8_t*>(call.x.data) + token_[i] * call.x.stride * xBytes;
    uint8_t* to = x_ + i * first.rowBytes;
    if (first.integers) {
      kernels_.gemm.quantizeRow(weights.matrix(call.gateUp, group_[i]),
                                reinterpret_cast<const float*>(from), to);
    } else {
      std::memcpy(to, from, copied);
    }
  });

  const int threads = pool_.size();
  const auto products = [&](int id, const Input& in, const uint8_t* x, GemmOutput output) {
    // Items of expert e are firstItem_[e] .. firstItem_[e + 1].
    const auto plan = [&](int e) {
      return planGemm(weights.matrix(id, e), start_[e + 1] - start_[e], in.bytes, threads);
    };
    int items = 0;
    for (int e = 0; e < call.experts; e++) {
      firstItem_[e] = items;
      if (start_[e + 1] > start_[e]) items += plan(e).items();
    }
    firstItem_[call.experts] = items;
    pool_.parallel(items, [&](int item, int) {
      const auto end = firstItem_.begin() + call.experts + 1;
      const int e = int(std::upper_bound(firstItem_.begin(), end, item) - firstItem_.begin()) - 1;
      const PackedMatrix weight = weights.matrix(id, e);
      GemmTile tile{};
      tile.weight = &weight;
      tile.x = {x + start_[e] * in.rowBytes, in.rowBytes / in.bytes};
      tile.out = output;
      if (tile.out.f32) tile.out.f32 += start_[e] * output.f32Stride;
      if (tile.out.bf16) tile.out.bf16 += start_[e] * output.bf16Stride;
      plan(e).cut(item - firstItem_[e], threads, tile, in.bytes, nullptr);
      kernels_.gemm.gemm(tile);
    });
  };

  GemmOutput inner{};
  if (second.bytes == 2) {
    inner.bf16 = reinterpret_cast<uint16_t*>(inner_);
    inner.bf16Stride = second.rowBytes / 2;
  } else {
    inner.f32 = reinterpret_cast<float*>(inner_);
    inner.f32Stride = innerBytes_ / sizeof(float);
  }
  products(call.gateUp, first, x_, inner);
  if (second.integers) {
    pool_.parallel(assignments, [&](int i, int) {
      kernels_.gemm.quantizeRow(weights.matrix(call.down, group_[i]),
                                inner.f32 + i * inner.f32Stride, quantized_ + i * second.rowBytes);
    });
  }
  GemmOutput outer{};
  outer.f32 = out_;
  outer.f32Stride = outStride_;
  // A row of floats may lie wider than this weight's: another mixture's may be wider.
  Input wide = second;
  if (second.bytes == 4) wide.rowBytes = innerBytes_;
  products(call.down, wide, second.integers ? quantized_ : inner_, outer);

  // In order of rank, so that a token's sum does not depend on its neighbours.
  const int outWidth = down.n;
  pool_.parallel(rows, [&](int t, int) {
    float* to = call.out + (firstRow + t) * call.outStride;
    std::memset(to, 0, size_t(outWidth) * sizeof(float));
    for (int rank = 0; rank < call.topK; rank++) {
      const int a = t * call.topK + rank;
      kernels_.rows.accumulate(share_[a], out_ + row_[a] * outStride_, outWidth, to);
    }
  });
}

}  // namespace millrace
