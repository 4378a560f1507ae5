// Checks native/cuda/sampling*.cu against docs/sampling.md on the host, and times it.
//
//   nvcc -std=c++17 -O3 --expt-relaxed-constexpr -Xcompiler -ffp-contract=off,-pthread \
//     -gencode arch=compute_90a,code=sm_90a -cudart static -Inative/cuda \
//     test/cuda/check_sampling.cu native/cuda/sampling*.cu -o check_sampling
//
//   check_sampling [--quick] [--time]    --quick: few small rows, for compute-sanitizer
#include <cuda_runtime.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>

#include "check.h"
#include "kernels.h"
#include "sampling_reference.h"

using namespace millrace::cuda;
using sampling_reference::kMaxLogprobs;
using sampling_reference::Params;
using sampling_reference::Result;

namespace {

struct Random {
  uint64_t state;
  explicit Random(uint64_t seed) : state(seed * 0x9E3779B97F4A7C15ull + 1) {}
  uint32_t next() {  // splitmix64
    uint64_t z = state += 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    return uint32_t((z ^ z >> 31) >> 32);
  }
  int below(int n) { return int(uint64_t(next()) * uint64_t(n) >> 32); }
  double unit() { return next() * 0x1p-32; }
  // Roughly normal: a sum of uniforms with a heavier tail now and then.
  float normal() {
    const double sum = unit() + unit() + unit() + unit() - 2;
    return float(sum * 1.732 * (next() % 64 == 0 ? 3 : 1));
  }
  template <class T>
  T of(std::initializer_list<T> values) {
    return values.begin()[below(int(values.size()))];
  }
};

template <class Work>
void parallel(int count, Work work) {
  std::atomic<int> next{0};
  std::vector<std::thread> threads;
  const int wanted = std::min(count, int(std::max(1u, std::thread::hardware_concurrency())));
  for (int i = 0; i < wanted; i++) {
    threads.emplace_back([&] {
      for (int item; (item = next++) < count;) work(item);
    });
  }
  for (auto& thread : threads) thread.join();
}

template <class T>
struct Device {
  T* data = nullptr;
  explicit Device(size_t count) { check(cudaMalloc(&data, std::max<size_t>(1, count) * sizeof(T)), "cudaMalloc"); }
  explicit Device(const std::vector<T>& host) : Device(host.size()) {
    if (host.empty()) return;
    check(cudaMemcpy(data, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice), "copy");
  }
  Device(const Device&) = delete;
  ~Device() { cudaFree(data); }
  std::vector<T> read(size_t count) const {
    std::vector<T> host(count);
    check(cudaMemcpy(host.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost), "copy");
    return host;
  }
};

struct Row {
  std::vector<float> logits;
  Params params;
};

// ---------------------------------------------------------------- rows

enum class Shape { Normal, Peaked, Flat, Eighths, BFloat, Equal, Wide, Any };

void fillLogits(Row& row, int vocab, Shape shape, Random& random) {
  if (shape == Shape::Any) shape = Shape(random.below(int(Shape::Any)));
  row.logits.resize(vocab);
  const float spread = random.of({0.5f, 2.0f, 4.0f}), centre = 10 * random.normal();
  for (float& l : row.logits) {
    l = centre + spread * random.normal();
    if (shape == Shape::Peaked && random.below(vocab) < 5) l += 15;
    if (shape == Shape::Flat) l = centre + 0.01f * random.normal();
    if (shape == Shape::Eighths) l = std::round(8 * l) / 8;
    if (shape == Shape::Equal) l = centre;
    if (shape == Shape::Wide) l = 1e38f * random.normal();
    if (shape == Shape::BFloat) {
      uint32_t bits;
      memcpy(&bits, &l, 4);
      bits &= 0xffff0000u;
      memcpy(&l, &bits, 4);
    }
  }
}

void setDraw(Params& p, Random& random) {
  p.temperature = random.of({0.3f, 0.7f, 1.0f, 1.0f, 1.3f, 2.0f});
  p.seed[0] = random.next();
  p.seed[1] = random.next();
  p.draw = random.of({0u, 1u, 77u, random.next()});
}
void setTopK(Params& p, int vocab, Random& random) {
  p.topK = random.of({1, 2, 5, 20, 50, 200, 1000, 1 + random.below(vocab), vocab, vocab + 10});
}
void setTopP(Params& p, Random& random) {
  p.topP = random.of({1e-9f, 1e-3f, 0.1f, 0.5f, 0.9f, 0.95f, 0.999f, 0.9999999f, float(random.unit())});
}
void setMinP(Params& p, Random& random) {
  p.minP = random.of({1e-12f, 1e-4f, 0.02f, 0.1f, 0.5f, 1.0f, float(random.unit())});
}
void setPenalties(Params& p, int vocab, Random& random) {
  p.repetition = random.of({1.0f, 1.1f, 2.0f, 0.8f});
  p.presence = random.of({0.0f, 0.5f, -1.0f, 2.0f});
  p.frequency = random.of({0.0f, 0.1f, -0.3f, 1.5f});
  const int entries = random.of({0, 1, 7, 600, 3000});
  const int among = random.of({1, 4, vocab, vocab, vocab});  // few: the same token again and again
  for (int i = 0; i < entries; i++) {
    p.history.emplace_back(random.below(std::min(among, vocab)), random.of({0, 1, 3, 200}));
  }
}
void setBias(Params& p, int vocab, Random& random) {
  const int entries = random.of({0, 1, 10, 300, 1500});
  const int among = random.of({1, 3, 40, vocab, vocab});
  for (int i = 0; i < entries; i++) {
    const float value = random.of({-100.0f, 100.0f, 0.1f, -0.7f, 1e7f, -1e7f, -INFINITY});
    if (value == -INFINITY && random.below(4) > 0) continue;
    p.bias.emplace_back(random.below(std::min(among, vocab)), value);
  }
}

struct Group {
  const char* name;
  void (*make)(Row&, int vocab, Random&);
};

const Group kGroups[] = {
    {"greedy",
     [](Row& row, int vocab, Random& random) {
       fillLogits(row, vocab, Shape::Any, random);
       row.params.temperature = 0;
     }},
    {"temperature",
     [](Row& row, int vocab, Random& random) {
       fillLogits(row, vocab, Shape::Any, random);
       setDraw(row.params, random);
     }},
    {"extreme temperature",
     [](Row& row, int vocab, Random& random) {
       fillLogits(row, vocab, Shape::Any, random);
       setDraw(row.params, random);
       row.params.temperature = random.of({1e-30f, 1e-6f, 1e-3f, 30.0f, 1e4f, 1e20f});
       if (random.below(2)) setTopP(row.params, random);
       if (random.below(2)) setTopK(row.params, vocab, random);
     }},
    {"top_k",
     [](Row& row, int vocab, Random& random) {
       fillLogits(row, vocab, Shape::Normal, random);
       setDraw(row.params, random);
       setTopK(row.params, vocab, random);
     }},
    {"top_p",
     [](Row& row, int vocab, Random& random) {
       fillLogits(row, vocab, random.of({Shape::Normal, Shape::Peaked, Shape::Flat}), random);
       setDraw(row.params, random);
       setTopP(row.params, random);
     }},
    {"min_p",
     [](Row& row, int vocab, Random& random) {
       fillLogits(row, vocab, Shape::Any, random);
       setDraw(row.params, random);
       setMinP(row.params, random);
     }},
    {"top_k + top_p + min_p, greedy rows between",
     [](Row& row, int vocab, Random& random) {
       fillLogits(row, vocab, Shape::Any, random);
       setDraw(row.params, random);
       if (random.below(4) == 0) row.params.temperature = 0;
       if (random.below(3)) setTopK(row.params, vocab, random);
       if (random.below(3)) setTopP(row.params, random);
       if (random.below(3) == 0) setMinP(row.params, random);
     }},
    {"ties at the edges of top_k and top_p",
     [](Row& row, int vocab, Random& random) {
       fillLogits(row, vocab, random.of({Shape::Eighths, Shape::BFloat, Shape::Equal}), random);
       setDraw(row.params, random);
       if (random.below(3)) setTopK(row.params, vocab, random);
       if (random.below(3)) setTopP(row.params, random);
     }},
    {"banned tokens (-inf)",
     [](Row& row, int vocab, Random& random) {
       fillLogits(row, vocab, Shape::Any, random);
       const int left = random.of({1, 2, 30, vocab / 2 + 1});
       for (float& l : row.logits) {
         if (random.below(vocab) >= left) l = -INFINITY;
       }
       if (random.below(8)) row.logits[random.below(vocab)] = 1;
       setDraw(row.params, random);
       if (random.below(3) == 0) row.params.temperature = 0;
       if (random.below(2)) setTopK(row.params, vocab, random);
       if (random.below(2)) setTopP(row.params, random);
       row.params.logprobs = random.of({-1, 0, 20});
     }},
    {"failing rows between good ones",
     [](Row& row, int vocab, Random& random) {
       fillLogits(row, vocab, Shape::Any, random);
       setDraw(row.params, random);
       if (random.below(3) == 0) row.params.temperature = 0;
       if (random.below(2)) setTopP(row.params, random);
       row.params.logprobs = random.of({-1, 3});
       if (random.below(5) == 0) row.params.target = random.below(vocab);
       const int fault = random.below(6);
       float& any = row.logits[random.below(vocab)];
       if (fault == 0) any = NAN;
       if (fault == 1) any = -NAN;
       if (fault == 2) any = INFINITY;
       if (fault == 3) std::fill(row.logits.begin(), row.logits.end(), -INFINITY);
       if (fault == 4) row.params.bias.emplace_back(random.below(vocab), INFINITY);
     }},
    {"bias and penalties",
     [](Row& row, int vocab, Random& random) {
       fillLogits(row, vocab, random.of({Shape::Normal, Shape::Eighths}), random);
       setDraw(row.params, random);
       if (random.below(3) == 0) row.params.temperature = 0;
       if (random.below(3)) setPenalties(row.params, vocab, random);
       if (random.below(3)) setBias(row.params, vocab, random);
       if (random.below(3) == 0) setTopP(row.params, random);
     }},
    {"logprobs",
     [](Row& row, int vocab, Random& random) {
       fillLogits(row, vocab, Shape::Any, random);
       setDraw(row.params, random);
       if (random.below(2)) row.params.temperature = 0;
       row.params.logprobs = random.below(22) - 1;
     }},
    {"prompt targets",
     [](Row& row, int vocab, Random& random) {
       fillLogits(row, vocab, Shape::Any, random);
       if (random.below(8) == 0) row.logits[random.below(vocab)] = -INFINITY;
       setDraw(row.params, random);
       row.params.logprobs = random.below(22) - 1;
       if (random.below(4)) row.params.target = random.below(vocab);
       if (random.below(2)) setBias(row.params, vocab, random);
     }},
    {"everything",
     [](Row& row, int vocab, Random& random) {
       fillLogits(row, vocab, Shape::Any, random);
       setDraw(row.params, random);
       if (random.below(5) == 0) row.params.temperature = 0;
       if (random.below(2)) setTopK(row.params, vocab, random);
       if (random.below(2)) setTopP(row.params, random);
       if (random.below(3) == 0) setMinP(row.params, random);
       if (random.below(2)) setPenalties(row.params, vocab, random);
       if (random.below(2)) setBias(row.params, vocab, random);
       row.params.logprobs = random.below(22) - 1;
       if (random.below(6) == 0) row.params.target = random.below(vocab);
     }},
};

// ---------------------------------------------------------------- one call on the device

// SamplingBatch of some rows, on the device.
struct Inputs {
  std::vector<float> temperature, topP, minP, repetition, presence, frequency, biasValues;
  std::vector<int> topK, historyStart{0}, historyTokens, historyCounts, biasStart{0}, biasTokens,
      logprobs, targets;
  std::vector<uint32_t> seed, draw;
  SamplingNeeds needs{};

