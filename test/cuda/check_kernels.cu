// Checks elementwise.cu, fp8.cu, qkv.cu and moe.cu against float64 on the host. `--quick`: small cases only,
// for compute-sanitizer; `--time`: a table of times; `--overlap`: programmatic dependent launch on.
#include <algorithm>
#include <memory>
#include <numeric>

#include "fp8_checks.h"
#include "kernel_check.h"
#include "launch.h"

using namespace kernel_check;

namespace {

bool quick = false;
const Elem kElems[] = {Elem::F32, Elem::F16, Elem::BF16};

std::string label(const char* what, Elem elem, std::initializer_list<int> numbers) {
  std::string text = std::string(what) + " " + nameOf(elem);
  for (int n : numbers) text += " " + std::to_string(n);
  return text;
}
double siluOf(double x) { return x / (1 + std::exp(-x)); }
int below(int n) { return static_cast<int>(generator()() % n); }
double boundOf(Elem elem) { return unitOf(elem) * 1.01 + 1e-5; }  // one rounding of a good value

// ---------------------------------------------------------------- elementwise.cu

void checkRowKernels(Elem elem, int rows, int width, int gap, int shift) {
  const double bound = boundOf(elem);
  const auto name = [&](const char* what) { return label(what, elem, {rows, width, gap, shift}); };
  Rows a(elem, rows, width, width + gap, shift), b(elem, rows, width, width + gap, shift);
  a.fill();
  b.fill();
  {
    Rows out(elem, rows, width, width + gap, shift);
    add(elem, a.matrix(), b.matrix(), rows, out.matrix(), nullptr);
    out.compare(name("add"), bound, 1e-6, [&](int r, int c) { return a.at(r, c) + b.at(r, c); });
  }
  {
    Rows wide(elem, rows, 2 * width, 2 * width + gap, shift), out(elem, rows, width, width + gap);
    wide.fill(3);
    siluMul(elem, wide.matrix(), rows, out.matrix(), nullptr);
    out.compare(name("siluMul"), bound, 1e-6,
                [&](int r, int c) { return siluOf(wide.at(r, c)) * wide.at(r, c + width); });
  }
  {
    std::vector<int> index(2 * rows), tokens(2 * rows), drawn(rows);
    for (int& i : drawn) i = below(rows + 1) - 1;
    for (size_t i = 0; i < index.size(); i++) {
      const int row = below(rows);
      const bool stands = below(3) == 0;  // for what was drawn in the row
      tokens[i] = stands ? -1 - row : row;
      index[i] = stands ? std::max(drawn[row], 0) : row;
    }
    const Device indices(index), given(tokens), previous(drawn);
    Rows table(elem, rows, width, width, shift), out(elem, 2 * rows, width, width + gap);
    table.fill();
    embed(elem, table.matrix().data, given.as<int>(), previous.as<int>(), 2 * rows, out.matrix(), nullptr);
    out.compare(name("embed"), 0, 1e-30, [&](int r, int c) { return table.at(index[r], c); });
    Rows gathered(elem, 2 * rows, width, width + gap, shift);
    gatherRows(elem, a.matrix(), indices.as<int>(), 2 * rows, gathered.matrix(), nullptr);
    gathered.compare(name("gatherRows"), 0, 1e-30, [&](int r, int c) { return a.at(index[r], c); });
  }
  std::vector<float> vector(width);
  for (float& v : vector) v = 0.5f + below(1000) / 1000.f;
  const Device weight(vector);
  {
    Rows x(elem, rows, width, width + gap, shift);
    x.fill();
    addBias(elem, x.matrix(), weight.as<float>(), rows, nullptr);
    x.compare(name("addBias"), bound, 1e-6, [&](int r, int c) { return x.at(r, c) + vector[c]; });
  }
  for (const bool withResidual : {false, true}) {
    const int group = withResidual || width % 4 != 0 ? width : width / 4;
    Rows out(elem, rows, width, width + gap, shift), residual(elem, rows, width, width + gap, shift);
    residual.fill();
    const Matrix matrix = residual.matrix();
    rmsNorm(elem, a.matrix(), withResidual ? &matrix : nullptr, weight.as<float>(), 1e-5f, group,
            rows, out.matrix(), nullptr);
    std::vector<float> sums(size_t(rows) * width);
    std::vector<double> scales(size_t(rows) * (width / group));
    for (int r = 0; r < rows; r++) {
      for (int c = 0; c < width; c++) {
        float sum = float(a.at(r, c));
        if (withResidual) {
          float rounded;
          encode(elem, &rounded, 0, float(residual.at(r, c)) + sum);
          sum = decode(elem, &rounded, 0);
        }
        sums[size_t(r) * width + c] = sum;
        scales[r * (width / group) + c / group] += double(sum) * sum;
      }
    }
    for (double& s : scales) s = 1 / std::sqrt(s / group + 1e-5f);
    out.compare(name(withResidual ? "rmsNorm with residual" : "rmsNorm by group"), bound, 1e-6,
                [&](int r, int c) {
                  return sums[size_t(r) * width + c] * scales[r * (width / group) + c / group] *
                         vector[c % group];
                });
    if (withResidual) {
      residual.compare(name("its residual"), 0, 1e-30,
                       [&](int r, int c) { return sums[size_t(r) * width + c]; });
    }
  }
}

void checkLoading(Elem elem) {
  const int count = quick ? 1001 : 1000003;
  const size_t first = 0xfffffff0u;  // indices count modulo 2^32
  const uint32_t seed = 0x12345678;
  Rows filled(elem, 1, count, count);
  fillDummy(elem, filled.device.as(), first, count, seed, 1.f, 0.03125f, nullptr);
  filled.compare(label("fillDummy", elem, {count}), 0, 1e-30, [&](int, int c) {
    uint32_t x = seed ^ static_cast<uint32_t>(first + c);
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    x ^= x >> 16;
    float bits;
    encode(elem, &bits, 0, float(1 + 0.03125 * ((x >> 8) * 0x1p-23 - 1)));
    return double(decode(elem, &bits, 0));
  });
  Rows floats(Elem::F32, 1, count, count), out(elem, 1, count, count);
  floats.fill();
  convertFloats(Elem::F32, floats.device.as(), elem, out.device.as(), count, nullptr);
  const auto rounded = [&](int, int c) {
    float bits;
    encode(elem, &bits, 0, float(floats.at(0, c)));
    return double(decode(elem, &bits, 0));
  };
  out.compare(label("convertFloats to", elem, {count}), 0, 1e-30, rounded);
  Rows back(Elem::F32, 1, count, count);
  convertFloats(elem, out.device.as(), Elem::F32, back.device.as(), count, nullptr);
  back.compare(label("convertFloats from", elem, {count}), 0, 1e-30, rounded);
}

// ---------------------------------------------------------------- qkv.cu

void checkQkv(Elem elem, int rows, int heads, int kvHeads, int headDim, bool norm, bool rope) {
  const int width = (heads + 2 * kvHeads) * headDim, blocks = rows / 16 + 3, half = headDim / 2;
  const int headStride = (headDim + 15) / 16 * 16, maxPosition = 5000;
  Rows qkv(elem, rows, width, width), q(elem, rows, heads * headDim, heads * headDim);
  qkv.fill();
  const int slotCount = blocks * 16, kvRows = slotCount * kvHeads;
  Rows keys(elem, kvRows, headDim, headStride), values(elem, kvRows, headDim, headStride);
  std::vector<int> all(slotCount), positions(rows), slots;
  std::iota(all.begin(), all.end(), 0);
  std::shuffle(all.begin(), all.end(), generator());
  slots.assign(all.begin(), all.begin() + rows);
  for (int& p : positions) p = below(maxPosition);
  if (rows > 2) slots[1] = -1, positions[1] = 1 << 30;
  std::vector<float> weight(headDim);
  for (float& w : weight) w = 0.5f + below(1000) / 1000.f;
  std::vector<double> invFreq(half);
  for (int i = 0; i < half; i++) invFreq[i] = std::pow(10000., -double(i) / half);
  const double scale = 1.25;
  const Device norms(weight), slotsOn(slots), positionsOn(positions);
  const Device table(size_t(maxPosition) * half * sizeof(float2));
  ropeTable(table.as<float2>(), invFreq.data(), half, scale, maxPosition, nullptr);
  const KvLayer kv{keys.device.as(), values.device.as(), kvHeads, headDim, headStride, 16};
  const char* data = qkv.device.as<char>();
  const auto view = [&](int head, int count) {
    return Matrix{const_cast<char*>(data) + size_t(head) * headDim * bytesOf(elem), width,
                  count * headDim};
  };
  const float* normOn = norm ? norms.as<float>() : nullptr;
  qkvStore(elem,
           {view(0, heads), view(heads, kvHeads), view(heads + kvHeads, kvHeads), q.matrix(),
            normOn, normOn, 1e-6f, rope ? table.as<float2>() : nullptr, positionsOn.as<int>(),
            slotsOn.as<int>(), heads, kv},
           rows, nullptr);
  const auto expected = [&](int t, int head, int c) {
    double factor = 1;
    if (norm) {
      double squares = 0;
      for (int i = 0; i < headDim; i++) {
        squares += qkv.at(t, head * headDim + i) * qkv.at(t, head * headDim + i);
      }
      factor = 1 / std::sqrt(squares / headDim + 1e-6f);
    }
    const auto normed = [&](int i) {
      return qkv.at(t, head * headDim + i) * factor * (norm ? weight[i] : 1);
    };
    if (!rope) return normed(c);
    const double angle = (slots[t] < 0 ? 0 : positions[t]) * invFreq[c % half];
    const double other = normed(c < half ? c + half : c - half);
    const double turned = other * std::sin(angle) * scale;
    return normed(c) * std::cos(angle) * scale + (c < half ? -turned : turned);
  };
  const auto name = [&](const char* what) {
    return label(what, elem, {rows, heads, kvHeads, headDim, norm, rope});
  };
  const double bound = boundOf(elem);
  q.compare(name("qkvStore q"), bound, 1e-5,
            [&](int t, int c) { return expected(t, c / headDim, c % headDim); });
  std::vector<int> tokenAt(slotCount, -1);
  for (int t = 0; t < rows; t++) {
    if (slots[t] >= 0) tokenAt[slots[t]] = t;
  }
  // Slots without a token keep their NaN; the padding columns are the gaps of `compare`.
  for (const bool isKey : {true, false}) {
    const Rows& cache = isKey ? keys : values;
    cache.compare(name(isKey ? "qkvStore keys" : "qkvStore values"), isKey ? bound : 0,
                  isKey ? 1e-5 : 1e-30, [&](int row, int c) {
                    const int block = row / (kvHeads * 16), kvHead = row / 16 % kvHeads;
                    const int t = tokenAt[block * 16 + row % 16];
                    if (t < 0) return double(NAN);
                    if (isKey) return expected(t, heads + kvHead, c);
                    return qkv.at(t, (heads + kvHeads + kvHead) * headDim + c);
                  });
  }
}

// The nearest e4m3 number of either sign, of two the one with the even code; from its definition.
uint8_t e4m3Of(float x) {
  const uint8_t sign = std::signbit(x) ? 0x80 : 0;
  if (std::isnan(x)) return 0x7f;
  const double size = std::abs(double(x));
  int best = 0;
  double bestError = INFINITY;
  for (int code = 0; code < 0x7f; code++) {
    const int exponent = code >> 3, mantissa = code & 7;
    const double value =
        exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    const double error = std::isinf(size) ? 448 - value : std::abs(size - value);
    if (error < bestError || (error == bestError && code % 2 == 0)) best = code, bestError = error;
  }
  return sign | best;
}

// Keys and values as they are, in e4m3, to the bit: every 16-bit number, or random float32 ones.
void checkQkvFp8(Elem elem, int headDim) {
  const int kvHeads = 2, headStride = (headDim + 15) / 16 * 16, bs = 16;
  const int columns = 2 * kvHeads * headDim, rows = (65536 + columns - 1) / columns;
  const int width = columns + headDim, bytes = static_cast<int>(bytesOf(elem));
  std::vector<uint8_t> in(size_t(rows) * width * bytes, 0);
  for (int t = 0, n = 0; t < rows; t++) {
    for (int c = headDim; c < width; c++, n++) {
      const uint32_t bits = elem == Elem::F32 ? generator()() >> (n % 3) : n & 0xffff;
      std::memcpy(&in[(size_t(t) * width + c) * bytes], &bits, bytes);
    }
  }
  // Sizes of interest among the float32 numbers.
  for (int t = 0; elem == Elem::F32 && t < rows; t++) {
    for (int c = headDim; c < width; c += 2) {
      const float x = std::ldexp(float(generator()() % 4096) / 256, int(generator()() % 20) - 12);
      std::memcpy(&in[(size_t(t) * width + c) * 4], &x, 4);
    }
  }
  const int blocks = rows / bs + 2;
  std::vector<int> slots(rows);
  std::iota(slots.begin(), slots.end(), 5);
  const size_t cacheBytes = size_t(blocks) * kvHeads * bs * headStride;
  const Device qkv(in), slotsOn(slots), keys(cacheBytes), values(cacheBytes);
  const auto view = [&](int head, int count) {
    return Matrix{qkv.as<char>() + size_t(head) * headDim * bytes, width, count * headDim};
  };
  qkvStore(elem,
           {view(0, 1), view(1, kvHeads), view(1 + kvHeads, kvHeads), view(0, 1), nullptr, nullptr,
            1e-6f, nullptr, slotsOn.as<int>(), slotsOn.as<int>(), 1,
            {keys.as(), values.as(), kvHeads, headDim, headStride, bs, true}},
           rows, nullptr);
  for (const bool isKey : {true, false}) {
    const auto cache = (isKey ? keys : values).download<uint8_t>();
    std::vector<uint8_t> expected(cacheBytes, 0xff);
    for (int t = 0; t < rows; t++) {
      for (int h = 0; h < kvHeads; h++) {
        const size_t to = ((size_t(slots[t] / bs) * kvHeads + h) * bs + slots[t] % bs) * headStride;
        const size_t from = size_t(t) * width + (1 + (isKey ? 0 : kvHeads) + h) * headDim;
        for (int d = 0; d < headDim; d++) {
          expected[to + d] = e4m3Of(decode(elem, in.data(), from + d));
        }
      }
    }
    int wrong = 0;
    for (size_t i = 0; i < cacheBytes; i++) {
      // NaN has two codes.
      wrong += cache[i] != expected[i] && !((cache[i] & 0x7f) == 0x7f && expected[i] == 0x7f);
    }
    report(label(isKey ? "qkvStore fp8 keys" : "qkvStore fp8 values", elem, {headDim}), wrong, 0);
  }
}

// Bytes are what counts: with `fp8`, rows of float16 stand for twice the columns.
void checkCopyBlocks(Elem elem, bool fp8 = false) {
  const int blocks = 9, headDim = 40, headStride = 48, kvHeads = 3, layers = 66;
  const int perBlock = kvHeads * 16;
  std::vector<std::unique_ptr<Rows>> caches;
  std::vector<KvLayer> kv;
  for (int i = 0; i < 2 * layers; i++) {
    caches.push_back(std::make_unique<Rows>(fp8 ? Elem::F16 : elem, blocks * perBlock, headDim, headStride));
    caches.back()->fill();
  }
  for (int l = 0; l < layers; l++) {
    const int factor = fp8 ? 2 : 1;
    kv.push_back({caches[2 * l]->device.as(), caches[2 * l + 1]->device.as(), kvHeads,
                  factor * headDim, factor * headStride, 16, fp8});
  }
  const std::vector<int> pairs = {0, 5, 3, 8, 0, 1};
  const Device pairsOn(pairs);
  copyBlocks(elem, kv.data(), layers, pairsOn.as<int>(), 3, nullptr);
  for (const int i : {0, 1, 2 * layers - 1}) {
    caches[i]->compare(label(fp8 ? "copyBlocks fp8" : "copyBlocks", elem, {i}), 0, 1e-30, [&](int row, int c) {
      int block = row / perBlock;
      for (size_t p = 0; p < pairs.size(); p += 2) {
        if (pairs[p + 1] == block) return caches[i]->at(pairs[p] * perBlock + row % perBlock, c);
      }
      return caches[i]->at(row, c);
    });
  }
}

// ---------------------------------------------------------------- moe.cu

struct MoeCase {
  int rows, experts, topK, width, inner;
  bool normalize, ties;
};

void checkMoe(Elem elem, const MoeCase& test) {
  const int rows = test.rows, experts = test.experts, topK = test.topK;
  const int width = test.width, inner = test.inner;
  const bool normalize = test.normalize, ties = test.ties;
  const std::string name =
      label("moe", elem, {rows, experts, topK, width, inner, normalize, ties});
  Rows x(elem, rows, width, width + 8), router(elem, rows, experts, experts + 3);
  Rows gateUp(elem, experts * 2 * inner, width, width), down(elem, experts * width, inner, inner);
  x.fill();
  if (ties) {
    router.fillWith([] { return float(below(3)) - 1; });
  } else {
    router.fill(2);
  }
  gateUp.fill(1 / std::sqrt(float(width)));
  down.fill(1 / std::sqrt(float(inner)));
  std::vector<double> expected(size_t(rows) * width);
  parallelFor(rows, [&](int64_t t) {
    std::vector<int> order(experts);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return router.at(t, a) > router.at(t, b); });
    double total = 0;
    for (int k = 0; k < (normalize ? topK : experts); k++) total += std::exp(router.at(t, order[k]));
    std::vector<double> hidden(inner);
    for (int k = 0; k < topK; k++) {
      const int64_t expert = order[k];
      for (int i = 0; i < inner; i++) {
        double gate = 0, up = 0;
        for (int c = 0; c < width; c++) {
          gate += x.at(t, c) * gateUp.at(expert * 2 * inner + i, c);
          up += x.at(t, c) * gateUp.at((expert * 2 + 1) * inner + i, c);
        }
        hidden[i] = siluOf(gate) * up;
      }
      const double share = std::exp(router.at(t, expert)) / total;
      for (int o = 0; o < width; o++) {
        double sum = 0;
        for (int i = 0; i < inner; i++) sum += hidden[i] * down.at(expert * width + o, i);
        expected[t * width + o] += share * sum;
      }
    }
  });
  double squares = 0;
  for (double e : expected) squares += e * e;
  const double rms = std::sqrt(squares / expected.size());
  const Device scratch(moeScratchBytes(elem, experts, inner, width, topK, rows));
  Rows out(elem, rows, width, width + 8), again(elem, rows, width, width + 8);
  const auto run = [&](const Rows& to) {
    moe(elem,
        {x.matrix(), router.matrix(), gateUp.device.as(), down.device.as(), experts, inner, topK,
         normalize, to.matrix(), scratch.as()},
        rows, nullptr);
  };
  run(out);
  run(again);
  // Three roundings: the hidden numbers (averaged over a row), each expert's result, the sum.
  const double unit = unitOf(elem);
  out.compare(name, 2 * unit, 12 * unit * rms,
              [&](int t, int c) { return expected[size_t(t) * width + c]; });
  const bool same = out.device.download<uint8_t>() == again.device.download<uint8_t>();
  report(name + " twice the same", same ? 0 : 1, 0);
}

