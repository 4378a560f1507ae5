// Checks native/cuda/int4_gemm.cu against a float64 form on the host, and times it.
//
//   check_int [--quick] [--time]
//     --quick: few small products, for compute-sanitizer      --time: times instead of checks
#include <algorithm>
#include <memory>
#include <numeric>

#include "int4_gemm.h"
#include "kernel_check.h"

using namespace kernel_check;

namespace {

struct Format {
  int n, k, group;
  bool offsets, columns;
};

std::string formatName(const Format& f) {
  return std::to_string(f.n) + " x " + std::to_string(f.k) + " g" + std::to_string(f.group) +
         (f.offsets ? " asym" : "") + (f.columns ? " act-order" : "");
}

// Codes in the order of int4_gemm.cu's own products, or in that of hopper_int4.cu where there is one.
bool inOrder = false;

// A quantized matrix with any codes, on the host and packed on the device, the latter in parts that
// do not end where tiles do.
struct Weights {
  explicit Weights(const Format& format) : f(format), groups((f.k + f.group - 1) / f.group) {
    std::mt19937 random(f.n * 31 + f.k);
    codes.resize(size_t(f.n) * f.k);
    for (auto& code : codes) code = static_cast<int8_t>(random() % 16);
    std::uniform_real_distribution<float> scale(0.001f, 0.01f), offset(-0.08f, 0.01f);
    scales.resize(size_t(f.n) * groups);
    for (auto& each : scales) each = scale(random);
    if (f.offsets) {
      offsets.resize(scales.size());
      for (auto& each : offsets) each = offset(random);
    }
    if (f.columns) {
      columns.resize(f.k);
      std::iota(columns.begin(), columns.end(), 0);
      std::shuffle(columns.begin(), columns.end(), random);
      deviceColumns = std::make_unique<Device>(columns);
    }
    const size_t bytes = int4Bytes(f.n, f.k, f.group, f.offsets);
    data = std::make_unique<Device>(bytes);
    check(cudaMemset(data->as(), 0, bytes), "memset");
    const Device plain(codes), plainScales(scales), plainOffsets(offsets);
    for (int first = 0, count = 0; first < f.n; first += count) {
      count = std::min(f.n - first, std::max(5, f.n / 3));
      int4Pack(view(), first, count, plain.as<int8_t>() + size_t(first) * f.k,
               plainScales.as<float>() + size_t(first) * groups,
               f.offsets ? plainOffsets.as<float>() + size_t(first) * groups : nullptr, nullptr);
    }
    check(cudaDeviceSynchronize(), "int4Pack");
  }
  Int4Weight view() const {
    return {data->as<uint8_t>(), f.n, f.k, f.group, f.offsets,
            f.columns ? deviceColumns->as<int>() : nullptr, inOrder};
  }
  // Of stored column c.
  double at(int row, int c) const {
    const size_t g = size_t(row) * groups + c / f.group;
    const double scale = scales[g];
    return scale * codes[size_t(row) * f.k + c] + (f.offsets ? double(offsets[g]) : -8 * scale);
  }
  int input(int c) const { return f.columns ? columns[c] : c; }