  explicit Inputs(const std::vector<Row>& rows) {
    for (const Row& row : rows) {
      const Params& p = row.params;
      temperature.push_back(p.temperature);
      topK.push_back(p.topK);
      topP.push_back(p.topP);
      minP.push_back(p.minP);
      seed.insert(seed.end(), p.seed, p.seed + 2);
      draw.push_back(p.draw);
      repetition.push_back(p.repetition);
      presence.push_back(p.presence);
      frequency.push_back(p.frequency);
      for (const auto& [token, count] : p.history) {
        historyTokens.push_back(token);
        historyCounts.push_back(count);
      }
      historyStart.push_back(int(historyTokens.size()));
      for (const auto& [token, value] : p.bias) {
        biasTokens.push_back(token);
        biasValues.push_back(value);
      }
      biasStart.push_back(int(biasTokens.size()));
      logprobs.push_back(p.logprobs);
      targets.push_back(p.target);
      needs.adjust |= !p.history.empty() || !p.bias.empty();
      needs.draw |= p.temperature > 0;
      needs.filter |= p.topK > 0 || p.topP < 1 || p.minP > 0;
      needs.logprobs |= p.logprobs >= 0 || p.target >= 0;
    }
  }
};

struct DeviceInputs {
  Device<float> temperature, topP, minP, repetition, presence, frequency, biasValues, saved;
  Device<int> topK, historyStart, historyTokens, historyCounts, biasStart, biasTokens, logprobs,
      targets;
  Device<uint32_t> seed, draw;
  explicit DeviceInputs(const Inputs& in)
      : temperature(in.temperature), topP(in.topP), minP(in.minP), repetition(in.repetition),
        presence(in.presence), frequency(in.frequency), biasValues(in.biasValues),
        saved(in.biasTokens.size() + in.historyTokens.size()), topK(in.topK),
        historyStart(in.historyStart), historyTokens(in.historyTokens),
        historyCounts(in.historyCounts), biasStart(in.biasStart), biasTokens(in.biasTokens),
        logprobs(in.logprobs), targets(in.targets), seed(in.seed), draw(in.draw) {}
  SamplingInputs get() const {
    return {temperature.data, topK.data,     topP.data,      minP.data,         seed.data,
            draw.data,        repetition.data, presence.data, frequency.data,   historyStart.data,
            historyTokens.data, historyCounts.data, biasStart.data, biasTokens.data,
            biasValues.data,  logprobs.data, targets.data,   saved.data};
  }
};

struct DeviceOutputs {
  Device<int> tokens, ranks, topTokens;
  Device<float> logprobs, topLogprobs;
  explicit DeviceOutputs(int rows)
      : tokens(rows), ranks(rows), topTokens(size_t(rows) * kMaxLogprobs), logprobs(rows),
        topLogprobs(size_t(rows) * kMaxLogprobs) {
    check(cudaMemset(tokens.data, 0x55, rows * 4), "memset");
    check(cudaMemset(ranks.data, 0x55, rows * 4), "memset");
    check(cudaMemset(logprobs.data, 0x55, rows * 4), "memset");
    check(cudaMemset(topTokens.data, 0x55, size_t(rows) * kMaxLogprobs * 4), "memset");
    check(cudaMemset(topLogprobs.data, 0x55, size_t(rows) * kMaxLogprobs * 4), "memset");
  }
  SamplingOutputs get() const {
    return {tokens.data, logprobs.data, ranks.data, topTokens.data, topLogprobs.data};
  }
};

// Records `work` into a graph and returns it ready to launch.
template <class Work>
cudaGraphExec_t record(cudaStream_t stream, Work work) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
  work();
  check(cudaStreamEndCapture(stream, &graph), "end capture");
  check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  check(cudaGraphDestroy(graph), "destroy graph");
  return exec;
}