// A launch that is refused fails one case; a fault leaves the device useless and ends the run.
void attempt(const char* name, const std::function<void()>& body) {
  try {
    body();
  } catch (const CudaError& error) {
    report(name, INFINITY, 1, error.what());
    cudaGetLastError();
    if (cudaDeviceSynchronize() != cudaSuccess) throw;
  }
}

void checkAll() {
  attempt("fp8", [] { checkFp8Extremes(); });
  for (const Elem elem : kElems) {
    attempt("Loading", [&] { checkLoading(elem); });
    attempt("RowKernels", [&] { checkRowKernels(elem, 3, 64, 0, 0); });
    attempt("RowKernels", [&] { checkRowKernels(elem, 5, 100, 3, 1); });
    attempt("Fp8", [&] { checkFp8(elem, 5, 48, 3, 1); });
    attempt("Fp8", [&] { checkFp8(elem, 3, 4096, 0, 0); });
    attempt("Qkv", [&] { checkQkv(elem, 5, 4, 2, 16, true, true); });
    attempt("Qkv", [&] { checkQkv(elem, 5, 3, 1, 22, true, true); });
    attempt("QkvFp8", [&] { checkQkvFp8(elem, 22); });
    attempt("QkvFp8", [&] { checkQkvFp8(elem, 64); });
    attempt("CopyBlocks", [&] { checkCopyBlocks(elem); });
    attempt("CopyBlocks", [&] { checkCopyBlocks(elem, true); });
    attempt("Moe", [&] { checkMoe(elem, {5, 8, 2, 64, 40, true, false}); });
    attempt("Moe", [&] { checkMoe(elem, {70, 4, 2, 72, 24, false, true}); });
    attempt("Moe", [&] { checkMoe(elem, {300, 4, 2, 64, 32, true, false}); });
    attempt("Moe", [&] { checkMoe(elem, {9, 5, 3, 33, 17, true, true}); });
    if (quick) continue;
    attempt("RowKernels", [&] { checkRowKernels(elem, 1, 1, 0, 0); });
    attempt("RowKernels", [&] { checkRowKernels(elem, 37, 4096, 8, 0); });
    attempt("RowKernels", [&] { checkRowKernels(elem, 300, 2048, 0, 0); });
    attempt("RowKernels", [&] { checkRowKernels(elem, 7, 8192, 0, 0); });
    attempt("RowKernels", [&] { checkRowKernels(elem, 3, 16384, 16, 0); });
    attempt("RowKernels", [&] { checkRowKernels(elem, 2, 40000, 0, 0); });
    attempt("RowKernels", [&] { checkRowKernels(elem, 11, 5003, 0, 1); });
    attempt("RowKernels", [&] { checkRowKernels(elem, 300, 14336, 0, 0); });
    attempt("Fp8", [&] { checkFp8(elem, 1, 16, 0, 0); });
    attempt("Fp8", [&] { checkFp8(elem, 600, 4096, 8, 0); });
    attempt("Fp8", [&] { checkFp8(elem, 600, 14336, 0, 0); });
    attempt("Fp8", [&] { checkFp8(elem, 64, 14336, 0, 0); });
    attempt("Fp8", [&] { checkFp8(elem, 3, 32768, 0, 0); });
    for (const int headDim : {18, 32, 48, 64, 80, 96, 128, 130, 160, 192, 250, 256}) {
      attempt("Qkv", [&] { checkQkv(elem, 33, 6, 2, headDim, headDim % 64 == 0, true); });
    }
    attempt("Qkv", [&] { checkQkv(elem, 40, 32, 8, 128, false, true); });
    attempt("Qkv", [&] { checkQkv(elem, 40, 32, 8, 128, true, false); });
    attempt("Qkv", [&] { checkQkv(elem, 40, 8, 8, 64, false, false); });
    attempt("Qkv", [&] { checkQkv(elem, 600, 32, 4, 128, true, true); });
    attempt("Moe", [&] { checkMoe(elem, {1, 128, 8, 256, 96, true, false}); });
    attempt("Moe", [&] { checkMoe(elem, {64, 128, 8, 136, 96, true, true}); });
    attempt("Moe", [&] { checkMoe(elem, {65, 128, 8, 136, 72, false, false}); });
    attempt("Moe", [&] { checkMoe(elem, {200, 128, 8, 200, 64, true, false}); });   // 12 rows an expert
    attempt("Moe", [&] { checkMoe(elem, {150, 8, 2, 264, 136, true, false}); });    // 37
    attempt("Moe", [&] { checkMoe(elem, {700, 8, 2, 264, 136, true, false}); });    // 175
    attempt("Moe", [&] { checkMoe(elem, {40, 300, 6, 64, 64, true, false}); });
  }
}