  Format f;
  int groups;
  std::vector<int8_t> codes;
  std::vector<float> scales, offsets;
  std::vector<int> columns;
  std::unique_ptr<Device> data, deviceColumns;
};

void checkDequantize(const Weights& weights, Elem elem) {
  const Format& f = weights.f;
  Rows out(elem, f.n, f.k, f.k);
  int4Dequantize(elem, weights.view(), out.device.as(), nullptr);
  std::vector<int> stored(f.k);
  for (int c = 0; c < f.k; c++) stored[weights.input(c)] = c;
  out.compare("dequantize " + formatName(f) + " " + nameOf(elem), unitOf(elem), 1e-6,
              [&](int row, int c) { return weights.at(row, stored[c]); });
}

struct Epilogue {
  bool residual, bias, floatOut;
};

// Scratch that starts as NaN, counters that start as 0.
struct Scratch {
  Scratch() : memory(int4ScratchBytes(kMaxK)), counters(std::vector<int>(int4Counters(kMaxN), 0)) {}
  bool countersAreZero() const {
    const auto values = counters.download<int>();
    return std::all_of(values.begin(), values.end(), [](int value) { return value == 0; });
  }
  static constexpr int kMaxK = 16384, kMaxN = 32768;
  Device memory, counters;
};

void checkProduct(const Weights& weights, Elem elem, int rows, Epilogue e, const Scratch& scratch) {
  const Format& f = weights.f;
  const std::string name = formatName(f) + " " + nameOf(elem) + " rows " + std::to_string(rows) +
                           (e.residual ? " residual" : "") + (e.bias ? " bias" : "") +
                           (e.floatOut ? " float out" : "");
  try {
    const Elem outElem = e.floatOut ? Elem::F32 : elem;
    Rows x(elem, rows, f.k, f.k + 24);
    x.fill();
    // wgmma's results are stored 16 bytes at a time.
    const int stride = inOrder ? (f.n + 7) / 8 * 8 + 8 : f.n + 3;
    Rows residual(elem, rows, f.n, stride);
    residual.fill();
    Rows out(outElem, rows, f.n, stride);
    std::vector<float> bias(f.n);
    for (float& each : bias) each = std::normal_distribution<float>()(generator());
    const Device deviceBias(bias);

    Int4Linear step{};
    step.weight = weights.view();
    step.x = x.matrix();
    step.out = out.matrix();
    step.floatOut = e.floatOut;
    if (e.residual) {
      step.residual = out.matrix().data;  // in place
      step.residualStride = residual.stride;
    }
    if (e.bias) step.bias = deviceBias.as<float>();
    step.scratch = scratch.memory.as();
    step.counters = scratch.counters.as<int>();

    if (!int4Takes(step, rows)) {
      report(name + " is left to products of floats", inOrder && f.n % 8 != 0 ? 0 : 1, 0);
      return;
    }
    bool same = true;
    std::vector<uint8_t> first;
    for (int repeat = 0; repeat < 3; repeat++) {
      const size_t bytes = size_t(rows) * out.stride * bytesOf(outElem);
      if (e.residual) {
        check(cudaMemcpy(out.device.as(), residual.device.as(), bytes, cudaMemcpyDefault), "copy");
      } else {
        check(cudaMemset(out.device.as(), 0xff, bytes), "memset");
      }
      int4Linear(elem, step, rows, nullptr);
      const auto result = out.device.download<uint8_t>();
      if (repeat == 0) first = result;
      same = same && result == first;
    }

    // Rows of weights once for all rows of x. Sums in float32 of k products of order 0.05, in the
    // tensor cores with a few bits less.
    std::vector<double> expected(size_t(rows) * f.n);
    parallelFor(f.n, [&](int64_t n) {
      std::vector<double> row(f.k);
      for (int c = 0; c < f.k; c++) row[weights.input(c)] = weights.at(static_cast<int>(n), c);
      for (int r = 0; r < rows; r++) {
        double sum = e.bias ? bias[n] : 0;
        if (e.residual) sum += residual.at(r, n);
        for (int c = 0; c < f.k; c++) sum += row[c] * x.at(r, c);
        expected[size_t(r) * f.n + n] = sum;
      }
    });
    const double absolute = 0.05 * std::sqrt(double(f.k)) * 0x1p-14 + 1e-6;
    out.compare(name, unitOf(outElem), absolute,
                [&](int r, int n) { return expected[size_t(r) * f.n + n]; });
    const bool zero = scratch.countersAreZero();
    if (!same || !zero) report(name, INFINITY, 0, zero ? "(repeats differ)" : "(counters not 0)");
  } catch (const std::exception& error) {
    report(name, INFINITY, 0, error.what());
    cudaGetLastError();
  }
}

// One capture, replayed with other activations: the launch holds nothing of the first.
void checkGraph(const Scratch& scratch) {
  const Weights weights({200, 512, 128, true, true});
  Rows x(Elem::BF16, 9, 512, 512), out(Elem::BF16, 9, 200, 200);
  Int4Linear step{};
  step.weight = weights.view();
  step.x = x.matrix();
  step.out = out.matrix();
  step.scratch = scratch.memory.as();
  step.counters = scratch.counters.as<int>();
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "stream");
  int4Linear(Elem::BF16, step, 9, stream);
  check(cudaStreamSynchronize(stream), "int4Linear");
  const Graph graph(stream, [&] { int4Linear(Elem::BF16, step, 9, stream); });
  for (int replay = 0; replay < 2; replay++) {
    x.fill();
    check(cudaDeviceSynchronize(), "upload");
    graph.launch(stream);
    out.compare("replay " + std::to_string(replay), unitOf(Elem::BF16), 1e-3, [&](int r, int n) {
      double sum = 0;
      for (int c = 0; c < 512; c++) sum += weights.at(n, c) * x.at(r, weights.input(c));
      return sum;
    });
  }
  cudaStreamDestroy(stream);
}

