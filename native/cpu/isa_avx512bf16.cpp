// Every kernel, compiled with the flags of this instruction set (scripts/build-native.mjs).
#define MILLRACE_ISA avx512bf16
#include "attention.inl"
#include "gemm.inl"
#include "isa.h"
#include "row_kernels.inl"
#include "sample.inl"

namespace millrace {

extern const Kernels avx512bf16Kernels = {
    "avx512bf16",
    avx512bf16::gemmKernels,
    avx512bf16::rowKernels,
    avx512bf16::attentionKernels,
    avx512bf16::sampleKernels,
};

}  // namespace millrace
