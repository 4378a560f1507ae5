// Attention against a plain double-precision version, over random odd shapes, with every slot that
// was not written poisoned with NaN.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <thread>

#include "../../native/cpu/attention.inl"
#include "check.h"

using namespace millrace;
namespace isa = millrace::MILLRACE_ISA;

namespace {

struct Sequence {
  int context, tokens;        // tokens: computed in this step
  std::vector<int> blocks;
  std::vector<float> k, v;    // [context][kvHeads * headDim] as given
};

struct Case {
  AttentionShape shape;
  DType dtype;
  int blockSize, threads;
  float scale;
  KvLayout kv;
  std::vector<Sequence> sequences;
  int numBlocks;
};

// A buffer of whole cache lines, every element of which reads as NaN in all storage types; int8 by its scale.
struct Cache {
  uint8_t* data;
  size_t bytes;
  explicit Cache(size_t n) : data((uint8_t*)::operator new(n, std::align_val_t(64))), bytes(n) {
    memset(data, 0xff, n);
  }
  ~Cache() { ::operator delete(data, std::align_val_t(64)); }
  Cache(const Cache&) = delete;
};

float stored(DType dtype, float x) {
  if (dtype == DType::BF16) return isa::fromBf16(isa::toBf16(x));
  if (dtype == DType::F16) return isa::fromF16(isa::toF16(x));
  return x;
}

// A head's keys or values as the cache keeps them.
std::vector<double> storedHead(DType dtype, const float* x, int headDim) {
  float largest = 0;
  for (int d = 0; d < headDim; d++) largest = std::max(largest, std::fabs(x[d]));
  const float inverse = 127 / largest, scale = largest / 127;
  std::vector<double> head;
  for (int d = 0; d < headDim; d++) {
    const float code = std::nearbyint(x[d] * inverse);
    head.push_back(dtype != DType::I8 ? stored(dtype, x[d]) : largest > 0 ? scale * code : 0);
  }
  return head;
}

// Where attention.h says the element is.
float cacheAt(const Case& c, const uint8_t* cache, int block, int offset, int head, int d,
              bool value) {
  const KvLayout& kv = c.kv;
  const uint8_t* tile = cache + block * kv.blockBytes + head * kv.headBytes +
                        offset / 16 * kv.tileBytes + (value ? kv.valueOffset : 0);
  const int lane = offset % 16;
  const bool pairs = c.dtype == DType::BF16;
  const int i = value ? (pairs ? (lane / 2 * kv.paddedDim + d) * 2 + lane % 2
                               : lane * kv.paddedDim + d)
                      : (pairs ? (d / 2 * 16 + lane) * 2 + d % 2 : d * 16 + lane);
  if (c.dtype == DType::I8) {
    const uint8_t* scales = value ? tile + kv.valueScales - kv.valueOffset : tile + kv.keyScales;
    return ((const float*)scales)[lane] * ((const int8_t*)tile)[i];
  }
  if (c.dtype == DType::F32) return ((const float*)tile)[i];
  const uint16_t h = ((const uint16_t*)tile)[i];
  return c.dtype == DType::BF16 ? isa::fromBf16(h) : isa::fromF16(h);
}

// A step as the interpreter passes it, over a subset of the sequences' tokens.
struct Batch {
  std::vector<int32_t> slots, queryStart{0}, contextLens, tables, tableStart{0};
  std::vector<float> q, k, v, out;
  size_t qStride, kvStride;
  Step step = {};

