// Products with 4-bit weights on Hopper by wgmma. Limits and times: dev/int4.md.
#pragma once
#include "int4_gemm.h"

namespace millrace::cuda {

// Whether the operands of a product suit it; the weight is in order.
bool hopperInt4Takes(const Int4Linear& step);
// `x` is in the order of the weight's columns. Any number of rows.
void hopperInt4(Elem elem, const Int4Linear& step, Matrix x, int rows, cudaStream_t stream);

}  // namespace millrace::cuda