// ---------------------------------------------------------------- comparing

struct Tally {
  int rows = 0, tokens = 0, ranks = 0, lists = 0, logprobs = 0, logits = 0;
  double worst = 0;
  int told = 0;
  bool ok() const { return tokens + ranks + lists + logprobs + logits == 0; }
};

bool sameLogprob(double exact, float received, Tally& tally) {
  const double expected = float(exact);  // differences of wide logits overflow to -infinity
  if (std::isnan(expected) || std::isinf(expected)) {
    return std::isnan(expected) ? std::isnan(received) : expected == double(received);
  }
  const double error = std::fabs(expected - double(received)) / std::max(1.0, std::fabs(expected));
  if (!(error <= tally.worst)) tally.worst = error;
  return error <= 1e-5;
}

bool sameBits(float a, float b) { return memcmp(&a, &b, 4) == 0 || (std::isnan(a) && std::isnan(b)); }

void runBatch(const std::vector<Row>& rows, int vocab, int64_t stride, int offset, bool graph,
              Tally& tally) {
  const int count = int(rows.size());
  std::vector<Result> expected(count);
  parallel(count, [&](int r) {
    expected[r] = sampling_reference::sampleRow(rows[r].logits, rows[r].params);
  });
  // What is around a row would make it fail.
  std::vector<float> logits(offset + stride * count, NAN);
  for (int r = 0; r < count; r++) {
    std::copy(rows[r].logits.begin(), rows[r].logits.end(), logits.begin() + offset + r * stride);
  }
  const Inputs inputs(rows);
  const DeviceInputs in(inputs);
  const DeviceOutputs out(count);
  const Device<float> x(logits);
  const size_t bytes = samplingScratchBytes(vocab, count);
  const Device<char> scratch(bytes);
  check(cudaMemset(scratch.data, 0xa5, bytes), "memset");
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "stream");
  const auto call = [&] {
    sample(x.data + offset, stride, vocab, count, in.get(), inputs.needs, out.get(), scratch.data,
           stream);
  };
  check(cudaDeviceSynchronize(), "setup");
  if (graph) {
    const cudaGraphExec_t exec = record(stream, call);
    check(cudaGraphLaunch(exec, stream), "launch");
    check(cudaStreamSynchronize(stream), "sample");
    check(cudaGraphExecDestroy(exec), "destroy");
  } else {
    call();
    check(cudaStreamSynchronize(stream), "sample");
  }
  check(cudaStreamDestroy(stream), "stream");

  const auto tokens = out.tokens.read(count), ranks = out.ranks.read(count),
             topTokens = out.topTokens.read(size_t(count) * kMaxLogprobs);
  const auto logprobs = out.logprobs.read(count),
             topLogprobs = out.topLogprobs.read(size_t(count) * kMaxLogprobs);
  const auto after = inputs.needs.adjust ? x.read(logits.size()) : logits;
  for (int r = 0; r < count; r++) {
    const Params& p = rows[r].params;
    const Result& e = expected[r];
    tally.rows++;
    const bool tokenOk = tokens[r] == e.token, rankOk = ranks[r] == e.rank;
    bool logprobOk = sameLogprob(e.logprob, logprobs[r], tally), listOk = true, logitsOk = true;
    for (int i = 0; i < kMaxLogprobs; i++) {
      listOk &= topTokens[r * kMaxLogprobs + i] == e.topTokens[i];
      logprobOk &= sameLogprob(e.topLogprobs[i], topLogprobs[r * kMaxLogprobs + i], tally);
    }
    if (inputs.needs.adjust) {
      const bool raw = p.target >= 0 || p.logprobs >= 0;
      const auto wanted = raw ? rows[r].logits : sampling_reference::adjusted(rows[r].logits, p);
      for (int i = 0; i < vocab; i++) logitsOk &= sameBits(wanted[i], after[offset + r * stride + i]);
    }
    tally.tokens += !tokenOk;
    tally.ranks += !rankOk;
    tally.lists += !listOk;
    tally.logprobs += !logprobOk;
    tally.logits += !logitsOk;
    if (!(tokenOk && rankOk && listOk && logprobOk && logitsOk) && tally.told++ < 4) {
      printf("    vocab %d stride %lld offset %d rows %d row %d%s: token %d (expected %d) rank %d (%d) "
             "logprob %.7g (%.7g) list %s logits %s | temperature %g top_k %d top_p %g min_p %g "
             "logprobs %d target %d history %zu bias %zu\n",
             vocab, (long long)stride, offset, count, r, graph ? " graph" : "", tokens[r], e.token,
             ranks[r], e.rank, double(logprobs[r]), e.logprob, listOk ? "ok" : "differs",
             logitsOk ? "ok" : "differ", double(p.temperature), p.topK, double(p.topP),
             double(p.minP), p.logprobs, p.target, p.history.size(), p.bias.size());
    }
  }
}