// Bit for bit what the specification says, in float64.
void checkQuantize(int rows, int k, int group, bool symmetric) {
  const int groups = (k + group - 1) / group;
  std::vector<float> values(size_t(rows) * k);
  for (float& each : values) each = std::normal_distribution<float>(0, 0.05f)(generator());
  std::fill_n(values.begin(), std::min(group, k), 0.0f);  // scale 0
  if (rows > 1) {
    for (int c = 0; c < k; c++) values[k + c] = std::abs(values[k + c]) + 0.01f;  // range without 0
  }
  const Device device(values);
  Device codes(values.size()), scales(size_t(rows) * groups * 4), offsets(size_t(rows) * groups * 4);
  int4Quantize(device.as<float>(), rows, k, group, codes.as<int8_t>(), scales.as<float>(),
               symmetric ? nullptr : offsets.as<float>(), nullptr);
  const auto gotCodes = codes.download<int8_t>();
  const auto gotScales = scales.download<float>(), gotOffsets = offsets.download<float>();
  double wrong = 0;
  for (int row = 0; row < rows; row++) {
    for (int g = 0; g < groups; g++) {
      const size_t from = size_t(row) * k + size_t(g) * group;
      const size_t to = std::min(from + group, size_t(row + 1) * k);
      double low = 0, high = 0;
      for (size_t i = from; i < to; i++) {
        low = std::min<double>(low, values[i]);
        high = std::max<double>(high, values[i]);
      }
      const float scale =
          static_cast<float>(symmetric ? std::max(-low, high) / 7 : (high - low) / 15);
      const double zero = symmetric ? 8 : 0 - std::nearbyint(low / (scale == 0 ? 1 : double(scale)));
      for (size_t i = from; i < to; i++) {
        const double code = scale == 0 ? zero : std::nearbyint(values[i] / double(scale)) + zero;
        wrong += gotCodes[i] != std::min(15.0, std::max(0.0, code));
      }
      const size_t at = size_t(row) * groups + g;
      wrong += gotScales[at] != scale;
      if (!symmetric) wrong += gotOffsets[at] != static_cast<float>(-double(scale) * zero);
    }
  }
  report("quantize " + std::to_string(rows) + " x " + std::to_string(k) + " g" +
             std::to_string(group) + (symmetric ? "" : " asym"),
         wrong, 0);
}

