// Times of attention at the shapes of dev/attention.md: every launch reads the cache of another
// layer, several GB in turn, so that nothing comes from the L2 cache.
#pragma once
#include <chrono>

#include "attention_case.h"
#include "attention_variants.h"

namespace attention_check {

constexpr double kBandwidth = 4.1e12, kMatmul = 790e12;

// Uniform in (-1, 1), from the element's index.
__global__ void fillUniform(__nv_bfloat16* data, size_t count, uint32_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    uint32_t x = static_cast<uint32_t>(i) * 0x9E3779B9u + seed;
    x = (x ^ x >> 16) * 0x85EBCA6Bu;
    x = (x ^ x >> 13) * 0xC2B2AE35u;
    data[i] = __float2bfloat16(static_cast<int>(x ^ x >> 16) * 0x1p-31f);
  }
}
inline void fill(const Device& device, size_t count, uint32_t seed) {
  fillUniform<<<1024, 256>>>(device.as<__nv_bfloat16>(), count, seed);
  check(cudaGetLastError(), "fill");
}

struct Timed {
  std::string name;
  Layout layout;
  Batch batch;
  bool decode;  // limited by bytes; else by FLOPs
};

inline Batch repeated(int count, int queries, int context) {
  Batch batch;
  for (int i = 0; i < count; i++) batch.add(queries, context);
  return batch;
}

inline std::vector<Timed> timedShapes() {
  const Layout big{Elem::BF16, 32, 8, 128, 16, 0}, small{Elem::BF16, 32, 8, 64, 16, 0};
  const Layout qwen{Elem::BF16, 16, 8, 128, 16, 0}, windowed{Elem::BF16, 32, 8, 128, 16, 4096};
  const Layout half{Elem::F16, 32, 8, 128, 16, 0}, wide{Elem::BF16, 16, 4, 256, 16, 0};
  const Layout qwen8{Elem::BF16, 16, 8, 128, 16, 0, true};
  const Layout big8{Elem::BF16, 32, 8, 128, 16, 0, true}, small8{Elem::BF16, 32, 8, 64, 16, 0, true};
  Batch uneven = repeated(255, 1, 200), mixed = repeated(64, 1, 1024);
  uneven.add(1, 100000);
  mixed.add(2048, 2048);
  return {
      {"8B decode 64 x 1024", big, repeated(64, 1, 1024), true},
      {"8B decode 256 x 192", big, repeated(256, 1, 192), true},
      {"8B decode 512 x 1500", big, repeated(512, 1, 1500), true},
      {"8B decode 1 x 1024", big, repeated(1, 1, 1024), true},
      {"8B decode 1 x 100000", big, repeated(1, 1, 100000), true},
      {"8B decode 255 x 200 and 100000", big, uneven, true},
      {"8B decode 32 x 16384, window 4096", windowed, repeated(32, 1, 16384), true},
      {"8B decode 64 x 1024 f16", half, repeated(64, 1, 1024), true},
      {"1B decode 64 x 1024", small, repeated(64, 1, 1024), true},
      {"1B decode 256 x 192", small, repeated(256, 1, 192), true},
      {"1B decode 512 x 1500", small, repeated(512, 1, 1500), true},
      {"qwen3-0.6b decode 256 x 600", qwen, repeated(256, 1, 600), true},
      {"qwen3-0.6b decode 64 x 512", qwen, repeated(64, 1, 512), true},
      {"qwen3-0.6b fp8 decode 256 x 600", qwen8, repeated(256, 1, 600), true},
      {"qwen3-0.6b fp8 decode 64 x 1000", qwen8, repeated(64, 1, 1000), true},
      {"16/4 dim 256 decode 64 x 1024", wide, repeated(64, 1, 1024), true},
      {"8B fp8 decode 64 x 1024", big8, repeated(64, 1, 1024), true},
      {"8B fp8 decode 256 x 192", big8, repeated(256, 1, 192), true},
      {"8B fp8 decode 512 x 1500", big8, repeated(512, 1, 1500), true},
      {"1B fp8 decode 64 x 1024", small8, repeated(64, 1, 1024), true},
      {"1B fp8 decode 512 x 1500", small8, repeated(512, 1, 1500), true},
      {"8B fp8 prefill 8 x 4096", big8, repeated(8, 4096, 4096), false},
      {"8B fp8 prefill 256 x 128", big8, repeated(256, 128, 128), false},
      {"1B fp8 prefill 8 x 4096", small8, repeated(8, 4096, 4096), false},
      {"qwen3-0.6b fp8 prefill 16 x 512", qwen8, repeated(16, 512, 512), false},
      {"qwen3-0.6b prefill 16 x 512", qwen, repeated(16, 512, 512), false},
      {"8B prefill 8 x 4096", big, repeated(8, 4096, 4096), false},
      {"8B prefill 1 x 16384", big, repeated(1, 16384, 16384), false},
      {"8B prefill 256 x 128", big, repeated(256, 128, 128), false},
      {"8B prefill 4 x 512 at 8192", big, repeated(4, 512, 8192), false},
      {"8B prefill 1 x 512 at 32768", big, repeated(1, 512, 32768), false},
      {"8B 16 x 8 tokens at 4096", big, repeated(16, 8, 4096), true},
      {"8B 64 decodes and 2048 tokens", big, mixed, false},
      {"1B prefill 8 x 4096", small, repeated(8, 4096, 4096), false},
      {"16/4 dim 256 prefill 8 x 4096", wide, repeated(8, 4096, 4096), false},
  };
}

