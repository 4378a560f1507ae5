// Attention of one step over all layers of a model shape: time, bandwidth and arithmetic of decode
// batches and of prefill chunks, beside what the machine can do. `bench/attention.sh` builds and
// runs it. The layers have caches of their own, so that decode reads memory, as it does in a model.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>

#include "../native/cpu/attention.inl"
#include "../native/cpu/sample.inl"
#include "../native/cpu/thread_pool.h"

using namespace millrace;
namespace isa = millrace::MILLRACE_ISA;

namespace {

struct Shape {
  const char* name;
  AttentionShape attention;
  int layers;
};

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Small numbers of the type, so that no product is denormal or infinite.
void fill(uint8_t* data, size_t bytes, DType dtype) {
  for (size_t i = 0; i < bytes / 4; i++) {
    const float x = float(i % 97) * 0.01f - 0.5f;
    const uint16_t half = dtype == DType::F16 ? isa::toF16(x) : isa::toBf16(x);
    const uint16_t pair[2] = {half, half};
    // Of I8 these are the scales; the codes are their bytes.
    if (dtype == DType::F32 || dtype == DType::I8) memcpy(data + 4 * i, &x, 4);
    else memcpy(data + 4 * i, pair, 4);
  }
}

uint8_t* allocate(size_t bytes) {
  return (uint8_t*)::operator new(bytes, std::align_val_t(2 << 20));
}

// The best of several runs of f, in seconds: the machine has noisy neighbours.
template <class F>
double best(F f, int runs = 7) {
  double least = 1e9;
  for (int i = 0; i < runs; i++) {
    const double start = now();
    f();
    least = std::min(least, now() - start);
  }
  return least;
}

double readBandwidth(ThreadPool& pool) {
  const size_t bytes = size_t(256) << 20;
  uint8_t* data = allocate(bytes);
  memset(data, 1, bytes);
  const int parts = 64;
  std::vector<float> sink(parts);
  const double seconds = best([&] {
    pool.parallel(parts, [&](int i, int) {
      const float* p = (const float*)(data + bytes / parts * i);
      isa::Vec a = isa::zero(), b = a, c = a, d = a;
      for (size_t j = 0; j < bytes / parts / 4; j += 64) {
        a = isa::max(a, isa::load(p + j));
        b = isa::max(b, isa::load(p + j + 16));
        c = isa::max(c, isa::load(p + j + 32));
        d = isa::max(d, isa::load(p + j + 48));
      }
      sink[i] = isa::reduceMax(isa::max(isa::max(a, b), isa::max(c, d)));
    });
  });
  ::operator delete(data, std::align_val_t(2 << 20));
  return bytes / seconds;
}

const char* nameOf(DType dtype) {
  switch (dtype) {
    case DType::BF16: return "bf16";
    case DType::F16: return "f16";
    case DType::F32: return "f32";
    case DType::I8: return "int8";
  }
  return "";
}

// What a step of `seqs` sequences, each of `tokens` new tokens ending at `context`, costs.
void measure(ThreadPool& pool, const Shape& shape, DType dtype, int seqs, int tokens, int context,
             double bandwidth) {
  const int blockSize = 16, D = shape.attention.headDim;
  const int perSeq = (context + blockSize - 1) / blockSize, blocks = perSeq * seqs;
  const KvLayout kv = kvLayout(dtype, shape.attention.kvHeads, D, blockSize);
  const size_t layerBytes = kv.blockBytes * blocks;
  if (layerBytes * shape.layers > size_t(6) << 30) return;
  uint8_t* cache = allocate(layerBytes * shape.layers);

  std::vector<int32_t> queryStart(1), contextLens, tables(blocks), tableStart(1), slots;
  for (int i = 0; i < blocks; i++) tables[i] = i;
  std::mt19937 random(1);
  std::shuffle(tables.begin(), tables.end(), random);
  for (int s = 0; s < seqs; s++) {
    queryStart.push_back(queryStart.back() + tokens);
    contextLens.push_back(context);
    tableStart.push_back((s + 1) * perSeq);
    for (int t = context - tokens; t < context; t++) {
      slots.push_back(tables[s * perSeq + t / blockSize] * blockSize + t % blockSize);
    }
  }
  const int T = seqs * tokens;
  Step step = {};
  step.numTokens = T;
  step.numSeqs = seqs;
  step.slots = slots.data();
  step.queryStart = queryStart.data();
  step.contextLens = contextLens.data();
  step.blockTables = tables.data();
  step.blockTableStart = tableStart.data();

  const int width = shape.attention.heads * D, kvWidth = shape.attention.kvHeads * D;
  std::vector<float> q(size_t(T) * width), out(q.size()), k(size_t(T) * kvWidth), v(k.size());
  std::normal_distribution<float> normal;
  for (float& x : q) x = normal(random);
  for (float& x : k) x = normal(random);
  fill(cache, layerBytes * shape.layers, dtype);

  AttentionPlanner planner(shape.attention, {T, seqs, context, pool.size()});
  double planSeconds = 0, writeSeconds = 0;
  const auto run = [&] {
    const double start = now();
    const AttentionPlan& plan = planner.build(step);
    planSeconds = now() - start;
    writeSeconds = 0;
    for (int layer = 0; layer < shape.layers; layer++) {
      const double before = now();
      const KvWrite w = {&step, kv, cache + layer * layerBytes, {k.data(), size_t(kvWidth)},
                         {v.data(), size_t(kvWidth)}};
      pool.parallel(pool.size(),
                    [&](int i, int) { isa::attentionKernels.writeKv(w, i, pool.size()); });
      writeSeconds += now() - before;
      std::atomic<int32_t> next(0);
      const Attention a = {&step, &plan, shape.attention, kv, cache + layer * layerBytes,
                           {q.data(), size_t(width)}, {out.data(), size_t(width)}, 0.125f, &next};
      pool.parallel(pool.size(), [&](int i, int) { isa::attentionKernels.attend(a, i); });
    }
  };
  run();
  const double seconds = best(run, tokens == 1 ? 7 : 3);
  // Causal: token i of the chunk sees context - tokens + i + 1 keys; 4 D operations for each.
  const double seen = double(tokens) * (context - tokens) + tokens * (tokens + 1.0) / 2;
  const double flops = 4.0 * D * shape.attention.heads * seqs * seen * shape.layers;
  const double bytes = double(layerBytes) * shape.layers;
  printf("%-10s %-4s %5d %6d %7d %9.2f %8.1f %8.1f %8.2f %8.1f %8.2f\n", shape.name,
         nameOf(dtype), seqs, tokens, context,
         seconds * 1e3, bytes / seconds / 1e9, flops / seconds / 1e9, bytes / bandwidth * 1e3,
         planSeconds * 1e6, writeSeconds * 1e3);
  fflush(stdout);
  ::operator delete(cache, std::align_val_t(2 << 20));
}

// One row of a vocabulary of 49,152, as smol-135m has: microseconds on one thread.
void measureSampler() {
  const int vocab = 49152;
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  printf("\nsampler, %d tokens, us a row        flat logits   peaked logits\n", vocab);
  struct {
    const char* name;
    float temperature, topP, minP;
    int topK, logprobs;
  } modes[] = {{"greedy", 0, 1, 0, 0, -1},
               {"temperature 0.8", 0.8f, 1, 0, 0, -1},
               {"temperature, min_p 0.05", 0.8f, 1, 0.05f, 0, -1},
               {"temperature, top_k 50", 0.8f, 1, 0, 50, -1},
               {"temperature, top_p 0.9", 0.8f, 0.9f, 0, 0, -1},
               {"greedy, 20 logprobs", 0, 1, 0, 0, 20}};
  std::vector<uint8_t> memory(isa::sampleKernels.scratchBytes(vocab) + 64);
  uint8_t* scratch = memory.data() + (64 - uintptr_t(memory.data()) % 64) % 64;
  for (const auto& mode : modes) {
    printf("%-32s", mode.name);
    for (const float spread : {0.3f, 4.0f}) {
      std::vector<float> logits(vocab);
      for (float& x : logits) x = normal(random) * spread;
      const uint32_t seed[2] = {1, 2}, draw[1] = {3};
      const float one[1] = {1}, none[1] = {0}, temperature[1] = {mode.temperature};
      const float topP[1] = {mode.topP}, minP[1] = {mode.minP};
      const int32_t topK[1] = {mode.topK}, start[2] = {0, 0};
      const int32_t logprobs[1] = {mode.logprobs}, target[1] = {-1};
      const SampleParams p = {temperature, topK, topP, minP, seed, draw, one, none, none, start,
                              nullptr, nullptr, start, nullptr, nullptr, logprobs, target};
      int32_t token[1], rank[1], top[kMaxLogprobs];
      float logprob[1], topLogprobs[kMaxLogprobs];
      const double seconds = best([&] {
        isa::sampleKernels.sampleRow(logits.data(), vocab, p, 0,
                                     {token, logprob, rank, top, topLogprobs}, scratch);
      }, 50);
      printf("%16.1f", seconds * 1e6);
    }
    printf("\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? atoi(argv[1]) : 2;
  const bool quick = argc > 2 && !strcmp(argv[2], "quick");
  ThreadPool pool(threads);
  if (argc > 2 && !strcmp(argv[2], "sampler")) return measureSampler(), 0;
  const double bandwidth = readBandwidth(pool);
  printf("%d threads, reading memory at %.1f GB/s\n", threads, bandwidth / 1e9);
  printf("%-10s %-4s %5s %6s %7s %9s %8s %8s %8s %8s %8s\n", "shape", "kv", "seqs", "tokens",
         "context", "ms/step", "GB/s", "GFLOP/s", "roof ms", "plan us", "write ms");
  const Shape smol = {"smol-135m", {9, 3, 64, 0}, 30}, llama = {"8b-like", {32, 8, 128, 0}, 4};
  measure(pool, smol, DType::BF16, 64, 1, 192, bandwidth);
  if (quick) {
    measure(pool, smol, DType::BF16, 1, 1, 1000, bandwidth);
    for (const DType dtype : {DType::BF16, DType::I8}) {
      measure(pool, smol, dtype, 32, 1, 1000, bandwidth);
      measure(pool, smol, dtype, 1, 512, 512, bandwidth);
      measure(pool, smol, dtype, 1, 2048, 2048, bandwidth);
    }
    measure(pool, llama, DType::BF16, 16, 1, 1000, bandwidth);
    measure(pool, llama, DType::BF16, 1, 512, 2048, bandwidth);
    return 0;
  }
  for (const int context : {128, 1000, 4000}) {
    for (const int seqs : {1, 4, 16, 32, 64}) {
      measure(pool, smol, DType::BF16, seqs, 1, context, bandwidth);
    }
  }
  for (const int tokens : {128, 512, 1024, 2048}) {
    measure(pool, smol, DType::BF16, 1, tokens, tokens, bandwidth);
  }
  measure(pool, smol, DType::BF16, 1, 256, 4000, bandwidth);
  for (const DType dtype : {DType::F16, DType::F32, DType::I8}) {
    measure(pool, smol, dtype, 64, 1, 192, bandwidth);
    measure(pool, smol, dtype, 1, 512, 512, bandwidth);
  }
  for (const int seqs : {1, 16}) measure(pool, llama, DType::BF16, seqs, 1, 4000, bandwidth);
  measure(pool, llama, DType::BF16, 1, 2048, 2048, bandwidth);
  measureSampler();
}