// ---------------------------------------------------------------- times

constexpr double kBandwidth = 4.0, kFlops = 790;  // TB/s, TFLOP/s of an H200, measured

void line(const std::string& name, double us, double bytes, double flops = 0) {
  const double limit = std::max(bytes / kBandwidth, flops / kFlops) / 1e6;  // us
  std::printf("%-40s %10.2f us %8.3f TB/s %8.1f TFLOP/s %7.1f %% of limit\n", name.c_str(), us,
              bytes / us / 1e6, flops / us / 1e6, 100 * limit / us);
}

// Llama-3.1-8B: width 4096, 32 + 8 + 8 heads of 128, inner 14336. Small batches stay in the L2
// cache, as in a step; what is of interest there is the time.
void timeLlama(int rows) {
  const Elem elem = Elem::BF16;
  const int width = 4096, inner = 14336, qkvWidth = 6144, repeats = rows > 1000 ? 10 : 100;
  const double row = 2. * rows;
  const Device a(size_t(rows) * width * 2), b(size_t(rows) * width * 2), c(size_t(rows) * width * 2);
  const Device gates(size_t(rows) * inner * 4), hidden(size_t(rows) * inner * 2);
  const Device qkv(size_t(rows) * qkvWidth * 2), keys(size_t(rows + 16) * 2048);
  const Device values(size_t(rows + 16) * 2048), weight(std::vector<float>(width, 1));
  for (const Device* each : {&a, &b, &c}) cudaMemset(each->as(), 0, size_t(rows) * width * 2);
  std::vector<int> order(rows);
  std::iota(order.begin(), order.end(), 0);
  const Device index(order), table(size_t(rows) * 64 * sizeof(float2));
  const Matrix ma{a.as(), width, width}, mb{b.as(), width, width}, mc{c.as(), width, width};
  const Matrix mGates{gates.as(), 2 * inner, 2 * inner}, mHidden{hidden.as(), inner, inner};
  char* base = qkv.as<char>();
  const Matrix q{base, qkvWidth, 4096}, k{base + 8192, qkvWidth, 1024};
  const Matrix v{base + 10240, qkvWidth, 1024};
  const KvLayer kv{keys.as(), values.as(), 8, 128, 128, 16};
  const auto name = [&](const char* what) { return std::string(what) + " " + std::to_string(rows); };
  const auto timed = [&](const char* what, double bytes, auto f) {
    line(name(what), timeOf(repeats, [&](int, cudaStream_t stream) { f(stream); }), bytes);
  };
  timed("embed / gatherRows", row * 2 * width, [&](cudaStream_t s) {
    embed(elem, a.as(), index.as<int>(), nullptr, rows, mb, s);
  });
  timed("rmsNorm", row * 2 * width, [&](cudaStream_t s) {
    rmsNorm(elem, ma, nullptr, weight.as<float>(), 1e-5f, width, rows, mc, s);
  });
  timed("rmsNorm with residual", row * 4 * width, [&](cudaStream_t s) {
    rmsNorm(elem, ma, &mb, weight.as<float>(), 1e-5f, width, rows, mc, s);
  });
  timed("add", row * 3 * width, [&](cudaStream_t s) { add(elem, ma, mb, rows, mc, s); });
  timed("addBias", row * 2 * width,
        [&](cudaStream_t s) { addBias(elem, ma, weight.as<float>(), rows, s); });
  timed("siluMul", row * 3 * inner, [&](cudaStream_t s) { siluMul(elem, mGates, rows, mHidden, s); });
  const Device codes(size_t(rows) * inner), scales(size_t(rows) * 4);
  const Fp8Rows narrow{codes.as(), width, scales.as<float>()};
  const Fp8Rows wide{codes.as(), inner, scales.as<float>()};
  timed("fp8Quantize", row * 1.5 * width,
        [&](cudaStream_t s) { fp8Quantize(elem, ma, rows, narrow, s); });
  timed("fp8RmsNorm", row * 1.5 * width, [&](cudaStream_t s) {
    fp8RmsNorm(elem, ma, weight.as<float>(), 1e-5f, rows, narrow, s);
  });
  timed("fp8SiluMul", row * 2.5 * inner,
        [&](cudaStream_t s) { fp8SiluMul(elem, mGates, inner, rows, wide, s); });
  timed("qkvStore", row * 2 * qkvWidth, [&](cudaStream_t s) {
    qkvStore(elem,
             {q, k, v, q, nullptr, nullptr, 1e-5f, table.as<float2>(), index.as<int>(),
              index.as<int>(), 32, kv},
             rows, s);
  });
}

