#include "pack_integers.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "integers.h"

namespace millrace {
namespace {

// To nearest, ties to even, for |x| < 2^51: adding 1.5 * 2^52 leaves no bits for a fraction.
double roundToEven(double x) {
  const double magic = 6755399441055744.0;
  return (x + magic) - magic;
}

}  // namespace

bool roundRow(const float* values, int k, const IntegerFormat& format, IntegerScratch& scratch) {
  const int size = groupNumbers(format, k), groups = groupCount(format, k);
  scratch.codes.resize(k);
  scratch.scales.resize(groups);
  scratch.offsets.resize(groups);
  const bool int8 = format.bits == 8;
  const double least = int8 ? -128 : 0, most = int8 ? 127 : 15;
  for (int g = 0; g < groups; g++) {
    const int begin = g * size, end = std::min(begin + size, k);
    float low = 0, high = 0, poison = 0;
    for (int i = begin; i < end; i++) {
      low = std::min(low, values[i]);
      high = std::max(high, values[i]);
      poison += values[i] - values[i];
    }
    if (poison != 0) return false;
    const double range = format.symmetric ? double(std::max(-low, high)) : double(high) - double(low);
    const double steps = format.symmetric ? (int8 ? 127 : 7) : most - least;
    const double scale = static_cast<float>(range / steps);
    const double zero = format.symmetric ? (int8 ? 0 : 8)
                                         : least - roundToEven(low / (scale == 0 ? 1 : scale));
    for (int i = begin; i < end; i++) {
      const double code = scale == 0 ? zero : roundToEven(values[i] / scale) + zero;
      scratch.codes[i] = static_cast<int8_t>(std::min(most, std::max(least, code)));
    }
    scratch.scales[g] = static_cast<float>(scale);
    scratch.offsets[g] = static_cast<float>(-scale * zero);
  }
  return true;
}

void packRow(const IntegerRow& row, int k, const IntegerFormat& format, int half, int column,
             uint8_t* pair) {
  const int size = groupNumbers(format, k), groups = groupCount(format, k);
  const int at = half * kPanel + column;
  for (int g = 0; g < groups; g++) {
    const int begin = g * size, count = std::min(size, k - begin);
    std::memcpy(pair + at * 4, row.scales + g, 4);
    if (!format.symmetric) std::memcpy(pair + 128 + at * 4, row.offsets + g, 4);
    uint8_t* codes = pair + headBytes(format) + at * 4;
    const int8_t* from = row.codes + begin;
    const int step = stepNumbers(format);
    if (step == 4) {
      for (int i = 0; i < count; i++) codes[i / 4 * 128 + i % 4] = static_cast<uint8_t>(from[i] + 128);
    } else {
      for (int i = 0; i < count; i++) {
        codes[i / 8 * 128 + i % 4] |= static_cast<uint8_t>(from[i] << (i % 8 < 4 ? 0 : 4));
      }
    }
    pair += headBytes(format) + static_cast<size_t>((count + step - 1) / step) * 128;
  }
}

}  // namespace millrace
