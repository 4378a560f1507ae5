// Checks of fp8.cu: codes and scales beside the host's rounding of the same rows.
#pragma once
#include <cuda_fp8.h>

#include "fp8.h"
#include "kernel_check.h"

namespace kernel_check {

struct Fp8Result {
  Fp8Result(int rows, int width)
      : width(width), stride((width + 31) / 16 * 16), codes(size_t(rows) * stride), scales(rows * 4) {}
  Fp8Rows rows() const { return {codes.as(), stride, scales.as<float>()}; }
  int width;
  int64_t stride;
  Device codes, scales;
};

// Compares with the rows that `value(r, c)` makes, which the device may have found up to `relative`
// off: each value comes back within half a step of its code, the scale within `relative`, and gaps
// are untouched. Of exact values every code must be the host's.
inline void compareFp8(const std::string& name, const Fp8Result& result, int rows, double relative,
                       const std::function<float(int, int)>& value) {
  const auto codes = result.codes.download<uint8_t>();
  const auto scales = result.scales.download<float>();
  double worst = 0;
  int different = 0;
  bool gaps = true;
  for (int r = 0; r < rows; r++) {
    float peak = kFp8LeastPeak;
    for (int c = 0; c < result.width; c++) peak = std::max(peak, std::abs(value(r, c)));
    const double scale = peak / kFp8Largest;
    worst = std::max(worst, std::abs(scales[r] / scale - 1) / (relative + 1e-6));
    for (int c = 0; c < result.stride; c++) {
      const uint8_t code = codes[r * result.stride + c];
      if (c >= result.width) {
        gaps = gaps && code == 0xff;
        continue;
      }
      const float want = value(r, c);
      different += code != __nv_cvt_float_to_fp8(want * (kFp8Largest / peak), __NV_SATFINITE, __NV_E4M3);
      __nv_fp8_e4m3 element;
      element.__x = code;
      const double got = static_cast<float>(element) * double(scales[r]);
      // Half of the last of 3 bits of mantissa, or of the step between the smallest numbers.
      const double half = std::max(std::abs(want) * 0x1p-4, scale * 0x1p-10);
      const double error = std::abs(got - want) / (half * 1.001 + relative * std::abs(want));
      worst = std::isnan(error) ? INFINITY : std::max(worst, error);
    }
  }
  report(name, gaps ? worst : INFINITY, 1, gaps ? "" : "(wrote between rows)");
  if (relative == 0) report(name + ": codes other than the host's", different, 0);
}

inline void checkFp8(Elem elem, int rows, int width, int gap, int shift) {
  const auto name = [&](const char* what) {
    return std::string(what) + " " + nameOf(elem) + " " + std::to_string(rows) + " " +
           std::to_string(width) + " " + std::to_string(gap) + " " + std::to_string(shift);
  };
  Rows x(elem, rows, width, width + gap, shift);
  x.fill(3);
  {
    const Fp8Result out(rows, width);
    fp8Quantize(elem, x.matrix(), rows, out.rows(), nullptr);
    compareFp8(name("fp8Quantize"), out, rows, 0, [&](int r, int c) { return x.at(r, c); });
  }
  if (elem == Elem::F32) return;
  // Values the device finds in float32 and rounds to the storage type, where it may go the other way.
  const double relative = 2.02 * unitOf(elem);
  {
    std::vector<float> vector(width);
    for (float& v : vector) v = 0.5f + (generator()() % 1000) / 1000.f;
    const Device weight(vector);
    std::vector<double> factors(rows);
    for (int r = 0; r < rows; r++) {
      double squares = 0;
      for (int c = 0; c < width; c++) squares += x.at(r, c) * x.at(r, c);
      factors[r] = 1 / std::sqrt(squares / width + 1e-5);
    }
    const Fp8Result out(rows, width);
    fp8RmsNorm(elem, x.matrix(), weight.as<float>(), 1e-5f, rows, out.rows(), nullptr);
    compareFp8(name("fp8RmsNorm"), out, rows, relative,
               [&](int r, int c) { return float(x.at(r, c) * factors[r] * vector[c]); });
  }
  {
    Rows wide(elem, rows, 2 * width, 2 * width + gap, shift);
    wide.fill(3);
    const Fp8Result out(rows, width);
    fp8SiluMul(elem, wide.matrix(), width, rows, out.rows(), nullptr);
    compareFp8(name("fp8SiluMul"), out, rows, relative, [&](int r, int c) {
      const double gate = wide.at(r, c);
      return float(gate / (1 + std::exp(-gate)) * wide.at(r, c + width));
    });
  }
}

// Rows of zeros, of tiny and of huge numbers stay finite; one that is not finite spoils its row only.
inline void checkFp8Extremes() {
  const int width = 64;
  const float peaks[] = {0, 1e-38f, 1e-20f, 3e38f, INFINITY, NAN};
  const int rows = sizeof(peaks) / sizeof(peaks[0]);
  std::vector<float> values(rows * width, 0.0f);
  for (int r = 0; r < rows; r++) values[r * width + 7] = peaks[r];
  const Device x(values);
  const Fp8Result out(rows, width);
  fp8Quantize(Elem::F32, {x.as(), width, width}, rows, out.rows(), nullptr);
  const auto codes = out.codes.download<uint8_t>();
  const auto scales = out.scales.download<float>();
  int wrong = 0;
  for (int r = 0; r < rows; r++) {
    bool nan = false;
    for (int c = 0; c < width; c++) nan = nan || (codes[r * out.stride + c] & 127) == 127;
    wrong += nan != !std::isfinite(peaks[r]);
    if (std::isfinite(peaks[r])) wrong += !(scales[r] > 0 && std::isfinite(scales[r]));
  }
  report("fp8Quantize: zeros, tiny and huge rows, rows that are not finite", wrong, 0);
}

}  // namespace kernel_check