  void add(const Case& c, const Sequence& s, int first, int end, const float* queries) {
    const int width = c.shape.heads * c.shape.headDim, kvWidth = c.shape.kvHeads * c.shape.headDim;
    qStride = width + 3;
    kvStride = kvWidth + 5;
    for (int t = first; t < end; t++) {
      slots.push_back(s.blocks[t / c.blockSize] * c.blockSize + t % c.blockSize);
      for (size_t i = 0; i < kvStride; i++) {
        k.push_back(i < size_t(kvWidth) ? s.k[size_t(t) * kvWidth + i] : NAN);
        v.push_back(i < size_t(kvWidth) ? s.v[size_t(t) * kvWidth + i] : NAN);
      }
      for (size_t i = 0; i < qStride; i++) {
        q.push_back(i < size_t(width) && queries ? queries[size_t(t - first) * width + i] : NAN);
        out.push_back(-777);
      }
    }
    queryStart.push_back(int(slots.size()));
    contextLens.push_back(end);
    tables.insert(tables.end(), s.blocks.begin(), s.blocks.end());
    tableStart.push_back(int(tables.size()));
    step.numTokens = int(slots.size());
    step.numSeqs = int(contextLens.size());
    step.slots = slots.data();
    step.queryStart = queryStart.data();
    step.contextLens = contextLens.data();
    step.blockTables = tables.data();
    step.blockTableStart = tableStart.data();
  }
};

template <class F>
void onThreads(int threads, F f) {
  std::vector<std::thread> others;
  for (int i = 1; i < threads; i++) others.emplace_back(f, i);
  f(0);
  for (auto& t : others) t.join();
}

void write(const Case& c, Batch& b, Cache& cache) {
  const KvWrite w = {&b.step, c.kv, cache.data, {b.k.data(), b.kvStride}, {b.v.data(), b.kvStride}};
  onThreads(c.threads,
            [&](int thread) { isa::attentionKernels.writeKv(w, thread, c.threads); });
}

void attend(const Case& c, Batch& b, const Cache& cache, AttentionPlanner& planner, int layers) {
  const AttentionPlan& plan = planner.build(b.step);
  for (int layer = 0; layer < layers; layer++) {
    std::atomic<int32_t> next(0);
    const Attention a = {&b.step,     &plan, c.shape, c.kv, cache.data, {b.q.data(), b.qStride},
                         {b.out.data(), b.qStride}, c.scale, &next};
    onThreads(c.threads, [&](int thread) { isa::attentionKernels.attend(a, thread); });
  }
}

Case randomCase(Random& random) {
  Case c;
  c.shape.kvHeads = random.integer(1, 3);
  c.shape.heads = c.shape.kvHeads * random.pick({1, 1, 2, 3, 4, 5, 7, 8, 16});
  c.shape.headDim = random.pick({8, 10, 16, 24, 32, 48, 64, 64, 80, 96, 100, 128, 250, 256});
  c.shape.window = random.integer(0, 2) ? 0 : random.integer(1, 300);
  c.dtype = random.pick({DType::F32, DType::F16, DType::BF16, DType::BF16, DType::I8});
  c.blockSize = random.pick({16, 32, 64});
  c.threads = random.integer(1, 4);
  c.scale = 1 / std::sqrt(float(c.shape.headDim));
  c.kv = kvLayout(c.dtype, c.shape.kvHeads, c.shape.headDim, c.blockSize);
  // Work for the plain version is bounded, so that a wide head gets short contexts.
  int64_t budget = 12'000'000;
  const int width = c.shape.heads * c.shape.headDim;
  while (budget > 0 && c.sequences.size() < 6) {
    Sequence s;
    s.context = random.integer(0, 3) ? random.integer(1, 130) : random.integer(1, 700);
    const int most = int(std::max<int64_t>(1, budget / (int64_t(width) * s.context)));
    s.tokens = random.integer(0, 1) ? 1 : random.integer(1, std::min(s.context, most));
    budget -= int64_t(width) * s.context * s.tokens;
    c.sequences.push_back(s);
  }
  std::vector<int> ids;
  for (auto& s : c.sequences) {
    s.blocks.resize((s.context + c.blockSize - 1) / c.blockSize);
    for (size_t i = 0; i < s.blocks.size(); i++) ids.push_back(int(ids.size()));
  }
  for (int i = 0; i < 3; i++) ids.push_back(int(ids.size()));  // never used
  c.numBlocks = int(ids.size());
  std::shuffle(ids.begin(), ids.end(), random.engine);
  for (auto& s : c.sequences) {
    for (auto& b : s.blocks) {
      b = ids.back();
      ids.pop_back();
    }
    const size_t n = size_t(s.context) * c.shape.kvHeads * c.shape.headDim;
    for (size_t i = 0; i < n; i++) {
      s.k.push_back(random.normal() * 2);
      s.v.push_back(random.normal());
    }
  }
  return c;
}

void checkStored(const Case& c, const Cache& cache) {
  for (const auto& s : c.sequences) {
    for (int t = 0; t < s.context; t++) {
      for (int h = 0; h < c.shape.kvHeads; h++) {
        const size_t first = (size_t(t) * c.shape.kvHeads + h) * c.shape.headDim;
        const auto keys = storedHead(c.dtype, &s.k[first], c.shape.headDim);
        const auto values = storedHead(c.dtype, &s.v[first], c.shape.headDim);
        for (int d = 0; d < c.shape.headDim; d++) {
          const size_t i = first + d;
          const int block = s.blocks[t / c.blockSize], offset = t % c.blockSize;
          const float k = cacheAt(c, cache.data, block, offset, h, d, false);
          const float v = cacheAt(c, cache.data, block, offset, h, d, true);
          EXPECT(k == float(keys[d]) && v == float(values[d]),
                 "token %d head %d column %d holds %g, %g for %g, %g", t, h, d, k, v, s.k[i],
                 s.v[i]);
        }
      }
    }
  }
}

// One query row in double precision: the output, and the sum of probability * |value|, which
// bounds what rounding the probabilities can do.
void plainRow(const Case& c, const Sequence& s, int position, int head, const float* q,
              std::vector<double>& out, std::vector<double>& magnitude) {
  const int D = c.shape.headDim, kvHead = head / (c.shape.heads / c.shape.kvHeads);
  const int from = c.shape.window ? std::max(0, position - c.shape.window + 1) : 0;
  const bool rounded = isa::kHasPairDot && c.dtype == DType::BF16;
  std::vector<double> scores;
  double highest = -INFINITY, sum = 0;
  for (int t = from; t <= position; t++) {
    const float* k = &s.k[(size_t(t) * c.shape.kvHeads + kvHead) * D];
    const auto keys = storedHead(c.dtype, k, D);
    double dot = 0;
    for (int d = 0; d < D; d++) {
      dot += double(rounded ? stored(DType::BF16, q[d]) : q[d]) * keys[d];
    }
    scores.push_back(dot * c.scale);
    highest = std::max(highest, scores.back());
  }
  out.assign(D, 0);
  magnitude.assign(D, 0);
  for (auto& x : scores) sum += x = std::exp(x - highest);
  for (int t = from; t <= position; t++) {
    const float* v = &s.v[(size_t(t) * c.shape.kvHeads + kvHead) * D];
    const auto values = storedHead(c.dtype, v, D);
    for (int d = 0; d < D; d++) {
      out[d] += scores[t - from] / sum * values[d];
      magnitude[d] += scores[t - from] / sum * std::fabs(v[d]);
    }
  }
}

void checkCase(Random& random, const Case& c) {
  const int D = c.shape.headDim, width = c.shape.heads * D;
  Cache cache(c.kv.blockBytes * c.numBlocks);
  Batch past;
  for (const auto& s : c.sequences) {
    if (s.context > s.tokens) past.add(c, s, 0, s.context - s.tokens, nullptr);
  }
  if (past.step.numTokens) write(c, past, cache);

  Batch now;
  std::vector<std::vector<float>> queries;
  int longest = 0;
  for (const auto& s : c.sequences) {
    queries.emplace_back();
    for (int i = 0; i < s.tokens * width; i++) queries.back().push_back(random.normal());
    now.add(c, s, s.context - s.tokens, s.context, queries.back().data());
    longest = std::max(longest, s.context);
  }
  write(c, now, cache);
  checkStored(c, cache);

  const AttentionLimits limits = {now.step.numTokens, now.step.numSeqs, longest, c.threads};
  AttentionPlanner planner(c.shape, limits);
  attend(c, now, cache, planner, 2);

  const double relative = isa::kHasPairDot && c.dtype == DType::BF16 ? 0x1p-8 : 1e-5;
  std::vector<double> expected, magnitude;
  for (size_t i = 0; i < c.sequences.size(); i++) {
    const Sequence& s = c.sequences[i];
    for (int t = 0; t < s.tokens; t++) {
      const float* out = &now.out[size_t(now.queryStart[i] + t) * now.qStride];
      for (int h = 0; h < c.shape.heads; h++) {
        plainRow(c, s, s.context - s.tokens + t, h, &queries[i][size_t(t) * width + h * D],
                 expected, magnitude);
        for (int d = 0; d < D; d++) {
          const double error = std::fabs(out[h * D + d] - expected[d]);
          EXPECT(error <= relative * magnitude[d] + 2e-5,
                 "heads %d/%d dim %d window %d dtype %d threads %d context %d token %d head %d "
                 "column %d: %g instead of %g",
                 c.shape.heads, c.shape.kvHeads, D, c.shape.window, int(c.dtype), c.threads,
                 s.context, t, h, d, out[h * D + d], expected[d]);
        }
      }
      for (size_t i = width; i < now.qStride; i++) EXPECT(out[i] == -777, "wrote past the row");
    }
  }

  // Alone or in a batch: the same bits.
  const int lone = random.integer(0, int(c.sequences.size()) - 1);
  const Sequence& s = c.sequences[lone];
  Batch alone;
  alone.add(c, s, s.context - s.tokens, s.context, queries[lone].data());
  attend(c, alone, cache, planner, 1);
  EXPECT(!memcmp(alone.out.data(), &now.out[now.queryStart[lone] * now.qStride],
                 alone.out.size() * sizeof(float)),
         "sequence %d of %d differs when alone (context %d, tokens %d)", lone,
         int(c.sequences.size()), s.context, s.tokens);
}

// What NaN in one sequence's own query must do: spoil its own rows, all of them and no others.
void checkNanStaysInItsSequence(Random& random) {
  Case c = randomCase(random);
  while (c.sequences.size() < 2) c = randomCase(random);
  const int width = c.shape.heads * c.shape.headDim;
  Cache cache(c.kv.blockBytes * c.numBlocks);
  Batch b;
  int longest = 0;
  for (size_t i = 0; i < c.sequences.size(); i++) {
    std::vector<float> queries(size_t(c.sequences[i].context) * width, i ? 0.5f : NAN);
    b.add(c, c.sequences[i], 0, c.sequences[i].context, queries.data());
    longest = std::max(longest, c.sequences[i].context);
  }
  write(c, b, cache);
  AttentionPlanner planner(c.shape, {b.step.numTokens, b.step.numSeqs, longest, c.threads});
  attend(c, b, cache, planner, 1);
  for (int t = 0; t < b.step.numTokens; t++) {
    for (int i = 0; i < width; i++) {
      const bool nan = std::isnan(b.out[t * b.qStride + i]);
      EXPECT(nan == (t < b.queryStart[1]), "token %d column %d", t, i);
    }
  }
}

void checkCopyBlocks(Random& random) {
  const KvLayout layouts[2] = {kvLayout(DType::I8, 2, 10, 32), kvLayout(DType::F32, 1, 64, 32)};
  Cache first(layouts[0].blockBytes * 6), second(layouts[1].blockBytes * 6);
  uint8_t* caches[2] = {first.data, second.data};
  std::vector<uint8_t> before[2];
  for (int layer = 0; layer < 2; layer++) {
    const size_t bytes = layouts[layer].blockBytes * 6;
    for (size_t i = 0; i < bytes; i++) caches[layer][i] = uint8_t(random.integer(0, 255));
    before[layer].assign(caches[layer], caches[layer] + bytes);
  }
  const int32_t pairs[] = {0, 3, 0, 5, 2, 1};
  const int from[] = {0, 2, 2, 0, 4, 0};
  onThreads(3, [&](int thread) { copyBlocks(caches, layouts, 2, pairs, 3, thread, 3); });
  for (int layer = 0; layer < 2; layer++) {
    const size_t bytes = layouts[layer].blockBytes;
    for (int b = 0; b < 6; b++) {
      EXPECT(!memcmp(caches[layer] + b * bytes, &before[layer][from[b] * bytes], bytes),
             "block %d of layer %d should be a copy of %d", b, layer, from[b]);
    }
  }
}

}  // namespace

void checkAttention(Random& random, int rounds) {
  for (int i = 0; i < rounds; i++) checkCase(random, randomCase(random));
  for (int i = 0; i < 3; i++) checkNanStaysInItsSequence(random);
  checkCopyBlocks(random);
}
