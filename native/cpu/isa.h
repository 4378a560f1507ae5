// The instruction sets the kernels are compiled for, and the choice among them at run time.
#pragma once
#include <string>
#include <vector>

#include "attention.h"
#include "gemm.h"
#include "row_kernels.h"
#include "sample.h"

namespace millrace {

// Everything one instruction set provides.
struct Kernels {
  const char* name;
  GemmKernels gemm;
  RowKernels rows;
  AttentionKernels attention;
  SampleKernels sample;
};

extern const Kernels portableKernels;
#if defined(__x86_64__)
extern const Kernels avx2Kernels;
extern const Kernels avx512Kernels;
extern const Kernels avx512bf16Kernels;
#endif

// Those this machine can run, slowest first; `portable` is always among them.
std::vector<const Kernels*> availableKernels();

}  // namespace millrace
