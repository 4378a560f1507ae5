// Matrix products of a step's rows with a packed weight, and what follows each product at once
// (bias, residual, silu(gate) * up, rounding to bf16), so that results leave the core one time.
// Declarations and plain data only: see attention.h.
#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels.h"

namespace millrace {

// Output columns in a panel: the lanes of a vector.
constexpr int kPanel = 16;

// How integers stand for the floats of a weight: IntegerStorage of src/model/weights.ts.
struct IntegerFormat {
  int bits;   // 4 or 8; 0: the weight is kept as floats
  int group;  // columns that share a scale, a multiple of 32; 0: all of a row
  bool symmetric;
};

// A weight [N, K], the same layout on every instruction set. Sixteen output columns are a panel, and
// panels lie in pairs, interleaved step by step, so that a product of two panels reads one stream of
// memory:
//   BF16      [N / 32][K / 2][2 panels][16 columns][2]   (the pair that vdpbf16ps takes)
//   F16, F32  [N / 32][K][2 panels][16 columns]
// N is padded to 32 and K (BF16) to 2 with zeros. With `gateUp` N counts gate and up columns
// together, and the panels of a pair are gate and up of the same columns.
//
// Integers (integer.bits > 0) are cut along K into groups, each with a scale (and offset) for every
// column, and the groups of a pair of panels lie one after the other:
//   scales  [2 panels][16 columns] floats
//   offsets [2 panels][16 columns] floats, unless symmetric
//   int8    [K of the group / 4][2 panels][16 columns][4]
//   int4    [K of the group / 8][2 panels][16 columns][4], byte j: number j low, 4 + j high
// Codes are unsigned here, as vpdpbusd takes them: int8 plus 128, int4 as they are. A weight is
// scale * (code - zero) + offset; zero is 128, or 8 for symmetric int4, or 0. The last group of a
// row may be shorter.
struct PackedMatrix {
  const uint8_t* data;
  DType dtype;
  int n, k;
  int pairs;         // padding included
  size_t pairBytes;  // a multiple of 64
  bool gateUp;
  IntegerFormat integer;
  const int32_t* columns;  // [k] integers: stored column i multiplies input column columns[i]; null: i
};

// Rows of activations: floats, or bf16 where `Kernels::wantsBf16` (then a row is followed by a zero
// if its width is odd). Strides count elements. For a weight of integers: rows that
// `GemmKernels::quantizeRow` wrote, and strides count bytes.
struct Rows {
  const void* data;
  size_t stride;
};

// Where the product goes. With gateUp: columns count after silu(gate) * up.
struct GemmOutput {
  float* f32;          // [rows, width] or null
  size_t f32Stride;
  uint16_t* bf16;      // the same rounded, or null
  size_t bf16Stride;
  const float* residual;  // added, or null
  size_t residualStride;
  const float* bias;   // [N] or null; with gateUp gate's, then up's
};

// One unit of work: `rows` rows times `pairs` pairs of panels from `firstPair` on, `width` pairs (1
// or 2) at a time. `prefetch`, if not null, starts as many bytes as `width` pairs have, to be
// prefetched during the last of them. Each element is summed over k in ascending order whatever the
// tile, so a row's result does not depend on the rows beside it.
struct GemmTile {
  const PackedMatrix* weight;
  Rows x;
  int rows;
  int firstPair, pairs, width;
  const uint8_t* prefetch;
  GemmOutput out;
};

struct GemmKernels {
  void (*gemm)(const GemmTile&);
  // Rows of bf16 weights' inputs are bf16.
  bool wantsBf16;
  // Rounds a row of floats to the integers that multiply a weight of integers: int8, symmetric, a
  // scale for each of the weight's groups. `out` has rowBytes(weight) bytes, a multiple of 64.
  void (*quantizeRow)(const PackedMatrix&, const float* x, uint8_t* out);
  size_t (*rowBytes)(const PackedMatrix&);
};

}  // namespace millrace