struct Size {
  int vocab, rows, batches;
};

bool checkGroup(const Group& group, int index, const std::vector<Size>& sizes) {
  Tally tally;
  const auto start = std::chrono::steady_clock::now();
  std::string error;
  try {
    for (const Size& size : sizes) {
      for (int batch = 0; batch < size.batches; batch++) {
        std::vector<Row> rows(size.rows);
        const uint64_t seed = (uint64_t(index) << 40) + (uint64_t(size.vocab) << 16) + batch * 1031;
        parallel(size.rows, [&](int r) {
          Random random(seed + uint64_t(r) * 0x100000001ull);
          group.make(rows[r], size.vocab, random);
        });
        // Aligned and not: tiles begin before the row then.
        const int offset = batch % 4;
        const int64_t stride = batch % 2 == 0 ? (size.vocab + 3) / 4 * 4 : size.vocab + 2;
        runBatch(rows, size.vocab, stride, offset, batch % 3 == 1, tally);
      }
    }
  } catch (const std::exception& e) {
    error = e.what();
  }
  const bool ok = tally.ok() && error.empty();
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  printf("%-4s %-44s %6d rows; differ: %d tokens, %d ranks, %d lists, %d logprobs, %d logits; worst "
         "logprob %.1e of 1e-5  (%.1f s)%s%s\n",
         ok ? "ok" : "FAIL", group.name, tally.rows, tally.tokens, tally.ranks, tally.lists,
         tally.logprobs, tally.logits, tally.worst, seconds, error.empty() ? "" : "  ", error.c_str());
  fflush(stdout);
  return ok;
}

