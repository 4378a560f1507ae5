// Attention without any of the fast kernels' tricks: one warp a query row and head, one key after
// the other. The path of float32, and what the fast kernels are compared with.
#include <stdexcept>
#include <string>

#include "e4m3.cuh"
#include "elements.h"
#include "launch.h"

namespace millrace::cuda {

namespace {

constexpr int kWarps = 4;
constexpr int kMaxDim = 256;

template <typename T, typename KV>
__global__ __launch_bounds__(kWarps * 32) void plainKernel(
    AttentionShape shape, const int* blockTables, const int* blockTableStart, const int* rowSeq,
    const int* positions, int rows, const KV* keys, const KV* values, const T* q, int64_t qStride,
    T* out, int64_t outStride) {
  waitForPrevious();
  constexpr int kPerLane = kMaxDim / 32;
  const int lane = threadIdx.x & 31;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kWarps + (threadIdx.x >> 5);
  const int row = static_cast<int>(item / shape.heads);
  const int head = static_cast<int>(item % shape.heads);
  if (row >= rows) return;
  const int seq = rowSeq[row];
  if (seq < 0) return;
  const int kvHead = head / (shape.heads / shape.kvHeads);
  const int* table = blockTables + blockTableStart[seq];
  const T* query = q + row * qStride + static_cast<int64_t>(head) * shape.headDim;

  float mine[kPerLane], acc[kPerLane];
#pragma unroll
  for (int i = 0; i < kPerLane; i++) {
    const int d = lane + 32 * i;
    mine[i] = d < shape.headDim ? toFloat(query[d]) : 0.0f;
    acc[i] = 0;
  }
  const int last = positions[row];
  const int first = shape.window > 0 ? max(0, last - shape.window + 1) : 0;
  float top = -INFINITY, sum = 0;
  for (int p = first; p <= last; p++) {
    const int64_t at = ((static_cast<int64_t>(table[p / shape.blockSize]) * shape.kvHeads + kvHead) *
                            shape.blockSize +
                        p % shape.blockSize) *
                       shape.headStride;
    float score = 0;
#pragma unroll
    for (int i = 0; i < kPerLane; i++) {
      const int d = lane + 32 * i;
      if (d < shape.headDim) score += mine[i] * toFloat(keys[at + d]);
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      score += __shfl_xor_sync(0xffffffffu, score, offset);
    }
    score *= shape.scale;
    const float newTop = fmaxf(top, score);
    const float keep = expf(top - newTop), weight = expf(score - newTop);
    top = newTop;
    sum = sum * keep + weight;
#pragma unroll
    for (int i = 0; i < kPerLane; i++) {
      const int d = lane + 32 * i;
      if (d < shape.headDim) acc[i] = acc[i] * keep + weight * toFloat(values[at + d]);
    }
  }
  T* to = out + row * outStride + static_cast<int64_t>(head) * shape.headDim;
#pragma unroll
  for (int i = 0; i < kPerLane; i++) {
    const int d = lane + 32 * i;
    if (d < shape.headDim) to[d] = fromFloat<T>(acc[i] / sum);
  }
}

}  // namespace

void attentionPlain(const AttentionShape& shape, const AttentionInputs& in, const int* rowSeq,
                    const int* positions, int rows, const KvLayer& kv, Matrix q, Matrix out,
                    cudaStream_t stream) {
  if (shape.headDim > kMaxDim) {
    throw std::invalid_argument("attentionPlain: headDim is " + std::to_string(shape.headDim) +
                                ", expected at most " + std::to_string(kMaxDim));
  }
  if (rows == 0) return;
  withElem(shape.elem, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    const auto run = [&](auto kvTag) {
      using KV = typename decltype(kvTag)::Type;
      const int64_t items = static_cast<int64_t>(rows) * shape.heads;
      launch("attention plain", plainKernel<T, KV>,
             dim3(static_cast<unsigned>((items + kWarps - 1) / kWarps)), kWarps * 32, 0, stream,
             shape, in.blockTables, in.blockTableStart, rowSeq, positions, rows,
             static_cast<const KV*>(kv.keys), static_cast<const KV*>(kv.values),
             static_cast<const T*>(q.data), q.stride, static_cast<T*>(out.data), out.stride);
    };
    if (shape.fp8) run(TypeTag<E4m3>{});
    else run(tag);
  });
}

}  // namespace millrace::cuda
