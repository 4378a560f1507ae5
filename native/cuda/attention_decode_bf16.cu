// Decode attention of bfloat16. A file for each type: they take most of the time that a build does.
#include "attention_decode_divisions.cuh"

namespace millrace::cuda {

DecodeKernel decodeKernelBf16(const AttentionShape& shape, int dim, size_t mostShared, int variant) {
  return decodeKernelFor<__nv_bfloat16>(shape, dim, mostShared, variant);
}

}  // namespace millrace::cuda
