// Every kernel, compiled with the flags of this instruction set (scripts/build-native.mjs).
#define MILLRACE_ISA avx512
#include "attention.inl"
#include "gemm.inl"
#include "isa.h"
#include "row_kernels.inl"
#include "sample.inl"

namespace millrace {

extern const Kernels avx512Kernels = {
    "avx512",
    avx512::gemmKernels,
    avx512::rowKernels,
    avx512::attentionKernels,
    avx512::sampleKernels,
};

}  // namespace millrace
