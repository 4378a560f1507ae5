// Checks native/cuda/hopper_gemm.cu against float64, every way of cutting a product, and times it beside
// the library. Without a Hopper GPU there is nothing to check, and it says so.
#include <cuda_fp8.h>

#include <algorithm>
#include <cstdio>
#include <memory>

#include "fp8.h"
#include "hopper.h"
#include "hopper_gemm.h"
#include "kernel_check.h"
#include "launch.h"

namespace {

using namespace kernel_check;

struct Shape {
  int n, k;
  bool fp8, floatOut, residual, bias;
  int gap;  // elements between rows
};

// The same numbers for codes as for floats: what a code stands for.
float valueOf(uint8_t code) {
  __nv_fp8_e4m3 element;
  element.__x = code;
  return static_cast<float>(element);
}

// A factor of a product: rows of numbers, of `elem` or of e4m3 codes with a scale for each row.
struct Factor {
  Factor(Elem elem, bool fp8, int rows, int width, int64_t stride)
      : rows(rows), width(width), stride(stride), values(size_t(rows) * width) {
    std::normal_distribution<float> normal(0, 1);
    const int size = fp8 ? 1 : 2;
    // What lies between and behind the rows is NaN, which no result may show.
    std::vector<uint8_t> bytes((size_t(rows) * stride + 512) * size, 0xff);
    std::vector<float> factors(rows);
    for (int r = 0; r < rows; r++) {
      factors[r] = fp8 ? 0.01f + (generator()() % 1000) * 1e-4f : 1;
      for (int c = 0; c < width; c++) {
        const size_t at = size_t(r) * stride + c;
        float value;
        if (fp8) {
          bytes[at] = __nv_cvt_float_to_fp8(40 * normal(generator()), __NV_SATFINITE, __NV_E4M3);
          value = valueOf(bytes[at]) * factors[r];
        } else {
          encode(elem, bytes.data(), at, normal(generator()));
          value = decode(elem, bytes.data(), at);
        }
        values[size_t(r) * width + c] = value;
      }
    }
    data = std::make_unique<Device>(bytes);
    scales = std::make_unique<Device>(factors);
  }
  double at(int r, int c) const { return values[size_t(r) * width + c]; }

