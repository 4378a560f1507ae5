// Products with 4-bit weights: out = x . weight^T, weight[n][k] = scale * (code - 8) + offset for each
// row and group of columns, in 16-bit activations with float32 sums. Few rows multiply the codes as
// they are; many go through a copy in 16 bits. dev/int4.md says why.
#pragma once
#include "kernels.h"

namespace millrace::cuda {

// Codes lie in the order in which the lanes of a warp need them: [n / 64][k / 64] blocks of 64 x 64,
// in each [4 tiles of 16 rows][32 lanes][4 words], a word the lane's part of the A operand of one
// product of 16 columns. Scales are [n / 64][groups][64] float32, with offsets pairs (scale, offset).
// What lies beyond n or k is zero.
struct Int4Weight {
  uint8_t* data;       // int4Bytes of them, 256-byte aligned: codes, then scales
  int n, k;            // k a multiple of 8
  int group;           // 32, 64 or 128 columns; the last one may be shorter
  bool offsets;
  const int* columns;  // [k] on the device: column c multiplies x[columns[c]]; null: x[c]
  // Whether the 16 columns of a word's product are in their order, as wgmma needs them (hopper_int4.h).
  bool inOrder = false;
};
// What `inOrder` is to be on the current device.
bool int4InOrder();
size_t int4Bytes(int n, int k, int group, bool offsets);

// Rows first .. first + count of a weight whose data was zeroed. `codes` [count, k] bytes 0 .. 15,
// `scales` and `offsets` (null: -8 * scale) [count, groups], meaning scale * code + offset; all on
// the device.
void int4Pack(const Int4Weight& weight, int first, int count, const int8_t* codes,
              const float* scales, const float* offsets, cudaStream_t stream);
// Rounds [count, k] floats as quantizeRows of src/model/quantize-rows.ts does, to what int4Pack
// takes; symmetric where `offsets` is null.
void int4Quantize(const float* values, int count, int k, int group, int8_t* codes, float* scales,
                  float* offsets, cudaStream_t stream);

// The weight as [n, k] of `elem`, a 16-bit type, columns in the order of the input.
void int4Dequantize(Elem elem, const Int4Weight& weight, void* out, cudaStream_t stream);

// Most rows that int4Linear takes. dev/int4.md predicts that up to there it is faster than writing
// the weight out and multiplying that.
constexpr int kInt4MaxRows = 128;

struct Int4Linear {
  Int4Weight weight;
  Matrix x;               // rows aligned to 16 bytes
  Matrix out;
  bool floatOut;          // out is float32
  const void* residual;   // storage type, not with floatOut; may be `out`
  int64_t residualStride;
  const float* bias;
  void* scratch;          // int4ScratchBytes
  int* counters;          // int4Counters of them, zeroed once by the caller; left at zero
};
// For products of at most `maxN` outputs, of at most `maxK` inputs where columns are reordered (0:
// nowhere).
size_t int4ScratchBytes(int maxK);
size_t int4Counters(int maxN);
// Whether int4Linear can do it; without that, int4Dequantize and a product of floats can.
bool int4Takes(const Int4Linear& step, int rows);
void int4Linear(Elem elem, const Int4Linear& step, int rows, cudaStream_t stream);

}  // namespace millrace::cuda
