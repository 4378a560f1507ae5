// Every kernel, compiled with the flags of this instruction set (scripts/build-native.mjs).
#define MILLRACE_ISA avx2
#include "attention.inl"
#include "gemm.inl"
#include "isa.h"
#include "row_kernels.inl"
#include "sample.inl"

namespace millrace {

extern const Kernels avx2Kernels = {
    "avx2",
    avx2::gemmKernels,
    avx2::rowKernels,
    avx2::attentionKernels,
    avx2::sampleKernels,
};

}  // namespace millrace
