// The sampler against docs/sampling.md written down plainly: sort everything, one token at a time.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "../../native/cpu/sample.inl"
#include "check.h"

using namespace millrace;
namespace isa = millrace::MILLRACE_ISA;

namespace {

struct Row {
  float temperature = 0, topP = 1, minP = 0, repetition = 1, presence = 0, frequency = 0;
  int topK = 0, logprobs = -1, target = -1;
  uint32_t seed[2] = {0, 0}, draw = 0;
  std::vector<int32_t> historyTokens, historyCounts, biasTokens;
  std::vector<float> biasValues;
};

struct Result {
  int32_t token = -5, rank = -5;
  float logprob = -5;
  int32_t topTokens[kMaxLogprobs];
  float topLogprobs[kMaxLogprobs];
};

bool usable(const std::vector<float>& x) {
  bool finite = false;
  for (float v : x) {
    if (std::isnan(v) || v == INFINITY) return false;
    finite = finite || v > -INFINITY;
  }
  return finite;
}

// volatile keeps every operation a float32 operation of its own.
uint64_t weightOf(float y) {
  if (y < -22) return 0;
  volatile float t = y * 1.44269504f;
  t = t + 12582912.0f;
  const float n = t - 12582912.0f;
  volatile float product = n * 0.693359375f;
  volatile float r = y - product;
  product = n * -2.12194440e-4f;
  r = r - product;
  volatile float p = float(1.0 / 5040);
  for (double c : {1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0}) {
    product = p * r;
    p = product + float(c);
  }
  return uint64_t(std::nearbyint(std::ldexp(double(p), int(n) + 30)));
}

Result plainSample(const std::vector<float>& logits, const Row& row) {
  const int vocab = int(logits.size());
  Result result;
  result.token = -1;
  result.rank = 0;
  result.logprob = NAN;
  std::fill_n(result.topTokens, kMaxLogprobs, -1);
  std::fill_n(result.topLogprobs, kMaxLogprobs, NAN);
  if (!usable(logits)) return result;

  std::vector<float> x = logits;
  for (size_t i = 0; i < row.biasTokens.size(); i++) x[row.biasTokens[i]] += row.biasValues[i];
  for (size_t i = 0; i < row.historyTokens.size(); i++) {
    volatile float v = x[row.historyTokens[i]];
    if (row.repetition != 1) v = v > 0 ? v / row.repetition : v * row.repetition;
    volatile float product = row.frequency * float(row.historyCounts[i]);
    v = v - product;
    if (row.historyCounts[i] > 0) v = v - row.presence;
    x[row.historyTokens[i]] = v;
  }

  if (row.target >= 0) {
    result.token = row.target;
  } else {
    if (!usable(x)) return result;
    const float m = *std::max_element(x.begin(), x.end());
    if (row.temperature == 0) {
      result.token = int(std::max_element(x.begin(), x.end()) - x.begin());
    } else {
      std::vector<float> y;
      for (float v : x) y.push_back((v - m) / row.temperature);
      std::vector<int> kept;
      for (int i = 0; i < vocab; i++) {
        if (y[i] == -INFINITY) continue;
        if (row.minP > 0 && y[i] < float(std::log(double(row.minP)))) continue;
        kept.push_back(i);
      }
      std::stable_sort(kept.begin(), kept.end(), [&](int a, int b) { return y[a] > y[b]; });
      if (row.topK > 0 && row.topK < int(kept.size())) kept.resize(row.topK);
      uint64_t sum = 0;
      for (int i : kept) sum += weightOf(y[i]);
      if (row.topP < 1) {
        const double wanted = double(row.topP) * double(sum);
        uint64_t running = 0;
        size_t n = 0;
        while (n == 0 || (n < kept.size() && double(running) < wanted)) {
          running += weightOf(y[kept[n++]]);
        }
        kept.resize(n);
        sum = running;
      }
      std::sort(kept.begin(), kept.end());
      const double u = isa::sampling::uniform(row.seed, row.draw);
      const uint64_t target = std::min(uint64_t(std::floor(u * double(sum))), sum - 1);
      uint64_t running = 0;
      for (int i : kept) {
        running += weightOf(y[i]);
        if (running > target) {
          result.token = i;
          break;
        }
      }
    }
  }

  if (row.target < 0 && row.logprobs < 0) return result;
  const float m = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (float v : logits) sum += std::exp(double(v) - m);
  const double norm = m + std::log(sum);
  std::vector<int> order(vocab);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return logits[a] > logits[b]; });
  for (int i = 0; i < std::min(row.logprobs, vocab); i++) {
    result.topTokens[i] = order[i];
    result.topLogprobs[i] = float(logits[order[i]] - norm);
  }
  result.logprob = float(logits[result.token] - norm);
  result.rank = 1;
  for (float v : logits) result.rank += v > logits[result.token];
  return result;
}

