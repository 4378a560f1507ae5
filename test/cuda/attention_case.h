// A random step of attention on the host and on the device, and what its result has to be.
#pragma once
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "attention_plan.h"
#include "attention_plan_cases.h"
#include "kernel_check.h"

namespace attention_check {

using namespace kernel_check;
using attention_plan_cases::Batch;

struct Layout {
  Elem elem;
  int heads, kvHeads, headDim, blockSize, window;
  bool fp8 = false;  // keys and values in e4m3
  AttentionShape shape() const {
    return {elem,      heads,  kvHeads, headDim, (headDim + 15) / 16 * 16,
            blockSize, window, 1.0f / std::sqrt(static_cast<float>(headDim)), fp8};
  }
};

// Of keys and values.
inline size_t kvBytesOf(const Layout& l) { return l.fp8 ? 1 : bytesOf(l.elem); }
inline double decodeKv(const Layout& l, const std::vector<uint8_t>& data, size_t i) {
  if (!l.fp8) return decode(l.elem, data.data(), i);
  __nv_fp8_e4m3 x;
  x.__x = data[i];
  return static_cast<float>(x);
}
inline void encodeKv(const Layout& l, std::vector<uint8_t>& data, size_t i, float value) {
  if (l.fp8) data[i] = __nv_fp8_e4m3(value).__x;
  else encode(l.elem, data.data(), i, value);
}

inline uint32_t mix(uint64_t x) {  // splitmix64
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ x >> 27) * 0x94D049BB133111EBull;
  return static_cast<uint32_t>((x ^ x >> 31) >> 32);
}
// Roughly normal: the sum of four uniform numbers has the variance 1/3.
inline float normalAt(uint64_t seed, uint64_t i) {
  const uint32_t a = mix(seed * 0x1000003 + i * 2), b = mix(seed * 0x1000003 + i * 2 + 1);
  const auto unit = [](uint32_t x) { return (x & 0xffff) / 65536.0f; };
  return (unit(a) + unit(a >> 16) + unit(b) + unit(b >> 16) - 2) * 1.732f;
}

// What is added to the scores of even heads and taken from those of odd ones, in powers of 2: from
// `start`, with as much more for each 40 tokens. It goes by the first column of queries and keys.
struct Trend {
  float start = 0, rise = 0;
  float at(int position) const { return start + rise * (position / 40); }
  explicit operator bool() const { return start != 0 || rise != 0; }
};

// Memory that is nobody's is NaN: unused blocks, tokens past a context or before every window, the
// gaps of q's rows, the output. The table of block ids is a random permutation, with a few ids in
// front that belong to no sequence.
struct Step {
  Layout layout;
  AttentionShape shape;
  Batch batch;
  std::vector<int> tables, tableStart, rowSeq, positions;
  std::vector<uint8_t> keys, values, q;
  int64_t qStride;
  int numBlocks = 0;
  uint64_t seed;
  Trend trend;

  Step(const Layout& layout, const Batch& batch, uint64_t seed, int minBlocks = 0, Trend trend = {})
      : layout(layout), shape(layout.shape()), batch(batch), seed(seed), trend(trend) {
    const int bs = layout.blockSize;
    int blocks = 3;
    tableStart = {2};
    for (int context : batch.contextLens) {
      blocks += (context + bs - 1) / bs;
      tableStart.push_back(tableStart.back() + (context + bs - 1) / bs);
    }
    numBlocks = std::max(blocks, minBlocks);
    std::vector<int> ids(numBlocks);
    std::iota(ids.begin(), ids.end(), 0);
    std::shuffle(ids.begin(), ids.end(), std::mt19937(static_cast<unsigned>(seed)));
    tables.assign(ids.begin(), ids.begin() + tableStart.back());
    for (int s = 0; s < batch.seqs(); s++) {
      const int length = batch.queryStart[s + 1] - batch.queryStart[s];
      for (int i = 0; i < length; i++) {
        rowSeq.push_back(s);
        positions.push_back(batch.contextLens[s] - length + i);
      }
    }
    fillCache();
    qStride = int64_t(layout.heads + 2 * layout.kvHeads) * layout.headDim;
    q.assign(batch.tokens() * qStride * bytesOf(layout.elem), 0xff);
    const int width = layout.heads * layout.headDim;
    parallelFor(batch.tokens(), [&](int64_t t) {
      for (int c = 0; c < width; c++) {
        encode(layout.elem, q.data(), t * qStride + c, 2 * normalAt(seed + 1, t * width + c));
      }
      for (int h = 0; trend && h < layout.heads; h++) {
        encode(layout.elem, q.data(), t * qStride + h * layout.headDim,
               h % 2 ? -kTrendQuery : kTrendQuery);
      }
    });
  }

  size_t at(int seq, int position, int kvHead) const {
    const int bs = layout.blockSize, block = tables[tableStart[seq] + position / bs];
    return ((static_cast<size_t>(block) * layout.kvHeads + kvHead) * bs + position % bs) *
           shape.headStride;
  }