// Keys and values that a step has to read once, queries and outputs.
inline double bytesOf(const Timed& timed) {
  double bytes = 0;
  for (int s = 0; s < timed.batch.seqs(); s++) {
    const int length = timed.batch.queryStart[s + 1] - timed.batch.queryStart[s];
    int keys = timed.batch.contextLens[s];
    if (timed.layout.window > 0) keys = std::min(keys, timed.layout.window + length - 1);
    bytes += 2.0 * kvBytesOf(timed.layout) * keys * timed.layout.kvHeads * timed.layout.headDim;
    bytes += 4.0 * length * timed.layout.heads * timed.layout.headDim;
  }
  return bytes;
}
inline double flopsOf(const Timed& timed) {
  double pairs = 0;
  for (int s = 0; s < timed.batch.seqs(); s++) {
    const double length = timed.batch.queryStart[s + 1] - timed.batch.queryStart[s];
    pairs += length * (timed.batch.contextLens[s] - length) + length * (length + 1) / 2;
  }
  return 4 * pairs * timed.layout.heads * timed.layout.headDim;
}

// A buffer of layers, filled once: shapes take as much of it as they need.
struct Arena {
  static constexpr size_t kBytes = size_t{9} << 30;
  Device keys{kBytes / 2}, values{kBytes / 2};
  Arena() {
    fill(keys, kBytes / 4, 1);
    fill(values, kBytes / 4, 2);
  }
};