Result fastSample(const std::vector<float>& logits, const Row& row) {
  // The row stands second of two, so that every array is indexed.
  const int vocab = int(logits.size());
  const float temperature[] = {-1, row.temperature};
  const float topP[] = {-1, row.topP}, minP[] = {-1, row.minP};
  const float repetition[] = {-1, row.repetition}, presence[] = {-1, row.presence};
  const float frequency[] = {-1, row.frequency};
  const int32_t topK[] = {-1, row.topK};
  const int32_t logprobs[] = {-1, row.logprobs}, targets[] = {-1, row.target};
  const uint32_t seed[] = {9, 9, row.seed[0], row.seed[1]}, draw[] = {9, row.draw};
  const int32_t historyStart[] = {0, 0, int32_t(row.historyTokens.size())};
  const int32_t biasStart[] = {0, 0, int32_t(row.biasTokens.size())};
  const SampleParams params = {temperature, topK, topP, minP, seed, draw, repetition, presence,
                               frequency, historyStart, row.historyTokens.data(),
                               row.historyCounts.data(), biasStart, row.biasTokens.data(),
                               row.biasValues.data(), logprobs, targets};
  Result results[2];
  int32_t tokens[2] = {-5, -5}, ranks[2] = {-5, -5}, topTokens[2 * kMaxLogprobs];
  float tokenLogprobs[2] = {-5, -5}, topLogprobs[2 * kMaxLogprobs];
  std::vector<uint8_t> scratch(isa::sampleKernels.scratchBytes(vocab) + 64);
  uint8_t* aligned = scratch.data() + (64 - uintptr_t(scratch.data()) % 64) % 64;
  isa::sampleKernels.sampleRow(logits.data(), vocab, params, 1,
                               {tokens, tokenLogprobs, ranks, topTokens, topLogprobs}, aligned);
  Result& r = results[1];
  r.token = tokens[1];
  r.rank = ranks[1];
  r.logprob = tokenLogprobs[1];
  memcpy(r.topTokens, topTokens + kMaxLogprobs, sizeof(r.topTokens));
  memcpy(r.topLogprobs, topLogprobs + kMaxLogprobs, sizeof(r.topLogprobs));
  EXPECT(tokens[0] == -5 && ranks[0] == -5, "wrote to another row");
  return r;
}

std::vector<float> randomLogits(Random& random) {
  const int vocab = random.pick({1, 2, 15, 16, 17, 100, 511, 512, 513, 1000, 4096, 5000, 20011});
  const float spread = random.pick({0.f, 0.1f, 1.f, 4.f, 15.f});
  const bool coarse = random.integer(0, 2) == 0;  // many equal values
  std::vector<float> logits(vocab);
  for (float& v : logits) {
    v = random.normal() * spread;
    if (coarse) v = std::round(v * 2) / 2;
    if (random.integer(0, 50) == 0) v = -INFINITY;
  }
  if (random.integer(0, 3) == 0) logits[random.integer(0, vocab - 1)] = 20;
  if (random.integer(0, 14) == 0) {
    logits[random.integer(0, vocab - 1)] = random.pick({NAN, -NAN, INFINITY});
  }
  if (random.integer(0, 40) == 0) std::fill(logits.begin(), logits.end(), -INFINITY);
  return logits;
}

Row randomRow(Random& random, int vocab) {
  Row row;
  const auto maybe = [&] { return random.integer(0, 2) == 0; };
  if (random.integer(0, 4)) row.temperature = random.pick({1e-6f, 0.3f, 0.7f, 1.f, 1.5f, 20.f});
  if (maybe()) row.topK = random.pick({1, 2, 5, 50, 400, 1 << 20});
  if (maybe()) row.topP = random.pick({0.f, 1e-6f, 0.1f, 0.5f, 0.9f, 0.999999f});
  if (maybe()) row.minP = random.pick({1e-12f, 1e-4f, 0.05f, 0.5f, 1.f});
  row.seed[0] = uint32_t(random.engine());
  row.seed[1] = uint32_t(random.engine());
  row.draw = uint32_t(random.integer(0, 5000));
  if (maybe()) {
    row.repetition = random.pick({1.f, 1.1f, 0.8f});
    row.presence = random.pick({0.f, 0.5f, -0.25f});
    row.frequency = random.pick({0.f, 0.3f, -0.1f});
    for (int t = 0; t < vocab; t += random.integer(1, 9)) {
      row.historyTokens.push_back(t);
      row.historyCounts.push_back(random.integer(0, 3));
    }
  }
  if (maybe()) {
    for (int i = random.integer(0, 6); i > 0; i--) {
      row.biasTokens.push_back(random.integer(0, vocab - 1));
      row.biasValues.push_back(random.pick({-100.f, 100.f, 2.5f, -INFINITY}));
    }
  }
  if (maybe()) row.logprobs = random.integer(0, kMaxLogprobs);
  if (random.integer(0, 5) == 0) row.target = random.integer(0, vocab - 1);
  return row;
}