void checkRefusals(const Scratch& scratch) {
  const Weights weights({64, 64, 64, false, false});
  Rows x(Elem::F32, 200, 64, 64), out(Elem::F32, 200, 64, 64);
  Int4Linear step{};
  step.weight = weights.view();
  step.x = x.matrix();
  step.out = out.matrix();
  step.scratch = scratch.memory.as();
  step.counters = scratch.counters.as<int>();
  const auto refused = [&](const char* what, Elem elem, int rows) {
    bool thrown = false;
    try {
      int4Linear(elem, step, rows, nullptr);
    } catch (const CudaError&) {
      thrown = true;
    }
    report(what, thrown ? 0 : 1, 0);
  };
  refused("float32 is refused", Elem::F32, 1);
  refused("too many rows are refused", Elem::BF16, kInt4MaxRows + 1);
  step.x.stride = 65;
  refused("rows that are not aligned are refused", Elem::BF16, 2);
}

void checkAll(bool quick) {
  const Scratch scratch;
  for (int group : {32, 64, 128}) {
    for (bool symmetric : {true, false}) {
      checkQuantize(7, 328, group, symmetric);
      checkQuantize(3, 24, group, symmetric);
    }
  }
  checkRefusals(scratch);
  checkGraph(scratch);
  const std::vector<std::pair<int, int>> sizes = {{1, 8},     {17, 96},    {64, 64},   {65, 128},
                                                  {100, 320}, {200, 1000}, {33, 14336},
                                                  {8, 8},     {72, 136},   {40, 14336}};
  const std::vector<int> someRows = {1, 4, 5, 17, 65}, allRows = {1,  2,  4,  5,  8,  9,  15, 16,  17,
                                                                  31, 32, 33, 63, 64, 65, 128};
  for (const auto& [n, k] : sizes) {
    if (quick && n * k > 40000) continue;
    for (int group : {32, 64, 128}) {
      for (bool offsets : {false, true}) {
        const bool columns = group == 128;
        const Weights weights({n, k, group, offsets, columns});
        for (Elem elem : {Elem::F16, Elem::BF16}) {
          checkDequantize(weights, elem);
          for (int rows : quick ? std::vector<int>{1, 17} : someRows) {
            checkProduct(weights, elem, rows, {false, false, false}, scratch);
          }
        }
      }
    }
  }
  if (quick) return;
  for (const auto& [n, k] : std::vector<std::pair<int, int>>{{288, 288}, {1024, 4096}}) {
    for (bool offsets : {false, true}) {
      const Weights weights({n, k, 128, offsets, false});
      for (int rows : allRows) {
        const Elem elem = rows % 2 == 0 ? Elem::F16 : Elem::BF16;
        checkProduct(weights, elem, rows, {true, false, false}, scratch);
        checkProduct(weights, elem, rows, {false, true, true}, scratch);
        checkProduct(weights, elem, rows, {true, true, false}, scratch);
      }
    }
  }
  for (const auto& [n, k] : std::vector<std::pair<int, int>>{
           {4096, 4096}, {6144, 4096}, {28672, 4096}, {4096, 14336}}) {
    const Weights weights({n, k, 128, false, false});
    for (int rows : {1, 16, 64}) {
      checkProduct(weights, Elem::BF16, rows, {false, false, false}, scratch);
    }
  }
}

// Any codes; scales of order 0.01.
__global__ void fillCodes(uint32_t* data, size_t words, uint32_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < words;
       i += size_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 0x9E3779B9u + seed;
    x = (x ^ x >> 16) * 0x85EBCA6Bu;
    data[i] = x ^ x >> 13;
  }
}
__global__ void fillScales(float* data, size_t count) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    data[i] = 0.005f + static_cast<float>(i % 64) * 1e-4f;
  }
}

constexpr double kBandwidth = 4.1e12;