// Qwen3-30B-A3B. Each repeat routes other tokens, so that weights come from memory.
void timeMoe(const Device& gateUp, const Device& down, int rows) {
  const int experts = 128, topK = 8, width = 2048, inner = 768, repeats = rows > 1000 ? 4 : 16;
  Rows x(Elem::BF16, rows, width, width), router(Elem::BF16, rows * repeats, experts, experts);
  x.fill();
  router.fill(2);
  Rows out(Elem::BF16, rows, width, width);
  const Device scratch(moeScratchBytes(Elem::BF16, experts, inner, width, topK, rows));
  const double us = timeOf(repeats, [&](int i, cudaStream_t stream) {
    Matrix logits = router.matrix();
    logits.data = static_cast<char*>(logits.data) + size_t(i) * rows * experts * 2;
    moe(Elem::BF16,
        {x.matrix(), logits, gateUp.as(), down.as(), experts, inner, topK, true, out.matrix(),
         scratch.as()},
        rows, stream);
  });
  const double used = experts * (1 - std::pow(1 - double(topK) / experts, rows));
  const double perExpert = 3. * width * inner;
  line("moe qwen3-30b-a3b " + std::to_string(rows), us, used * perExpert * 2 + rows * width * 4.,
       2 * perExpert * rows * topK);
}