// ---------------------------------------------------------------- timing

__global__ void fillNormal(float* x, size_t count, float spread) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count;
       i += size_t(gridDim.x) * blockDim.x) {
    uint64_t z = (i + 1) * 0x9E3779B97F4A7C15ull;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ z >> 27) * 0x94D049BB133111EBull;
    z ^= z >> 31;
    const float u = (unsigned(z >> 32) + 1.0f) * 0x1p-32f, v = unsigned(z) * 0x1p-32f;
    x[i] = spread * sqrtf(-2 * logf(fminf(u, 1.0f))) * cosf(6.2831853f * v);
  }
}

// One read of the logits at the rate that large copies reach on an H200.
constexpr double kLimit = 3.9e12;

void timeMode(const char* mode, const Params& params, int rows, int vocab, float* logits,
              char* scratch, cudaStream_t stream) {
  std::vector<Row> batch(rows);
  for (int r = 0; r < rows; r++) {
    batch[r].params = params;
    batch[r].params.seed[0] = uint32_t(r);
  }
  const Inputs inputs(batch);
  const DeviceInputs in(inputs);
  const DeviceOutputs out(rows);
  constexpr int kCalls = 10;
  check(cudaDeviceSynchronize(), "setup");
  const cudaGraphExec_t exec = record(stream, [&] {
    for (int i = 0; i < kCalls; i++) {
      sample(logits, vocab, vocab, rows, in.get(), inputs.needs, out.get(), scratch, stream);
    }
  });
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  float best = 1e9f;
  for (int repeat = 0; repeat < 5; repeat++) {
    float ms;
    check(cudaEventRecord(begin, stream), "record");
    check(cudaGraphLaunch(exec, stream), "launch");
    check(cudaEventRecord(end, stream), "record");
    check(cudaEventSynchronize(end), "sync");
    check(cudaEventElapsedTime(&ms, begin, end), "elapsed");
    if (repeat > 0) best = std::min(best, ms);
  }
  const double us = best * 1e3 / kCalls, bytes = double(rows) * vocab * 4;
  printf("%6d %7d  %-22s %9.1f us %8.0f GB/s %8.1f us one read at the limit %6.2fx\n", rows, vocab,
         mode, us, bytes / us * 1e-3, bytes / kLimit * 1e6, us / (bytes / kLimit * 1e6));
  fflush(stdout);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(exec);
}