// Each launch has weights of its own, a GB in turn, so that none comes from the L2 cache.
void timeProduct(const char* what, int n, int k, int group, bool offsets,
                 const std::vector<int>& rowCounts, const Scratch& scratch) {
  const size_t bytes = int4Bytes(n, k, group, offsets);
  const size_t codes = int4Bytes(n, k, 128, false) - size_t((n + 63) / 64) * ((k + 127) / 128) * 256;
  const size_t stride = (bytes + 255) / 256 * 256;
  const int copies = static_cast<int>(std::max<size_t>(4, (size_t(1) << 30) / stride));
  const Device arena(stride * copies);
  for (int i = 0; i < copies; i++) {
    uint8_t* at = arena.as<uint8_t>() + i * stride;
    fillCodes<<<256, 256>>>(reinterpret_cast<uint32_t*>(at), codes / 4, i);
    fillScales<<<64, 256>>>(reinterpret_cast<float*>(at + codes), (bytes - codes) / 4);
  }
  check(cudaDeviceSynchronize(), "fill");
  const auto weightOf = [&](int i) {
    return Int4Weight{arena.as<uint8_t>() + (i % copies) * stride, n, k, group, offsets, nullptr, inOrder};
  };
  const double wide = 2.0 * n * k;
  for (int rows : rowCounts) {
    Rows x(Elem::BF16, rows, k, k), out(Elem::BF16, rows, n, n);
    x.fill();
    const double us = timeOf(copies, [&](int i, cudaStream_t stream) {
      Int4Linear step{};
      step.weight = weightOf(i);
      step.x = x.matrix();
      step.out = out.matrix();
      step.scratch = scratch.memory.as();
      step.counters = scratch.counters.as<int>();
      int4Linear(Elem::BF16, step, rows, stream);
    });
    std::printf("%-10s %5d x %5d g%-3d %-4s rows %3d  %8.2f us  %5.2f TB/s  %5.1f %%  %5.2f x bf16\n",
                what, n, k, group, offsets ? "asym" : "", rows, us, bytes / us * 1e-6,
                bytes / us * 1e8 / kBandwidth, wide / kBandwidth * 1e6 / us);
  }
  Device out(static_cast<size_t>(wide));
  const double us = timeOf(std::min(copies, 20), [&](int i, cudaStream_t stream) {
    int4Dequantize(Elem::BF16, weightOf(i), out.as(), stream);
  });
  std::printf("%-10s %5d x %5d g%-3d %-4s to bf16   %8.2f us  %5.2f TB/s read and written\n", what, n,
              k, group, offsets ? "asym" : "", us, (bytes + wide) / us * 1e-6);
}

void timeAll() {
  const Scratch scratch;
  std::printf("%% of %.1f TB/s; x bf16: bf16 weights at that speed would take this many times as long\n",
              kBandwidth * 1e-12);
  const std::vector<int> rows = {1, 4, 8, 16, 32, 64, 96, 128}, few = {1, 16, 32};
  timeProduct("8B qkv", 6144, 4096, 128, false, rows, scratch);
  timeProduct("8B o", 4096, 4096, 128, false, rows, scratch);
  timeProduct("8B gate_up", 28672, 4096, 128, false, rows, scratch);
  timeProduct("8B down", 4096, 14336, 128, false, rows, scratch);
  timeProduct("8B gate_up", 28672, 4096, 128, true, few, scratch);
  timeProduct("8B gate_up", 28672, 4096, 32, false, few, scratch);
  timeProduct("8B gate_up", 28672, 4096, 32, true, few, scratch);
  timeProduct("1B o", 2048, 2048, 128, false, few, scratch);
  timeProduct("1B gate_up", 16384, 2048, 128, false, few, scratch);
}

}  // namespace

int main(int count, char** arguments) {
  bool quick = false, times = false;
  for (int i = 1; i < count; i++) {
    const std::string argument = arguments[i];
    if (argument == "--quick") quick = true;
    else if (argument == "--time") times = true;
    else return std::printf("unknown argument %s\n", argument.c_str()), 2;
  }
  try {
    for (const bool ordered : {false, true}) {
      if (ordered && !int4InOrder()) break;
      inOrder = ordered;
      std::printf("%s\n", ordered ? "by wgmma" : "by mma.sync");
      times ? timeAll() : checkAll(quick);
    }
  } catch (const std::exception& error) {
    report("stopped", INFINITY, 0, error.what());
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed > 0;
}