void checkRow(const std::vector<float>& logits, const Row& row) {
  const Result is = fastSample(logits, row), should = plainSample(logits, row);
  EXPECT(is.token == should.token,
         "token %d instead of %d of %d (temperature %g top_k %d top_p %g min_p %g target %d)",
         is.token, should.token, int(logits.size()), row.temperature, row.topK, row.topP, row.minP,
         row.target);
  EXPECT(is.rank == should.rank, "rank %d instead of %d", is.rank, should.rank);
  const auto same = [](float a, float b) {
    if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
    return a == b || std::fabs(a - b) <= 1e-5f + 1e-6f * std::fabs(b);
  };
  EXPECT(same(is.logprob, should.logprob), "logprob %.8g instead of %.8g", is.logprob,
         should.logprob);
  for (int i = 0; i < kMaxLogprobs; i++) {
    EXPECT(is.topTokens[i] == should.topTokens[i], "top token %d is %d instead of %d", i,
           is.topTokens[i], should.topTokens[i]);
    EXPECT(same(is.topLogprobs[i], should.topLogprobs[i]), "top logprob %d is %g instead of %g", i,
           is.topLogprobs[i], should.topLogprobs[i]);
  }
}

// The plain version takes its random numbers from the kernel, so these are checked by themselves:
// the first known answer of Random123's kat_vectors for philox4x32-10, key and counter 0, begins
// with the words 6627e8d5 e169c58d.
void checkPhilox() {
  const uint32_t seed[2] = {0, 0};
  const double u = (double(0x6627e8d5u >> 5) * 67108864.0 + double(0xe169c58du >> 6)) * 0x1p-53;
  EXPECT(isa::sampling::uniform(seed, 0) == u, "%.17g", isa::sampling::uniform(seed, 0));
}

// Weights are integers that every executor must agree on to the last.
void checkWeights(Random& random) {
  for (int i = 0; i < 20000; i++) {
    float y[16];
    int32_t w[16];
    for (float& v : y) v = -random.uniform() * random.pick({22.5f, 3.f, 0.01f});
    y[0] = random.pick({0.f, -0.f, -22.f, -INFINITY, -3e38f, -21.5f});
    isa::storeInt(w, isa::sampling::weightOf(isa::load(y)));
    for (int j = 0; j < 16; j++) {
      EXPECT(uint64_t(w[j]) == weightOf(y[j]), "exp(%.9g) weighs %d instead of %d", y[j], w[j],
             int(weightOf(y[j])));
    }
  }
}

// Drawing often must reproduce the distribution: chi-squared over eight tokens, 7 degrees of
// freedom, of which 40 is exceeded with probability 1e-6.
void checkDistribution() {
  const std::vector<float> logits = {0, 1, -1, 0.5f, 2, -0.5f, 1.5f, -2};
  Row row;
  row.temperature = 1.25f;
  row.seed[0] = 77;
  const int draws = 20000;
  int counts[8] = {};
  for (int i = 0; i < draws; i++) {
    row.draw = i;
    counts[fastSample(logits, row).token]++;
  }
  double sum = 0, distance = 0;
  for (float v : logits) sum += std::exp(v / 1.25);
  for (int i = 0; i < 8; i++) {
    const double expected = draws * std::exp(logits[i] / 1.25) / sum;
    distance += (counts[i] - expected) * (counts[i] - expected) / expected;
  }
  EXPECT(distance < 40, "chi-squared %g", distance);
}

}  // namespace

void checkSample(Random& random, int rounds) {
  checkPhilox();
  checkWeights(random);
  checkDistribution();
  for (int i = 0; i < rounds * 10; i++) {
    const std::vector<float> logits = randomLogits(random);
    for (int j = 0; j < 3; j++) checkRow(logits, randomRow(random, int(logits.size())));
  }
}