void timeAll() {
  Params greedy, temperature, filtered, logprobs, nucleus, penalized;
  greedy.temperature = 0;
  filtered.topK = 50;
  filtered.topP = 0.9f;
  nucleus.topP = 0.9f;
  logprobs.temperature = 0;
  logprobs.logprobs = 5;
  penalized.temperature = 0;
  penalized.presence = 0.1f;
  penalized.repetition = 1.1f;
  for (int i = 0; i < 1000; i++) penalized.history.emplace_back(i * 31, i % 3);
  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "stream");
  printf("  rows   vocab  mode, normal logits of spread 3 (few rows stay in L2, as after the product)\n");
  for (const int vocab : {32000, 128256, 151936}) {
    for (const int rows : {1, 16, 64, 256, 1024}) {
      const size_t count = size_t(rows) * vocab;
      const Device<float> logits(count);
      const Device<char> scratch(samplingScratchBytes(vocab, rows));
      fillNormal<<<1024, 256, 0, stream>>>(logits.data, count, 3.0f);
      checkLaunch("fillNormal");
      const auto time = [&](const char* mode, const Params& params) {
        timeMode(mode, params, rows, vocab, logits.data, scratch.data, stream);
      };
      time("greedy", greedy);
      time("temperature", temperature);
      time("top_k 50, top_p 0.9", filtered);
      time("top_p 0.9", nucleus);
      time("greedy, logprobs 5", logprobs);
      time("greedy, penalties", penalized);
    }
  }
  check(cudaStreamDestroy(stream), "stream");
}