  // Row `t`, head `head`, from the rounded inputs in float64.
  std::vector<double> expected(int t, int head) const {
    const Elem e = layout.elem;
    const int dim = layout.headDim, kvHead = head / (layout.heads / layout.kvHeads);
    const int last = positions[t];
    const int first = layout.window > 0 ? std::max(0, last - layout.window + 1) : 0;
    std::vector<double> query(dim), scores(last - first + 1), out(dim, 0.0);
    for (int d = 0; d < dim; d++) query[d] = decode(e, q.data(), t * qStride + head * dim + d);
    for (int p = first; p <= last; p++) {
      const size_t from = at(rowSeq[t], p, kvHead);
      double score = 0;
      for (int d = 0; d < dim; d++) score += query[d] * decodeKv(layout, keys, from + d);
      scores[p - first] = score * shape.scale;
    }
    const double top = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (int p = first; p <= last; p++) {
      const double weight = std::exp(scores[p - first] - top);
      const size_t from = at(rowSeq[t], p, kvHead);
      sum += weight;
      for (int d = 0; d < dim; d++) out[d] += weight * decodeKv(layout, values, from + d);
    }
    for (double& x : out) x /= sum;
    return out;
  }

 private:
  static constexpr float kTrendQuery = 4;

  void fillCache() {
    const int dim = layout.headDim, stride = shape.headStride;
    const size_t elements =
        static_cast<size_t>(numBlocks) * layout.kvHeads * layout.blockSize * stride;
    keys.assign(elements * kvBytesOf(layout), 0xff);
    values = keys;
    for (int s = 0; s < batch.seqs(); s++) {
      const int length = batch.queryStart[s + 1] - batch.queryStart[s];
      const int seen = layout.window > 0
                           ? std::max(0, batch.contextLens[s] - length - layout.window + 1)
                           : 0;
      parallelFor(batch.contextLens[s] - seen, [&](int64_t i) {
        for (int h = 0; h < layout.kvHeads; h++) {
          const size_t to = at(s, seen + static_cast<int>(i), h);
          for (int d = 0; d < stride; d++) {
            encodeKv(layout, keys, to + d, d < dim ? normalAt(seed + 2, to + d) : 0);
            encodeKv(layout, values, to + d, d < dim ? normalAt(seed + 3, to + d) : 0);
          }
          if (trend) {
            const float unit = kTrendQuery * shape.scale * 1.442695f;
            encodeKv(layout, keys, to, trend.at(seen + static_cast<int>(i)) / unit);
          }
        }
      });
    }
  }
};

// Of each token and head.
using Expected = std::vector<std::vector<double>>;

// The largest error of a head's row, relative to the row's largest expected value. Infinite if a
// gap of the output was written or a number is missing.
inline double errorOf(const Step& step, const std::vector<uint8_t>& out, int64_t outStride,
                      int outRows, const Expected& expected) {
  const Layout& l = step.layout;
  std::mutex mutex;
  double worst = 0;
  parallelFor(outRows, [&](int64_t t) {
    double rowWorst = 0;
    const bool real = t < step.batch.tokens();
    for (int64_t c = real ? l.heads * l.headDim : 0; c < outStride; c++) {
      if (!std::isnan(decode(l.elem, out.data(), t * outStride + c))) rowWorst = INFINITY;
    }
    for (int h = 0; real && h < l.heads; h++) {
      const std::vector<double>& want = expected[t * l.heads + h];
      double largest = 0, error = 0;
      for (int d = 0; d < l.headDim; d++) {
        const double got = decode(l.elem, out.data(), t * outStride + h * l.headDim + d);
        largest = std::max(largest, std::abs(want[d]));
        error = std::isnan(got) ? INFINITY : std::max(error, std::abs(got - want[d]));
      }
      rowWorst = std::max(rowWorst, error / largest);
    }
    const std::lock_guard<std::mutex> lock(mutex);
    worst = std::max(worst, rowWorst);
  });
  return worst;
}

// The first of the results that are wrong, and how many there are.
inline std::string firstWrong(const Step& step, const std::vector<uint8_t>& out, int64_t outStride,
                              const Expected& expected, double bound) {
  const Layout& l = step.layout;
  int64_t wrong = 0;
  std::string first;
  for (int t = 0; t < step.batch.tokens(); t++) {
    for (int h = 0; h < l.heads; h++) {
      const std::vector<double>& want = expected[t * l.heads + h];
      double largest = 0;
      for (double x : want) largest = std::max(largest, std::abs(x));
      for (int d = 0; d < l.headDim; d++) {
        const double got = decode(l.elem, out.data(), t * outStride + h * l.headDim + d);
        if (std::abs(got - want[d]) <= bound * largest) continue;
        if (wrong++ == 0) {
          first = "first wrong: token " + std::to_string(t) + " (sequence " +
                  std::to_string(step.rowSeq[t]) + ", position " + std::to_string(step.positions[t]) +
                  "), head " + std::to_string(h) + ", column " + std::to_string(d) + ": " +
                  std::to_string(got) + ", expected " + std::to_string(want[d]);
        }
      }
    }
  }
  return first + "; " + std::to_string(wrong) + " in all";
}

