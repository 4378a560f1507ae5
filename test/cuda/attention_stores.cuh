// Attention that turns the step's queries and stores its keys and values itself, beside qkvStore and
// attention one after the other.
#pragma once
#include "attention_case.h"

namespace attention_check {

// The largest difference of results and caches, each as a part of its bound. A batch of decodes.
inline double storesError(const Layout& layout, const Batch& batch, uint64_t seed, bool norm, bool rope,
                          double bound) {
  Step step(layout, batch, seed);
  const int dim = layout.headDim, tokens = batch.tokens();
  // As the projection leaves them: queries are there, keys and values after them are not.
  std::vector<uint8_t> raw = step.q;
  const int first = layout.heads * dim, width = static_cast<int>(step.qStride);
  std::vector<int> slots;
  int longest = 0;
  for (int t = 0; t < tokens; t++) {
    for (int c = first; c < width; c++) {
      encode(layout.elem, raw.data(), int64_t(t) * width + c, 2 * normalAt(seed + 5, int64_t(t) * width + c));
    }
    const int newest = batch.contextLens[t] - 1, block = step.tables[step.tableStart[t] + newest / layout.blockSize];
    slots.push_back(block * layout.blockSize + newest % layout.blockSize);
    longest = std::max(longest, newest + 1);
    for (int h = 0; h < layout.kvHeads; h++) {  // not stored yet
      for (int d = 0; d < dim; d++) {
        for (auto* cache : {&step.keys, &step.values}) {
          const size_t bytes = kvBytesOf(layout), at = (step.at(t, newest, h) + d) * bytes;
          std::fill_n(cache->begin() + at, bytes, 0xff);
        }
      }
    }
  }
  std::vector<float> weights(2 * dim);
  for (int d = 0; d < 2 * dim; d++) weights[d] = 1 + 0.3f * normalAt(seed + 6, d);
  std::vector<float2> turns(size_t(longest) * dim / 2);
  for (size_t i = 0; i < turns.size(); i++) {
    const double angle = double(i / (dim / 2)) * std::pow(10000.0, -2.0 * (i % (dim / 2)) / dim);
    turns[i] = make_float2(static_cast<float>(std::cos(angle)), static_cast<float>(std::sin(angle)));
  }
  const Device rawOnDevice(raw), weightsOnDevice(weights), turnsOnDevice(turns), slotsOnDevice(slots);

  std::vector<std::vector<uint8_t>> outs, keys, values;
  for (const bool itself : {false, true}) {
    const int64_t outStride = first + 8;
    Memory memory = memoryFor(step, outStride);
    const AttentionPlan plan = memory.upload(step, batch.seqs(), false);
    QkvStore store{};
    const auto columns = [&](int from, int heads) {
      return Matrix{rawOnDevice.as<uint8_t>() + from * bytesOf(layout.elem), width, heads * dim};
    };
    store.qIn = columns(0, layout.heads);
    store.kIn = columns(first, layout.kvHeads);
    store.vIn = columns(first + layout.kvHeads * dim, layout.kvHeads);
    store.q = memory.qMatrix(step.qStride);
    if (norm) store.qNorm = weightsOnDevice.as<float>(), store.kNorm = store.qNorm + dim;
    store.eps = 1e-6f;
    if (rope) store.cosSin = turnsOnDevice.as<float2>();
    store.positions = memory.positions.as<int>();
    store.slots = slotsOnDevice.as<int>();
    store.heads = layout.heads;
    store.kv = memory.kv();
    AttentionInputs inputs = memory.inputs();
    if (itself) {
      if (!attentionStores(step.shape, plan, store)) throw std::runtime_error("attention would not store");
      inputs.store = &store;
    } else {
      qkvStore(layout.elem, store, tokens, nullptr);
    }
    attention(step.shape, plan, inputs, memory.kv(), store.q, memory.outMatrix(), nullptr);
    check(cudaDeviceSynchronize(), "attention");
    if (!memory.countersAreZero()) return INFINITY;
    outs.push_back(memory.out.download<uint8_t>());
    keys.push_back(memory.keys.download<uint8_t>());
    values.push_back(memory.values.download<uint8_t>());
  }

  double worst = 0;
  for (int t = 0; t < tokens; t++) {
    for (int head = 0; head < layout.heads; head++) {
      double largest = 0, error = 0;
      for (int d = 0; d < dim; d++) {
        const int64_t i = t * int64_t(first + 8) + head * dim + d;
        const double want = decode(layout.elem, outs[0].data(), i), got = decode(layout.elem, outs[1].data(), i);
        largest = std::max(largest, std::abs(want));
        error = std::isnan(got) || std::isnan(want) ? INFINITY : std::max(error, std::abs(got - want));
      }
      worst = std::max(worst, error / largest / bound);
    }
  }
  // What is stored may be rounded to a neighbor; all else stays as it was.
  const double neighbor = layout.fp8 ? 0.13 : layout.elem == Elem::F16 ? 2e-3 : 1e-2;
  const auto compare = [&](std::vector<uint8_t>& a, std::vector<uint8_t>& b) {
    for (int t = 0; t < tokens; t++) {
      for (int h = 0; h < layout.kvHeads; h++) {
        const size_t at = step.at(t, batch.contextLens[t] - 1, h), bytes = kvBytesOf(layout);
        for (size_t i = at; i < at + dim; i++) {
          const double want = decodeKv(layout, a, i), got = decodeKv(layout, b, i);
          const double error = std::abs(got - want) / (std::abs(want) + 0.01);
          worst = std::isnan(error) ? INFINITY : std::max(worst, error / neighbor);
        }
        std::copy_n(a.begin() + at * bytes, dim * bytes, b.begin() + at * bytes);
      }
    }
    if (a != b) worst = INFINITY;
  };
  compare(keys[0], keys[1]);
  compare(values[0], values[1]);
  return worst;
}

}  // namespace attention_check