// Rows of which a product has left the best of every kBestWidth logits: beside a look at all of them.
bool checkBest(int vocab, int rows, Random& random) {
  const int count = bestsOf(vocab);
  std::vector<BestKey> bests(size_t(rows) * count, 0);
  std::vector<int> targets(rows), wanted(rows);
  const auto keyOf = [](float value, int id) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return BestKey(bits) << 32 | uint32_t(~id);
  };
  for (int r = 0; r < rows; r++) {
    Row row;
    fillLogits(row, vocab, Shape::Any, random);
    const bool empty = r % 7 == 3, broken = r % 7 == 5;  // all -infinity; something NaN
    targets[r] = r % 7 == 6 ? random.below(vocab) : -1;
    wanted[r] = 0;
    for (int id = 0; id < vocab; id++) {
      const float value = empty ? -INFINITY : row.logits[id];
      if (value > row.logits[wanted[r]]) wanted[r] = id;
      BestKey& best = bests[size_t(r) * count + id / kBestWidth];
      best = std::max(best, keyOf(value, id));
    }
    if (broken) bests[size_t(r) * count + random.below(count)] = ~0ull;
    if (empty || broken) wanted[r] = -1;
    else if (targets[r] >= 0) wanted[r] = targets[r];
  }
  const Device<BestKey> keys(bests);
  const Device<int> target(targets), tokens(rows), ranks(rows), topTokens(size_t(rows) * kMaxLogprobs);
  const Device<float> logprobs(rows), topLogprobs(size_t(rows) * kMaxLogprobs);
  SamplingInputs in{};
  in.targets = target.data;
  takeBest(keys.data, vocab, rows, in,
           {tokens.data, logprobs.data, ranks.data, topTokens.data, topLogprobs.data}, nullptr);
  const bool right = tokens.read(rows) == wanted && topTokens.read(rows * kMaxLogprobs) ==
                                                        std::vector<int>(rows * kMaxLogprobs, -1);
  printf("%s best of %d rows of %d\n", right ? "ok  " : "FAIL", rows, vocab);
  return right;
}

}  // namespace

int main(int argc, char** argv) {
  bool quick = false, time = false;
  for (int i = 1; i < argc; i++) {
    quick |= !strcmp(argv[i], "--quick");
    time |= !strcmp(argv[i], "--time");
  }
  const std::vector<Size> sizes =
      quick ? std::vector<Size>{{1, 4, 1}, {33, 8, 2}, {1000, 8, 2}, {5000, 4, 1}}
            : std::vector<Size>{{1, 16, 4},      {2, 32, 4},      {33, 128, 6},
                                {1000, 128, 6},  {4099, 1024, 1}, {32000, 32, 4},
                                {128256, 16, 2}, {151936, 12, 2}, {262144, 5, 1}};
  int passed = 0, failed = 0, index = 0;
  for (const Group& group : kGroups) (checkGroup(group, index++, sizes) ? passed : failed)++;
  Random random(99);
  for (const Size& size : sizes) (checkBest(size.vocab, size.rows, random) ? passed : failed)++;
  if (time) {
    try {
      timeAll();
    } catch (const std::exception& e) {
      printf("FAIL timing: %s\n", e.what());
      failed++;
    }
  }
  printf("%d passed, %d failed\n", passed, failed);
  return failed > 0;
}
