// The sampler of one instruction set: docs/sampling.md as code, number for number. What is written
// there without a fused multiply-add goes through rounded() here.
//
// Rows are scanned in chunks whose maxima are kept: later passes skip the chunks that cannot
// matter, which in the peaked distributions of a language model are most of them.
#include <math.h>

#include "sample.h"
#include "vec.h"

namespace millrace {
namespace MILLRACE_ISA {
namespace sampling {

constexpr int kChunk = 256;
// Weights of logits this far below the maximum are 0.
constexpr float kLowest = -22;
// The bits of -y, y in kLowest .. 0, are ordered as the tokens are, likeliest first, and are found
// by three digits.
constexpr int kDigitShift[3] = {20, 10, 0};
constexpr int kDigits[3] = {(0x41b00000 >> 20) + 1, 1024, 1024};

// One thread's scratch. Arrays over the vocabulary have room for a vector more.
struct Scratch {
  float* x;             // [vocab] logits after bias and penalties
  float* chunkMaxima;   // [chunks]
  uint64_t* chunkSums;  // [chunks]
  float* y;             // [vocab] candidates in order of id: scaled logit, id, weight
  int32_t* ids;
  int32_t* weights;
  uint64_t* histogram;  // [kDigits[0]]
};

MR_INLINE int chunksOf(int vocab) { return (vocab + kChunk - 1) / kChunk; }

// Lays the arrays out from `base` (null: only to know the size). Returns the bytes used.
static size_t layOut(uint8_t* base, int vocab, Scratch& s) {
  const size_t padded = size_t(chunksOf(vocab)) * kChunk + kLanes, chunks = chunksOf(vocab);
  size_t at = 0;
  const auto take = [&](size_t bytes) {
    uint8_t* p = base + at;
    at += (bytes + 63) / 64 * 64;
    return p;
  };
  s.x = (float*)take(padded * 4);
  s.chunkMaxima = (float*)take(chunks * 4);
  s.chunkSums = (uint64_t*)take(chunks * 8);
  s.y = (float*)take(padded * 4);
  s.ids = (int32_t*)take(padded * 4);
  s.weights = (int32_t*)take(padded * 4);
  s.histogram = (uint64_t*)take(kDigits[0] * 8);
  return at;
}

static size_t scratchBytes(int vocab) {
  Scratch s;
  return layOut(nullptr, vocab, s);
}

MR_INLINE Vec negativeInfinity() { return splat(-__builtin_inff()); }

// 16 values at i; beyond the vocabulary -infinity.
MR_INLINE Vec loadRow(const float* x, int i, int vocab) {
  if (i + kLanes <= vocab) return load(x + i);
  return select(firstLanes(vocab - i), loadFirst(x + i, vocab - i), negativeInfinity());
}

// The maximum of the row and of its chunks. False if the row has NaN, +infinity or no finite value.
static bool scan(const float* x, int vocab, float* chunkMaxima, float& maximum) {
  const Vec infinity = splat(__builtin_inff());
  float highest = -__builtin_inff();
  uint32_t usable = 0xffff;
  for (int c = 0; c * kChunk < vocab; c++) {
    const int end = least((c + 1) * kChunk, vocab);
    Vec top = negativeInfinity(), other = top;
    int i = c * kChunk;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
      const Vec a = load(x + i), b = load(x + i + kLanes);
      usable &= bits(less(a, infinity)) & bits(less(b, infinity));
      top = max(top, a);
      other = max(other, b);
    }
    for (; i < end; i += kLanes) {
      const Vec a = loadRow(x, i, end);
      usable &= bits(less(a, infinity));
      top = max(top, a);
    }
    chunkMaxima[c] = reduceMax(max(top, other));
    highest = most(highest, chunkMaxima[c]);
  }
  maximum = highest;
  return usable == 0xffff && highest > -__builtin_inff();
}

// The lowest id whose value is the maximum.
static int firstOf(float maximum, const float* x, int vocab, const float* chunkMaxima) {
  int c = 0;
  while (chunkMaxima[c] != maximum) c++;
  for (int i = c * kChunk;; i += kLanes) {
    const uint32_t found = bits(equal(loadRow(x, i, vocab), splat(maximum)));
    if (found) return i + __builtin_ctz(found);
  }
}

// --- logprobs (section 2) -------------------------------------------------------------------

static double logSumExp(const float* x, int vocab, float maximum) {
  double sum = 0;
  for (int c = 0; c < vocab; c += kChunk) {
    Vec part = zero();
    for (int i = c; i < least(c + kChunk, vocab); i += kLanes) {
      part = part + exp(loadRow(x, i, vocab) - splat(maximum));
    }
    sum += reduceSum(part);
  }
  return maximum + log(sum);
}

static int rankOf(int token, const float* x, int vocab, const float* chunkMaxima) {
  const float value = x[token];
  int rank = 1;
  for (int c = 0; c * kChunk < vocab; c++) {
    if (!(chunkMaxima[c] > value)) continue;
    const int end = least((c + 1) * kChunk, vocab);
    for (int i = c * kChunk; i < end; i += kLanes) {
      rank += __builtin_popcount(bits(less(splat(value), loadRow(x, i, end))));
    }
  }
  return rank;
}

// The first n ids, or all, by (logit descending, id ascending).
static void mostLikely(int n, const float* x, int vocab, const float* chunkMaxima, double norm,
                       int32_t* tokens, float* logprobs) {
  int found = 0;
  const auto consider = [&](int id) {
    int at = found < n ? found++ : n - 1;
    for (; at > 0 && x[tokens[at - 1]] < x[id]; at--) tokens[at] = tokens[at - 1];
    tokens[at] = id;
  };
  if (n == 0) return;
  int id = 0;
  while (id < least(n, vocab)) consider(id++);
  for (int c = 0; c * kChunk < vocab; c++) {
    if (!(chunkMaxima[c] > x[tokens[found - 1]])) continue;
    const int end = least((c + 1) * kChunk, vocab);
    for (int i = c * kChunk; i < end; i += kLanes) {
      uint32_t above = bits(less(splat(x[tokens[found - 1]]), loadRow(x, i, end)));
      for (; above; above &= above - 1) {
        const int candidate = i + __builtin_ctz(above);
        // The list may have risen since, and the first n are in it already.
        if (candidate >= id && x[candidate] > x[tokens[found - 1]]) consider(candidate);
      }
    }
  }
  for (int i = 0; i < found; i++) logprobs[i] = float(x[tokens[i]] - norm);
}

// --- bias and penalties (section 3) ---------------------------------------------------------

static bool isAdjusted(const SampleParams& p, int row) {
  return p.biasStart[row] < p.biasStart[row + 1] || p.historyStart[row] < p.historyStart[row + 1];
}

static void adjust(const SampleParams& p, int row, float* x) {
  for (int i = p.biasStart[row]; i < p.biasStart[row + 1]; i++) {
    x[p.biasTokens[i]] += p.biasValues[i];
  }
  const float repetition = p.repetitionPenalty[row], frequency = p.frequencyPenalty[row];
  for (int i = p.historyStart[row]; i < p.historyStart[row + 1]; i++) {
    float& value = x[p.historyTokens[i]];
    const int count = p.historyCounts[i];
    if (repetition != 1) value = rounded(value > 0 ? value / repetition : value * repetition);
    value = rounded(value - rounded(frequency * float(count)));
    if (count > 0) value = rounded(value - p.presencePenalty[row]);
  }
}

// --- weights and the draw (sections 5, 7, 8) ------------------------------------------------

// (x - maximum) / temperature
MR_INLINE Vec scaled(Vec x, float maximum, float temperature) {
  return (x - splat(maximum)) / splat(temperature);
}

// round(2^30 * e^y) as the page defines it, an integral float.
MR_INLINE Vec weightOf(Vec y) {
  const Vec magic = splat(12582912.0f);
  const Vec n = (rounded(y * splat(1.44269504f)) + magic) - magic;
  Vec r = y - rounded(n * splat(0.693359375f));
  r = r - rounded(n * splat(-2.12194440e-4f));
  Vec p = splat(float(1.0 / 5040));
  p = rounded(p * r) + splat(float(1.0 / 720));
  p = rounded(p * r) + splat(float(1.0 / 120));
  p = rounded(p * r) + splat(float(1.0 / 24));
  p = rounded(p * r) + splat(float(1.0 / 6));
  p = rounded(p * r) + splat(0.5f);
  p = rounded(p * r) + splat(1.0f);
  p = rounded(p * r) + splat(1.0f);
  // y below the lowest may be -infinity: all of the above is then meaningless and not kept.
  const Mask none = less(y, splat(kLowest));
  const Vec w = scaleByPower(select(none, zero(), p), select(none, zero(), n + splat(30.0f)));
  // Adding 2^23 rounds what is below it to an integer; what is above is one.
  const Vec integer = splat(0x1p23f);
  return select(less(w, integer), rounded(w + integer) - integer, w);
}

static uint64_t sumOf(const int32_t* weights, int n) {
  uint64_t sum = 0;
  for (int i = 0; i < n; i++) sum += uint32_t(weights[i]);
  return sum;
}

// 53 random bits of a row's draw. Philox4x32-10.
static double uniform(const uint32_t* seed, uint32_t draw) {
  uint32_t c[4] = {draw, 0, 0, 0}, k0 = seed[0], k1 = seed[1];
  for (int round = 0; round < 10; round++) {
    const uint64_t a = uint64_t(0xD2511F53u) * c[0], b = uint64_t(0xCD9E8D57u) * c[2];
    const uint32_t next[4] = {uint32_t(b >> 32) ^ c[1] ^ k0, uint32_t(b),
                              uint32_t(a >> 32) ^ c[3] ^ k1, uint32_t(a)};
    memcpy(c, next, sizeof(c));
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return (double(c[0] >> 5) * 67108864.0 + double(c[1] >> 6)) * 0x1p-53;
}

MR_INLINE uint64_t drawTarget(double u, uint64_t sum) {
  const uint64_t target = uint64_t(u * double(sum));
  return least(target, sum - 1);
}

// Index of the first weight at which the running sum exceeds the target.
static int indexAt(const int32_t* weights, uint64_t target) {
  uint64_t sum = 0;
  for (int i = 0;; i++) {
    sum += uint32_t(weights[i]);
    if (sum > target) return i;
  }
}

// Weights of one chunk of the row, to `weights`; returns how many.
static int chunkWeights(const float* x, int vocab, int chunk, float maximum, float temperature,
                        int32_t* weights) {
  const int begin = chunk * kChunk, end = least(begin + kChunk, vocab);
  for (int i = begin; i < end; i += kLanes) {
    storeInt(weights + i - begin, weightOf(scaled(loadRow(x, i, end), maximum, temperature)));
  }
  return end - begin;
}

// Draws among all tokens. Weights are made twice for one chunk, and stored for none.
static int drawUnfiltered(const float* x, int vocab, float maximum, float temperature, double u,
                          const Scratch& s) {
  uint64_t sum = 0;
  for (int c = 0; c < chunksOf(vocab); c++) {
    s.chunkSums[c] = 0;
    if ((s.chunkMaxima[c] - maximum) / temperature < kLowest) continue;
    const int n = chunkWeights(x, vocab, c, maximum, temperature, s.weights);
    sum += s.chunkSums[c] = sumOf(s.weights, n);
  }
  uint64_t target = drawTarget(u, sum);
  int c = 0;
  for (; s.chunkSums[c] <= target; c++) target -= s.chunkSums[c];
  chunkWeights(x, vocab, c, maximum, temperature, s.weights);
  return c * kChunk + indexAt(s.weights, target);
}

// --- the kept set (section 6) ---------------------------------------------------------------

// Candidates: tokens with y >= lowest, in order of id, with their weights. Returns how many.
static int gather(const float* x, int vocab, float maximum, float temperature, float lowest,
                  const Scratch& s) {
  int n = 0;
  for (int c = 0; c < chunksOf(vocab); c++) {
    if ((s.chunkMaxima[c] - maximum) / temperature < lowest) continue;
    const int end = least((c + 1) * kChunk, vocab);
    for (int i = c * kChunk; i < end; i += kLanes) {
      const Vec y = scaled(loadRow(x, i, end), maximum, temperature);
      const Mask kept = equal(y, max(y, splat(lowest)));  // y >= lowest
      if (bits(kept)) n += compress(kept, y, s.y + n, i, s.ids + n);
    }
  }
  for (int i = 0; i < n; i += kLanes) storeInt(s.weights + i, weightOf(load(s.y + i)));
  return n;
}

MR_INLINE uint32_t keyOf(float y) { return bitsOf(y) & 0x7fffffff; }

// Shortens the candidates to their shortest prefix, by (y descending, id ascending), that measures
// at least `target`, a number above 0 and at most the measure of all; the measure is the number of
// candidates, or with BY_WEIGHT the sum of their weights. They stay in order of id. Returns how
// many.
template <bool BY_WEIGHT>
static int keepPrefix(double target, const Scratch& s, int n) {
  const auto measure = [&](int i) { return BY_WEIGHT ? uint64_t(uint32_t(s.weights[i])) : 1; };
  uint32_t prefix = 0;  // the digits found so far of the last key to keep
  uint64_t before = 0;  // measure of the keys that begin with less
  for (int digit = 0; digit < 3; digit++) {
    const int shift = kDigitShift[digit];
    memset(s.histogram, 0, kDigits[digit] * sizeof(uint64_t));
    for (int i = 0; i < n; i++) {
      const uint32_t key = keyOf(s.y[i]);
      if (digit > 0 && key >> kDigitShift[digit - 1] != prefix) continue;
      s.histogram[digit == 0 ? key >> shift : key >> shift & 1023] += measure(i);
    }
    uint32_t d = 0;
    while (double(before + s.histogram[d]) < target) before += s.histogram[d++];
    prefix = digit == 0 ? d : prefix << 10 | d;
  }
  int kept = 0;
  for (int i = 0; i < n; i++) {
    const uint32_t key = keyOf(s.y[i]);
    if (key > prefix) continue;
    if (key == prefix) {
      if (double(before) >= target) continue;
      before += measure(i);
    }
    s.y[kept] = s.y[i];
    s.ids[kept] = s.ids[i];
    s.weights[kept++] = s.weights[i];
  }
  return kept;
}

// A y that at least k tokens reach, close to the highest such among the chunks' maxima: those below
// it are not among the k likeliest. `lowest` if no more is known.
static float boundOfTopK(int k, int vocab, float maximum, float temperature, float lowest,
                         const Scratch& s) {
  const int chunks = chunksOf(vocab);
  if (chunks < k) return lowest;
  for (int c = 0; c < chunks; c += kLanes) {
    store(s.y + c, scaled(loadRow(s.chunkMaxima, c, chunks), maximum, temperature));
  }
  float reached = lowest, missed = 0;
  for (int step = 0; step < 16; step++) {
    const float middle = (reached + missed) / 2;
    int count = 0;
    for (int c = 0; c < chunks; c += kLanes) {
      count += __builtin_popcount(bits(less(splat(middle), load(s.y + c))));
    }
    (count >= k ? reached : missed) = middle;
  }
  return reached;
}

// Drops candidates that cannot be among the likeliest which hold `share` of the sum of the weights:
// all those that weigh less than an equal part of the rest, so that together they are less than it.
static int dropUnlikely(double share, uint64_t sum, const Scratch& s, int n) {
  const double part = (1 - share) * double(sum) / n;
  // The margin is for the weight of y differing from e^y: by parts in 10^6, and by the rounding to
  // an integer, which is small beside 1024.
  if (part < 1024) return n;
  const Vec lowest = splat(float(log(part * 0x1p-30) - 0.001));
  int kept = 0;
  for (int i = 0; i < n; i += kLanes) {
    Vec y = load(s.y + i);
    if (i + kLanes > n) y = select(firstLanes(n - i), y, negativeInfinity());
    const Mask stays = less(lowest, y);
    if (!bits(stays)) continue;
    int32_t from[kLanes];
    const int count = compress(stays, y, s.y + kept, i, from);
    for (int j = 0; j < count; j++) {
      s.ids[kept] = s.ids[from[j]];
      s.weights[kept++] = s.weights[from[j]];
    }
  }
  return kept;
}

static int drawFiltered(const float* x, int vocab, float maximum, const SampleParams& p, int row,
                        double u, const Scratch& s) {
  float lowest = kLowest;
  if (p.minP[row] > 0) lowest = most(lowest, float(log(double(p.minP[row]))));
  if (p.topK[row] > 0) {
    lowest = boundOfTopK(p.topK[row], vocab, maximum, p.temperature[row], lowest, s);
  }
  int n = gather(x, vocab, maximum, p.temperature[row], lowest, s);
  if (p.topK[row] > 0 && p.topK[row] < n) n = keepPrefix<false>(p.topK[row], s, n);
  uint64_t sum = sumOf(s.weights, n);
  if (p.topP[row] < 1) {
    // The likeliest token weighs 2^30, so a target of 1 keeps just it where nothing more is wanted.
    const double target = most(double(p.topP[row]) * double(sum), 1.0);
    n = dropUnlikely(p.topP[row], sum, s, n);
    n = keepPrefix<true>(target, s, n);
    sum = sumOf(s.weights, n);
  }
  return s.ids[indexAt(s.weights, drawTarget(u, sum))];
}

// --- one row --------------------------------------------------------------------------------

static int chooseToken(const float* x, int vocab, float maximum, const SampleParams& p, int row,
                       const Scratch& s) {
  const float temperature = p.temperature[row];
  if (temperature == 0) return firstOf(maximum, x, vocab, s.chunkMaxima);
  const double u = uniform(p.seed + 2 * row, p.draw[row]);
  const bool ranked = p.topP[row] < 1 || (p.topK[row] > 0 && p.topK[row] < vocab);
  const bool filtered = p.minP[row] > 0 || ranked;
  return filtered ? drawFiltered(x, vocab, maximum, p, row, u, s)
                  : drawUnfiltered(x, vocab, maximum, temperature, u, s);
}

static void sampleRow(const float* logits, int vocab, const SampleParams& p, int row,
                      const SampleResult& result, uint8_t* scratch) {
  Scratch s;
  layOut(scratch, vocab, s);
  int32_t* topTokens = result.topTokens + size_t(row) * kMaxLogprobs;
  float* topLogprobs = result.topLogprobs + size_t(row) * kMaxLogprobs;
  result.tokens[row] = -1;
  result.logprobs[row] = __builtin_nanf("");
  result.ranks[row] = 0;
  for (int i = 0; i < kMaxLogprobs; i++) {
    topTokens[i] = -1;
    topLogprobs[i] = __builtin_nanf("");
  }

  float maximum;
  if (!scan(logits, vocab, s.chunkMaxima, maximum)) return;
  int token = p.targets[row];
  if (token < 0 && isAdjusted(p, row)) {
    memcpy(s.x, logits, size_t(vocab) * sizeof(float));
    adjust(p, row, s.x);
    float adjustedMaximum;
    if (!scan(s.x, vocab, s.chunkMaxima, adjustedMaximum)) return;
    token = chooseToken(s.x, vocab, adjustedMaximum, p, row, s);
    scan(logits, vocab, s.chunkMaxima, maximum);  // what follows is of the raw logits again
  } else if (token < 0) {
    token = chooseToken(logits, vocab, maximum, p, row, s);
  }
  result.tokens[row] = token;

  if (p.targets[row] < 0 && p.logprobs[row] < 0) return;
  const double norm = logSumExp(logits, vocab, maximum);
  result.logprobs[row] = float(logits[token] - norm);
  result.ranks[row] = rankOf(token, logits, vocab, s.chunkMaxima);
  mostLikely(most(p.logprobs[row], 0), logits, vocab, s.chunkMaxima, norm, topTokens, topLogprobs);
}

}  // namespace sampling

constexpr SampleKernels sampleKernels = {sampling::scratchBytes, sampling::sampleRow};

}  // namespace MILLRACE_ISA
}  // namespace millrace