  int rows, width;
  int64_t stride;
  std::vector<float> values;
  std::unique_ptr<Device> data, scales;
};

Product productOf(const Shape& shape, Elem elem, int64_t xStride, int64_t residualStride,
                  int64_t outStride) {
  return {shape.n,       shape.k,    elem,    shape.fp8,      shape.floatOut, shape.residual,
          shape.bias,    xStride,    residualStride, outStride, 16, false};
}

// The same product that leaves the best of every kBestWidth outputs, beside its results. Biases of some outputs
// make logits of them that no token may be chosen by.
void checkBest(Product product, ProductCall call, const HopperTiles& tiles, int rows, std::vector<float> biases,
               const std::string& name) {
  if (product.bias) {
    biases[biases.size() / 2] = INFINITY;
    biases[biases.size() / 3] = NAN;
    biases[0] = -INFINITY;
  }
  const Device bias(biases);
  call.biasFloats = bias.as<float>();
  const Rows out(Elem::F32, rows, product.n, product.outStride);
  call.out = out.matrix().data;
  hopperGemm(product, call, tiles, rows, nullptr);
  const int count = bestsOf(product.n);
  const Device bests(size_t(rows) * count * sizeof(BestKey));
  product.best = true;
  call.out = bests.as();
  hopperGemm(product, call, tiles, rows, nullptr);
  const auto values = out.device.download<float>();
  const auto got = bests.download<BestKey>();
  int wrong = 0, unusable = 0;
  for (int r = 0; r < rows; r++) {
    for (int group = 0; group < count; group++) {
      int best = group * kBestWidth;
      bool usable = true;
      for (int o = best; o < std::min(product.n, (group + 1) * kBestWidth); o++) {
        const float value = values[r * product.outStride + o];
        usable = usable && value < INFINITY;
        if (value > values[r * product.outStride + best]) best = o;
      }
      const BestKey key = got[size_t(r) * count + group];
      const float value = values[r * product.outStride + best];
      unusable += !usable;
      if (!usable) wrong += key != ~0ull;
      else if (value > -INFINITY) wrong += int(~unsigned(key)) != best;
    }
  }
  const bool seen = !product.bias || unusable > 0;
  report(name + ", the best", wrong + !seen, 0, seen ? "" : "(nothing unusable)");
}

void checkShape(const Shape& shape, Elem elem, const std::vector<int>& rowCounts) {
  const Factor weight(elem, shape.fp8, shape.n, shape.k, shape.k);
  std::vector<float> biases(shape.n);
  for (float& each : biases) each = generator()() % 100 * 0.1f;
  const Device bias(biases);
  for (const int rows : rowCounts) {
    const Factor x(elem, shape.fp8, rows, shape.k, shape.k + 2 * shape.gap);
    Rows residual(elem, rows, shape.n, shape.n + shape.gap);
    residual.fill(10);
    const Elem outElem = shape.floatOut ? Elem::F32 : elem;
    const Product product = productOf(shape, elem, x.stride, shape.residual ? residual.stride : 0,
                                      shape.n + shape.gap);
    // In float64, with the sum of absolute values that rounding is measured by.
    std::vector<double> want(size_t(rows) * shape.n), size(want.size());
    parallelFor(rows, [&](int64_t r) {
      for (int o = 0; o < shape.n; o++) {
        double sum = 0, all = 0;
        for (int c = 0; c < shape.k; c++) {
          const double term = x.at(r, c) * weight.at(o, c);
          sum += term;
          all += std::abs(term);
        }
        if (shape.bias) sum += biases[o];
        if (shape.residual) sum += residual.at(r, o);
        want[r * shape.n + o] = sum;
        size[r * shape.n + o] = all;
      }
    });
    for (const HopperTiles& tiles : hopperTiles(product, rows)) {
      Rows out(outElem, rows, shape.n, shape.n + shape.gap);
      ProductCall call{};
      call.weight = weight.data->as();
      call.x = x.data->as();
      call.residual = residual.matrix().data;
      call.biasFloats = bias.as<float>();
      call.out = out.matrix().data;
      if (shape.fp8) {
        call.weightScales = weight.scales->as<float>();
        call.xScales = x.scales->as<float>();
      }
      hopperGemm(product, call, tiles, rows, nullptr);
      // Tensor cores add with fewer bits than float32 has: of e4m3 some 14, in chains of 16 (at most 16
      // half units of the last place), of 16-bit types more.
      const double sums = shape.fp8 ? 16 * 0x1p-15 : 4e-6;
      double worst = 0;
      bool gaps = true;
      const auto got = out.device.download<uint8_t>();
      for (int r = 0; r < rows; r++) {
        for (int o = 0; o < out.stride; o++) {
          const double value = decode(outElem, got.data(), r * out.stride + o);
          if (o >= shape.n) {
            gaps = gaps && std::isnan(value);
            continue;
          }
          const size_t at = size_t(r) * shape.n + o;
          const double bound = unitOf(outElem) * std::abs(want[at]) + sums * size[at] + 1e-6;
          const double error = std::abs(value - want[at]) / bound;
          worst = std::isnan(error) ? INFINITY : std::max(worst, error);
        }
      }
      const std::string name = std::string(shape.fp8 ? "fp8 " : "") + nameOf(elem) + " " +
                               std::to_string(rows) + " x " + std::to_string(shape.k) + " x " +
                               std::to_string(shape.n) + (shape.floatOut ? " f32" : "") +
                               (shape.residual ? " +r" : "") + (shape.bias ? " +b" : "") + ": " +
                               describe(tiles);
      report(name, gaps ? worst : INFINITY, 1, gaps ? "" : "(wrote between rows)");
      if (shape.floatOut) checkBest(product, call, tiles, rows, biases, name);
    }
  }
}

void checkAll(bool quick) {
  const std::vector<int> few = {1, 17, 130}, many = {1, 7, 16, 33, 64, 100, 128, 129, 200, 256, 300, 512};
  for (const bool fp8 : {false, true}) {
    checkShape({136, 208, fp8, false, true, false, 8}, Elem::BF16, quick ? few : many);
    checkShape({264, 1040, fp8, false, false, true, 0}, Elem::F16, few);
    checkShape({1000, 592, fp8, true, false, false, 8}, Elem::BF16, few);
    checkShape({8, 16, fp8, false, true, true, 8}, Elem::BF16, few);
    if (quick) continue;
    checkShape({512, 4096, fp8, false, true, true, 0}, Elem::BF16, {8, 64, 128, 256, 384});
    checkShape({384, 2048, fp8, true, false, true, 0}, Elem::F16, {48, 192});
    // More tiles than fit on the GPU at a time.
    checkShape({40008, 80, fp8, false, true, false, 8}, Elem::BF16, {5, 70, 140});
  }
}

// Bytes or halves that are no NaN.
__global__ void fillNumbers(uint32_t* data, size_t words, uint32_t seed, uint32_t keep, uint32_t set) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < words;
       i += size_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 0x9E3779B9u + seed;
    x = (x ^ x >> 16) * 0x85EBCA6Bu;
    x = (x ^ x >> 13) * 0xC2B2AE35u;
    data[i] = ((x ^ x >> 16) & keep) | set;
  }
}
// Codes of either sign with exponents up to 2^0, bf16 of either sign between 2^-4 and 2^-3.
void fill(void* data, size_t bytes, bool fp8, uint32_t seed) {
  fillNumbers<<<1024, 256>>>(static_cast<uint32_t*>(data), bytes / 4, seed,
                             fp8 ? 0xbfbfbfbfu : 0x807f807fu, fp8 ? 0u : 0x3d803d80u);
}
__global__ void fillOnes(float* data, int count) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) data[i] = 1e-3f;
}

