// Attention behind a kernel that stores the step's queries and newest keys and values, as in a step,
// with programmatic dependent launch: what attention reads ahead of that kernel's end must not be those.
#pragma once
#include <utility>

#include "attention_case.h"
#include "launch.h"

namespace attention_check {

struct StoreArgs {
  char* to[3];  // q, keys, values
  const char* from[3];
  size_t qBytes;
  const int64_t* rows;  // byte offsets of the newest keys and values
  int rowBytes;
  bool late;     // not before others have had 30 us to read too early
  bool nothing;  // NaN in place of what is stored
};

// A block for each row of keys and values.
__global__ void storeKernel(StoreArgs a) {
  waitForPrevious();
  for (int i = 0; a.late && i < 30; i++) __nanosleep(1000);
  const size_t first = blockIdx.x * size_t{blockDim.x} + threadIdx.x;
  for (size_t i = first; i < a.qBytes; i += size_t{gridDim.x} * blockDim.x) {
    a.to[0][i] = a.nothing ? '\xff' : a.from[0][i];
  }
  for (int part = 1; part < 3; part++) {
    for (int i = threadIdx.x; i < a.rowBytes; i += blockDim.x) {
      const int64_t at = a.rows[blockIdx.x] + i;
      a.to[part][at] = a.nothing ? '\xff' : a.from[part][at];
    }
  }
}

// The largest error over a few launches of a graph; infinite if their results differ.
inline double overlapError(const Layout& layout, const Batch& batch, uint64_t seed) {
  const Step step(layout, batch, seed);
  const auto expected = expectedOf(step);
  const int64_t outStride = layout.heads * layout.headDim;
  Memory memory = memoryFor(step, outStride);
  const AttentionPlan plan = memory.upload(step, batch.seqs(), false);
  std::vector<int64_t> offsets;
  for (int s = 0; s < batch.seqs(); s++) {
    for (int h = 0; h < layout.kvHeads; h++) {
      offsets.push_back(step.at(s, batch.contextLens[s] - 1, h) * kvBytesOf(layout));
    }
  }
  const Device q(step.q), keys(step.keys), values(step.values), rows(offsets);
  StoreArgs store{{memory.q.as<char>(), memory.keys.as<char>(), memory.values.as<char>()},
                  {q.as<char>(), keys.as<char>(), values.as<char>()},
                  step.q.size(), rows.as<int64_t>(),
                  static_cast<int>(step.shape.headStride * kvBytesOf(layout)), false, true};
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "stream");
  const Graph graph(stream, [&] {
    const bool overlapped = std::exchange(overlapLaunches, launchesCanOverlap());
    const dim3 grid(static_cast<unsigned>(offsets.size()));
    launch("store", storeKernel, grid, 128, 0, stream, store);
    store.late = true;
    store.nothing = false;
    launch("store", storeKernel, grid, 128, 0, stream, store);
    attention(step.shape, plan, memory.inputs(), memory.kv(), memory.qMatrix(step.qStride),
              memory.outMatrix(), stream);
    overlapLaunches = overlapped;
  });
  double worst = 0;
  std::vector<uint8_t> first;
  for (int launched = 0; launched < 4; launched++) {
    memory.clearOut();
    check(cudaDeviceSynchronize(), "clear");
    graph.launch(stream);
    check(cudaStreamSynchronize(stream), "graph");
    const auto bytes = memory.out.download<uint8_t>();
    if (launched == 0) first = bytes;
    const double error = errorOf(step, bytes, outStride, batch.tokens(), expected);
    worst = std::max(worst, bytes == first && memory.countersAreZero() ? error : INFINITY);
  }
  cudaStreamDestroy(stream);
  return worst;
}

}  // namespace attention_check