inline Expected expectedOf(const Step& step) {
  Expected rows(size_t(step.batch.tokens()) * step.layout.heads);
  parallelFor(static_cast<int64_t>(rows.size()), [&](int64_t i) {
    rows[i] = step.expected(static_cast<int>(i / step.layout.heads),
                            static_cast<int>(i % step.layout.heads));
  });
  return rows;
}

// Device memory of steps of at most these sizes. Addresses stay, so that a graph can be replayed
// with other contents.
class Memory {
 public:
  Memory(const AttentionShape& shape, int tokens, int seqs, size_t qBytes, size_t cacheBytes,
         int tableInts, int64_t outStride)
      : shape(shape), outStride(outStride), tokens(tokens),
        planHost(attentionPlanBytes(shape, tokens, seqs) + 16),
        keys(cacheBytes), values(cacheBytes), q(qBytes),
        out(size_t(tokens) * outStride * bytesOf(shape.elem)),
        queryStart((seqs + 1) * 4), contextLens(seqs * 4), tables(tableInts * 4),
        tableStart((seqs + 1) * 4), rowSeq(tokens * 4), positions(tokens * 4),
        plan(planHost.size()), scratch(attentionScratchBytes(shape, tokens, seqs) + 16) {
    const size_t zero = shape.elem == Elem::F32 ? 0 : kCounterBytes;
    check(cudaMemset(scratch.as(), 0, zero), "scratch");
  }

  // Padding sequences have no keys and a row that nothing is expected of.
  AttentionPlan upload(const Step& step, int paddedSeqs, bool graph) {
    put(keys, step.keys.data(), step.keys.size());
    put(values, step.values.data(), step.values.size());
    put(q, step.q.data(), step.q.size());
    std::vector<int> starts = step.batch.queryStart, contexts = step.batch.contextLens,
                     tableStarts = step.tableStart;
    for (int s = step.batch.seqs(); s < paddedSeqs; s++) {
      starts.push_back(starts.back() + 1);
      contexts.push_back(0);
      tableStarts.push_back(tableStarts.back());
    }
    put(queryStart, starts.data(), starts.size() * 4);
    put(contextLens, contexts.data(), contexts.size() * 4);
    put(tables, step.tables.data(), step.tables.size() * 4);
    put(tableStart, tableStarts.data(), tableStarts.size() * 4);
    put(rowSeq, step.rowSeq.data(), step.rowSeq.size() * 4);
    put(positions, step.positions.data(), step.positions.size() * 4);
    const AttentionPlan made =
        planAttention(shape, step.batch.view(), paddedSeqs, graph, planHost.data());
    put(plan, planHost.data(), planHost.size());
    clearOut();
    return made;
  }
  void clearOut() {
    check(cudaMemset(out.as(), 0xff, size_t(tokens) * outStride * bytesOf(shape.elem)), "out");
  }
  AttentionInputs inputs() const {
    return {queryStart.as<int>(), contextLens.as<int>(), tables.as<int>(),
            tableStart.as<int>(), plan.as(),             scratch.as()};
  }
  KvLayer kv() const {
    return {keys.as(),     values.as(),      shape.kvHeads,
            shape.headDim, shape.headStride, shape.blockSize, shape.fp8};
  }
  Matrix outMatrix() const { return {out.as(), outStride, shape.heads * shape.headDim}; }
  Matrix qMatrix(int64_t stride) const { return {q.as(), stride, shape.heads * shape.headDim}; }
  bool countersAreZero() const {
    std::vector<int> counters(kCounterBytes / 4);
    check(cudaMemcpy(counters.data(), scratch.as(), kCounterBytes, cudaMemcpyDefault), "counters");
    return std::all_of(counters.begin(), counters.end(), [](int x) { return x == 0; });
  }

  AttentionShape shape;
  int64_t outStride;
  int tokens;
  std::vector<char> planHost;
  Device keys, values, q, out, queryStart, contextLens, tables, tableStart, rowSeq, positions, plan,
      scratch;

 private:
  static void put(const Device& to, const void* from, size_t bytes) {
    check(cudaMemcpy(to.as(), from, bytes, cudaMemcpyDefault), "upload");
  }
};

inline Memory memoryFor(const Step& step, int64_t outStride) {
  return Memory(step.shape, step.batch.tokens(), step.batch.seqs(), step.q.size(), step.keys.size(),
                static_cast<int>(step.tables.size()), outStride);
}

}  // namespace attention_check