// Each launch has weights of its own, a GB in turn, so that none comes from the L2 cache.
void timeProduct(const char* what, int n, int k, bool fp8, bool floatOut,
                 const std::vector<int>& rowCounts, Gemm& library, bool norms) {
  const size_t bytes = size_t(n) * k * (fp8 ? 1 : 2);
  const int copies = static_cast<int>(std::clamp<size_t>((size_t(1) << 30) / bytes, 4, 24));
  const Device arena(bytes * copies), x(size_t(512) * k * 2), scales(size_t(std::max(n, 512)) * 4);
  const Device out(size_t(512) * n * (floatOut ? 4 : 2));
  fill(arena.as(), bytes * copies, fp8, 1);
  fill(x.as(), size_t(512) * k * 2, fp8, 2);
  fillOnes<<<1, 256>>>(scales.as<float>(), std::max(n, 512));
  check(cudaDeviceSynchronize(), "fill");
  const Product product = {n, k, Elem::BF16, fp8, floatOut, false, false, k, 0, n, 16, false};
  std::vector<ProductCall> calls(copies);
  for (int i = 0; i < copies; i++) {
    calls[i].weight = arena.as<uint8_t>() + bytes * i;
    calls[i].x = x.as();
    calls[i].out = out.as();
    calls[i].weightScales = calls[i].xScales = scales.as<float>();
  }
  // A norm of the rows, as comes before products in a model.
  const Device ones(size_t(k) * 4), source(size_t(512) * k * 2);
  fillOnes<<<1, 256>>>(ones.as<float>(), k);
  fill(source.as(), size_t(512) * k * 2, false, 3);
  const auto prepare = [&](int rows, cudaStream_t on) {
    if (!norms) return;
    const Matrix from = {source.as(), k, k};
    if (fp8) {
      fp8RmsNorm(Elem::BF16, from, ones.as<float>(), 1e-5f, rows, {x.as(), k, scales.as<float>()}, on);
    } else {
      rmsNorm(Elem::BF16, from, nullptr, ones.as<float>(), 1e-5f, k, rows, {x.as(), k, k}, on);
    }
  };
  Stream stream;
  const int id = library.add(product);
  library.tune(id, calls, *std::max_element(rowCounts.begin(), rowCounts.end()), stream);
  for (const int rows : rowCounts) {
    struct Timed {
      HopperTiles tiles;
      double us;
    };
    std::vector<Timed> list;
    for (const HopperTiles& tiles : hopperTiles(product, rows)) {
      const double us = timeOf(copies, [&](int i, cudaStream_t on) {
        prepare(rows, on);
        hopperGemm(product, calls[i], tiles, rows, on);
      });
      list.push_back({tiles, us});
    }
    std::sort(list.begin(), list.end(), [](const Timed& a, const Timed& b) { return a.us < b.us; });
    const double theirs = timeOf(copies, [&](int i, cudaStream_t on) {
      prepare(rows, on);
      library.run(id, calls[i], rows, on);
    });
    if (list.empty()) continue;
    const double us = list[0].us;
    std::printf("%-12s %s rows %3d  library %8.2f us  ours %8.2f us %5.2f x  %5.2f TB/s %4.0f TFLOP/s  %s",
                what, fp8 ? "fp8 " : "bf16", rows, theirs, us, theirs / us, bytes / us * 1e-6,
                2.0 * n * k * rows / us * 1e-6, describe(list[0].tiles).c_str());
    for (size_t i = 1; i < std::min<size_t>(3, list.size()); i++) {
      std::printf(" | %.2f %s", list[i].us, describe(list[i].tiles).c_str());
    }
    std::printf("\n");
  }
}

