// A sum or maximum over the threads of a block.
#pragma once
#include <cuda_runtime.h>

namespace millrace::cuda {

struct Sum {
  static __device__ float of(float a, float b) { return a + b; }
};
struct Max {
  static __device__ float of(float a, float b) { return fmaxf(a, b); }
};

// Over the block, the same in every thread; `value` is at least 0. One use of each a kernel.
template <class Op>
__device__ __forceinline__ float blockReduce(float value) {
  __shared__ float partial[32];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value = Op::of(value, __shfl_xor_sync(~0u, value, step));
  const int lane = threadIdx.x % 32, warps = blockDim.x / 32;
  if (warps == 1) return value;
  if (lane == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  float all = lane < warps ? partial[lane] : 0.0f;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) all = Op::of(all, __shfl_xor_sync(~0u, all, step));
  return all;
}

}  // namespace millrace::cuda
