// docs/sampling.md step by step on the host, for check_sampling.cu. Compile with -ffp-contract=off.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace sampling_reference {

constexpr int kMaxLogprobs = 20;

struct Params {
  float temperature = 1;
  int topK = 0;
  float topP = 1, minP = 0;
  uint32_t seed[2] = {0, 0};
  uint32_t draw = 0;
  float repetition = 1, presence = 0, frequency = 0;
  std::vector<std::pair<int, int>> history;  // token, count
  std::vector<std::pair<int, float>> bias;   // token, value
  int logprobs = -1;
  int target = -1;
};

struct Result {
  int token = -1;
  double logprob = std::nan("");
  int rank = 0;
  std::vector<int> topTokens = std::vector<int>(kMaxLogprobs, -1);
  std::vector<double> topLogprobs = std::vector<double>(kMaxLogprobs, std::nan(""));
};

inline bool isUsable(const std::vector<float>& l) {
  bool some = false;
  for (const float value : l) {
    if (std::isnan(value) || value == std::numeric_limits<float>::infinity()) return false;
    if (value > -std::numeric_limits<float>::infinity()) some = true;
  }
  return some;
}

// Section 3.
inline std::vector<float> adjusted(const std::vector<float>& l, const Params& p) {
  std::vector<float> x = l;
  for (const auto& [token, value] : p.bias) x[token] = x[token] + value;
  for (const auto& [token, count] : p.history) {
    if (p.repetition != 1) {
      x[token] = x[token] > 0 ? x[token] / p.repetition : x[token] * p.repetition;
    }
    const float penalty = p.frequency * float(count);
    x[token] = x[token] - penalty;
    if (count > 0) x[token] = x[token] - p.presence;
  }
  return x;
}

// Section 7, the scaling in float64 as the page says "exact".
inline int64_t weight(float y) {
  if (y < -22) return 0;
  const float scaled = y * 1.44269504f;
  const float shifted = scaled + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float high = n * 0.693359375f;
  const float rough = y - high;
  const float low = n * -2.12194440e-4f;
  const float r = rough - low;
  float p = float(1.0 / 5040);
  for (const double divisor : {720., 120., 24., 6., 2., 1., 1.}) {
    const float product = p * r;
    p = product + float(1 / divisor);
  }
  return int64_t(std::nearbyint(std::ldexp(double(p), int(n) + 30)));
}

// Section 8.
inline double uniform(const Params& p) {
  uint32_t counter[4] = {p.draw, 0, 0, 0}, key[2] = {p.seed[0], p.seed[1]};
  for (int round = 0; round < 10; round++) {
    const uint64_t first = uint64_t(0xD2511F53) * counter[0];
    const uint64_t third = uint64_t(0xCD9E8D57) * counter[2];
    const uint32_t next[4] = {uint32_t(third >> 32) ^ counter[1] ^ key[0], uint32_t(third),
                              uint32_t(first >> 32) ^ counter[3] ^ key[1], uint32_t(first)};
    std::copy(next, next + 4, counter);
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return (std::ldexp(double(counter[0] >> 5), 26) + double(counter[1] >> 6)) * std::ldexp(1.0, -53);
}

// Section 6, in order of id.
inline std::vector<int> keptSet(const std::vector<float>& y, const Params& p) {
  std::vector<int> kept;
  const float least = float(std::log(double(p.minP)));
  for (int i = 0; i < int(y.size()); i++) {
    if (std::isinf(y[i])) continue;
    if (p.minP > 0 && !(y[i] >= least)) continue;
    kept.push_back(i);
  }
  if (p.topK == 0 && !(p.topP < 1)) return kept;
  std::sort(kept.begin(), kept.end(),
            [&](int a, int b) { return y[a] > y[b] || (y[a] == y[b] && a < b); });
  if (p.topK > 0 && p.topK < int(kept.size())) kept.resize(p.topK);
  if (p.topP < 1) {
    int64_t all = 0, sum = 0;
    for (const int id : kept) all += weight(y[id]);
    const double limit = double(p.topP) * double(all);
    size_t count = 0;
    do sum += weight(y[kept[count++]]);
    while (double(sum) < limit);
    kept.resize(count);
  }
  std::sort(kept.begin(), kept.end());
  return kept;
}

inline int choose(const std::vector<float>& l, const Params& p) {
  const std::vector<float> x = adjusted(l, p);
  if (!isUsable(x)) return -1;
  const auto highest = std::max_element(x.begin(), x.end());
  if (p.temperature == 0) return int(highest - x.begin());
  std::vector<float> y(x.size());
  for (size_t i = 0; i < x.size(); i++) {
    const float difference = x[i] - *highest;
    y[i] = difference / p.temperature;
  }
  const std::vector<int> kept = keptSet(y, p);
  int64_t total = 0;
  for (const int id : kept) total += weight(y[id]);
  const int64_t target =
      std::min(int64_t(std::floor(uniform(p) * double(total))), total - 1);
  int64_t sum = 0;
  for (const int id : kept) {
    sum += weight(y[id]);
    if (sum > target) return id;
  }
  return -2;  // never: the sum ends at total
}

inline Result sampleRow(const std::vector<float>& l, const Params& p) {
  Result result;
  if (!isUsable(l)) return result;
  const int token = p.target >= 0 ? p.target : choose(l, p);
  if (token < 0) return result;
  result.token = token;
  if (p.target < 0 && p.logprobs < 0) return result;
  const double max = *std::max_element(l.begin(), l.end());
  double sum = 0;
  for (const float value : l) sum += std::exp(value - max);
  const double logSum = std::log(sum);
  result.logprob = l[token] - max - logSum;
  result.rank = 1 + int(std::count_if(l.begin(), l.end(), [&](float v) { return v > l[token]; }));
  const int count = std::min(std::max(0, p.logprobs), int(l.size()));
  std::vector<int> ids(l.size());
  for (size_t i = 0; i < ids.size(); i++) ids[i] = int(i);
  std::partial_sort(ids.begin(), ids.begin() + count, ids.end(),
                    [&](int a, int b) { return l[a] > l[b] || (l[a] == l[b] && a < b); });
  for (int place = 0; place < count; place++) {
    result.topTokens[place] = ids[place];
    result.topLogprobs[place] = l[ids[place]] - max - logSum;
  }
  return result;
}

}  // namespace sampling_reference