// `only`: the start of the names of the products, such as "0.6B".
void timeAll(bool norms, const std::string& only) {
  overlapLaunches = norms && launchesCanOverlap();
  const Device workspace(Gemm::kWorkspaceBytes);
  Gemm library({"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}, workspace.as(), false);
  const std::vector<int> rows = {1, 16, 32, 64, 96, 128, 192, 256, 384, 512}, some = {16, 64, 128, 256};
  struct Matrix {
    const char* name;
    int n, k;
    bool floatOut = false;
  };
  const Matrix layer[] = {{"8B qkv", 6144, 4096},
                          {"8B o", 4096, 4096},
                          {"8B gate_up", 28672, 4096},
                          {"8B down", 4096, 14336}};
  const Matrix others[] = {{"8B head", 128256, 4096, true}, {"1B qkv", 3072, 2048},
                           {"1B o", 2048, 2048},            {"1B gate_up", 16384, 2048},
                           {"1B down", 2048, 8192},         {"0.6B qkv", 4096, 1024},
                           {"0.6B o", 1024, 2048},          {"0.6B gate_up", 6144, 1024},
                           {"0.6B down", 1024, 3072}};
  const auto wanted = [&](const std::string& name) { return name.compare(0, only.size(), only) == 0; };
  for (const bool fp8 : {true, false}) {
    for (const auto& [name, n, k, floatOut] : layer) {
      if (!wanted(name)) continue;
      timeProduct(name, n, k, fp8, floatOut, rows, library, norms);
    }
  }
  for (const auto& [name, n, k, floatOut] : others) {
    if (!wanted(name)) continue;
    timeProduct(name, n, k, false, floatOut, some, library, norms);
  }
}

}  // namespace

int main(int count, char** arguments) {
  bool quick = false, times = false, norms = false;
  std::string only;
  for (int i = 1; i < count; i++) {
    const std::string argument = arguments[i];
    if (argument == "--quick") quick = true;
    else if (argument == "--time") times = true;
    else if (argument == "--only" && i + 1 < count) only = arguments[++i];
    else if (argument == "--norms") norms = true;  // each product behind a norm, launches overlap
    else return std::printf("unknown argument %s\n", argument.c_str()), 2;
  }
  try {
    if (!hopperAvailable()) {
      std::printf("no Hopper GPU, or not built for sm_90a: nothing to check\n0 passed, 0 failed\n");
      return 0;
    }
    times ? timeAll(norms, only) : checkAll(quick);
  } catch (const std::exception& error) {
    report("stopped", INFINITY, 0, error.what());
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed > 0;
}