void timeAll() {
  for (const int rows : {64, 256, 8192}) timeLlama(rows);
  const size_t gateUpCount = size_t(128) * 1536 * 2048, downCount = size_t(128) * 2048 * 768;
  const Device gateUp(gateUpCount * 2), down(downCount * 2);
  fillDummy(Elem::BF16, gateUp.as(), 0, gateUpCount, 1, 0, 0.03125f, nullptr);
  fillDummy(Elem::BF16, down.as(), 0, downCount, 2, 0, 0.0625f, nullptr);
  check(cudaDeviceSynchronize(), "fillDummy");
  for (const int rows : {1, 32, 256, 4096}) timeMoe(gateUp, down, rows);
}

}  // namespace

int main(int argc, char** argv) {
  bool times = false;
  for (int i = 1; i < argc; i++) {
    const std::string flag = argv[i];
    if (flag == "--quick") {
      quick = true;
    } else if (flag == "--time") {
      times = true;
    } else if (flag == "--overlap") {
      overlapLaunches = launchesCanOverlap();
    } else {
      std::fprintf(stderr, "%s: expected --quick, --time or --overlap\n", argv[i]);
      return 2;
    }
  }
  try {
    checkAll();
    if (times) timeAll();
  } catch (const std::exception& error) {  // the device is lost, or a launch was refused
    std::printf("stopped: %s\n", error.what());
    failed++;
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed > 0 ? 1 : 0;
}
