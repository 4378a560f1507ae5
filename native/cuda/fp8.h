// Rows in 8-bit floats (e4m3: 4 bits of exponent, 3 of mantissa, largest value 448; Micikevicius et
// al. 2022, arXiv 2209.05433), each row with a float32 scale: x = scale * code. Weights have one a row
// (an output channel), activations one a token, found when they are quantized.
#pragma once
#include "kernels.h"

namespace millrace::cuda {

constexpr float kFp8Largest = 448.0f;
// Of rows all of whose values are smaller the codes are relative to this, so that nothing overflows.
constexpr float kFp8LeastPeak = 1e-30f;
// Widths are multiples of this and at most that.
constexpr int kFp8Multiple = 16, kFp8MaxWidth = 32768;

// Of row r the codes begin at codes + r * stride and stand for scales[r] * code.
struct Fp8Rows {
  void* codes;
  int64_t stride;  // bytes, a multiple of 16
  float* scales;
};

// peak = max |x|, scale = peak / 448, code = e4m3(x * (448 / peak)), to nearest even. A value that is
// not finite makes a code of its row NaN.
void fp8Quantize(Elem elem, Matrix x, int rows, Fp8Rows out, cudaStream_t stream);
// The same of what rmsNorm (one group a row, no residual) and siluMul would store; `width` of the result.
void fp8RmsNorm(Elem elem, Matrix x, const float* weight, float eps, int rows, Fp8Rows out,
                cudaStream_t stream);
void fp8SiluMul(Elem elem, Matrix x, int width, int rows, Fp8Rows out, cudaStream_t stream);

}  // namespace millrace::cuda
