// Rows of integer weights: rounding floats to them, and their place in the packed layout of gemm.h.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "gemm.h"

namespace millrace {

// A row of a weight: weight[i] = scales[g] * codes[i] + offsets[g], g the group of i. Codes are
// signed (int8) or 0 .. 15 (int4).
struct IntegerRow {
  const int8_t* codes;
  const float* scales;
  const float* offsets;  // null: 0, or -8 * scale for symmetric int4
};

// Room for a row that is rounded.
struct IntegerScratch {
  std::vector<int8_t> codes;
  std::vector<float> scales, offsets;
};

// Rounds a row of k floats to nearest, as `quantizeRows` of src/model/quantize-rows.ts does, bit by
// bit. False if a number is not finite, which no integer stands for.
bool roundRow(const float* values, int k, const IntegerFormat& format, IntegerScratch& scratch);

// Writes a row as column `column` of panel `half` of a pair.
void packRow(const IntegerRow& row, int k, const IntegerFormat& format, int half, int column,
             uint8_t* pair);

}  // namespace millrace
