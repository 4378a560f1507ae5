// Every kernel, compiled with the flags of this instruction set (scripts/build-native.mjs).
#define MILLRACE_ISA portable
#include "attention.inl"
#include "gemm.inl"
#include "isa.h"
#include "row_kernels.inl"
#include "sample.inl"

namespace millrace {

extern const Kernels portableKernels = {
    "portable",
    portable::gemmKernels,
    portable::rowKernels,
    portable::attentionKernels,
    portable::sampleKernels,
};

}  // namespace millrace
