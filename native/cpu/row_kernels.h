// Kernels that work on one row of activations: norms, rotary embedding, sums, conversions.
// Declarations and plain data only: see attention.h.
#pragma once
#include "gemm.h"

namespace millrace {

// Rows of bf16 are followed by a zero where their width is odd (gemm.h, Rows).
struct RowKernels {
  // Of each run of `group` columns: x / sqrt(mean(x^2) + eps) * weight. Either output may be null.
  void (*rmsNorm)(const float* x, const float* weight, int width, int group, float eps, float* out,
                  uint16_t* outBf16);
  // Heads of headDim columns, half-split pairs; cosSin: headDim / 2 cosines, then sines.
  void (*rope)(const float* x, const float* cosSin, int width, int headDim, float* out);
  void (*add)(const float* a, const float* b, int width, float* out);
  // silu(gate) * up. Either output may be null.
  void (*siluMul)(const float* gate, const float* up, int width, float* out, uint16_t* outBf16);
  void (*toBf16)(const float* x, int width, uint16_t* out);
  // out += scale * x
  void (*accumulate)(float scale, const float* x, int width, float* out);
  // Row `row` of a packed weight: its column `row` of the layout in gemm.h.
  void (*unpackRow)(const PackedMatrix& weight, int row, float* out);
};

}  // namespace millrace
