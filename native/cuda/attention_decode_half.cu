// Decode attention of float16. A file for each type: they take most of the time that a build does.
#include "attention_decode_divisions.cuh"

namespace millrace::cuda {

DecodeKernel decodeKernelHalf(const AttentionShape& shape, int dim, size_t mostShared, int variant) {
  return decodeKernelFor<__half>(shape, dim, mostShared, variant);
}

}  // namespace millrace::cuda