inline double medianOf(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Microseconds of a launch: medians over graphs of as many launches as there are layers.
inline double timeStep(const Timed& timed, const Arena& arena) {
  const Layout& l = timed.layout;
  const AttentionShape shape = l.shape();
  const Batch& batch = timed.batch;
  std::vector<int> tableStart{0}, tables;
  for (int context : batch.contextLens) {
    tableStart.push_back(tableStart.back() + (context + l.blockSize - 1) / l.blockSize);
  }
  tables.resize(tableStart.back());
  std::iota(tables.begin(), tables.end(), 0);
  std::shuffle(tables.begin(), tables.end(), std::mt19937(3));
  const size_t layerBytes =
      tables.size() * size_t(l.kvHeads) * l.blockSize * shape.headStride * kvBytesOf(l);
  const int layers =
      static_cast<int>(std::min<size_t>(Arena::kBytes / 2 / layerBytes, 32));
  const int width = l.heads * l.headDim;
  const Device q(size_t(batch.tokens()) * width * 2), out(size_t(batch.tokens()) * width * 2);
  fill(q, size_t(batch.tokens()) * width, 3);
  const Device starts(batch.queryStart), contexts(batch.contextLens), tableIds(tables),
      tableStarts(tableStart);
  std::vector<char> planHost(attentionPlanBytes(shape, batch.tokens(), batch.seqs()));
  const bool graph = batch.tokens() == batch.seqs();
  const AttentionPlan plan =
      planAttention(shape, batch.view(), batch.seqs(), graph, planHost.data());
  const Device planDevice(planHost);
  const size_t scratchBytes = attentionScratchBytes(shape, batch.tokens(), batch.seqs());
  const Device scratch(scratchBytes);
  check(cudaMemset(scratch.as(), 0, kCounterBytes), "scratch");
  const AttentionInputs in{starts.as<int>(),      contexts.as<int>(), tableIds.as<int>(),
                           tableStarts.as<int>(), planDevice.as(),    scratch.as()};
  cudaStream_t stream;
  cudaEvent_t begin, end;
  check(cudaStreamCreate(&stream), "stream");
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  check(cudaDeviceSynchronize(), "inputs");
  const Graph replayed(stream, [&] {
    for (int layer = 0; layer < layers; layer++) {
      const KvLayer kv{arena.keys.as<char>() + layer * layerBytes,
                       arena.values.as<char>() + layer * layerBytes,
                       l.kvHeads, l.headDim, shape.headStride, l.blockSize, l.fp8};
      attention(shape, plan, in, kv, {q.as(), width, width}, {out.as(), width, width}, stream);
    }
  });
  std::vector<double> times;
  double total = 0;
  // The first round warms up; another is needed however long it takes.
  for (int round = 0; round < 2 || (round < 8 && total < 0.25e6); round++) {
    check(cudaEventRecord(begin, stream), "event");
    replayed.launch(stream);
    check(cudaEventRecord(end, stream), "event");
    check(cudaEventSynchronize(end), "graph");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "event");
    total += ms * 1e3;
    if (round > 0) times.push_back(ms * 1e3 / layers);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaStreamDestroy(stream);
  return medianOf(times);
}

inline void printTime(const std::string& name, const Timed& timed, double us) {
  const double rate = (timed.decode ? bytesOf(timed) : flopsOf(timed)) / (us * 1e-6);
  std::printf("%-36s %-36s %10.1f us %8.2f %s %5.1f %% of %s\n", timed.name.c_str(), name.c_str(),
              us, rate / 1e12, timed.decode ? "TB/s   " : "TFLOP/s",
              100 * rate / (timed.decode ? kBandwidth : kMatmul),
              timed.decode ? "4.1 TB/s" : "790 TFLOP/s");
  std::fflush(stdout);
}

inline void timeShapes() {
  const Arena arena;
  for (const Timed& timed : timedShapes()) printTime("", timed, timeStep(timed, arena));
  // The host's share of a decode step.
  const Layout big{Elem::BF16, 32, 8, 128, 16, 0};
  const Batch batch = repeated(512, 1, 1500);
  std::vector<char> plan(attentionPlanBytes(big.shape(), 512, 512));
  std::vector<double> times;
  for (int i = 0; i < 101; i++) {
    const auto start = std::chrono::steady_clock::now();
    planAttention(big.shape(), batch.view(), 512, true, plan.data());
    times.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() * 1e6);
  }
  std::printf("planAttention, 512 decodes: %.1f us on the host\n", medianOf(times));
}

// The shapes that decide, with each alternative; number 0 is the product's.
inline void timeExperiments() {
#ifdef MILLRACE_ATTENTION_EXPERIMENTS
  const Arena arena;
  for (const Timed& timed : timedShapes()) {
    const bool decodes = timed.batch.tokens() == timed.batch.seqs();
    if (timed.layout.headDim == 256 || timed.layout.elem == Elem::F16) continue;
    for (int variant = 0; variant < kAttentionVariants; variant++) {
      (decodes ? attentionVariants.decode : attentionVariants.prefill) = variant;
      const AttentionShape shape = timed.layout.shape();
      const char* name = decodes ? decodeVariantName(shape) : prefillVariantName(shape);
      if (name != nullptr) {
        printTime(std::to_string(variant) + ": " + name, timed, timeStep(timed, arena));
      }
    }
    attentionVariants = {};
  }
#else
  std::printf("built without MILLRACE_ATTENTION_EXPERIMENTS\n");
#endif
}

}  // namespace attention_check
