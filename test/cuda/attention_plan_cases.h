// The attention planner against what it promises, over random batches and without a GPU: every key
// tile of every pass belongs to exactly one worker or item, and the kernels' arithmetic about who
// holds what agrees with the plan.
#pragma once
#include <algorithm>
#include <cstdio>
#include <map>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "attention_plan.h"

namespace attention_plan_cases {

using namespace millrace::cuda;

struct Batch {
  std::vector<int> queryStart{0}, contextLens;
  void add(int queries, int context) {
    queryStart.push_back(queryStart.back() + queries);
    contextLens.push_back(context);
  }
  int seqs() const { return static_cast<int>(contextLens.size()); }
  int tokens() const { return queryStart.back(); }
  AttentionBatch view() const { return {seqs(), queryStart.data(), contextLens.data()}; }
};

// Whether the longest of some stretches is longer than the plan says.
inline bool tooLong(int64_t longest, int64_t tiles, int64_t workers, int64_t snap) {
  const int64_t even = (tiles + workers - 1) / workers;
  return longest > even && (longest > even + snap || longest * workers * 10 > tiles * 11);
}

// Empty if all is well.
inline std::string decodeProblem(const AttentionShape& shape, const Batch& batch,
                                 const PlanGeometry& g, const AttentionPlan& made,
                                 const char* plan) {
  const auto* workers = reinterpret_cast<const DecodeWorker*>(plan);
  const auto* entries = reinterpret_cast<const DecodeEntry*>(plan + planEntriesAt(g));
  const int passes = shape.kvHeads * passesOf(shape);
  std::vector<int> seqs;
  for (int s = 0; s < batch.seqs(); s++) {
    if (batch.queryStart[s + 1] - batch.queryStart[s] == 1) seqs.push_back(s);
  }
  if (made.decodeSeqs != static_cast<int>(seqs.size())) return "number of entries";
  std::vector<std::vector<int>> owners;  // of each (entry, pass): the worker of each tile
  for (size_t i = 0; i < seqs.size(); i++) {
    const int context = batch.contextLens[seqs[i]];
    if (entries[i].seq != seqs[i] || entries[i].row != batch.queryStart[seqs[i]] ||
        entries[i].context != context) {
      return "entry " + std::to_string(i);
    }
    const int low = shape.window > 0 ? std::max(0, context - shape.window) : 0;
    if (tileFirst(context, shape.window) != low / 16) return "first tile";
    const int tiles = (context + 15) / 16 - low / 16;
    for (int p = 0; p < passes; p++) owners.emplace_back(tiles, -1);
  }
  const int W = g.decodeWarps;
  std::vector<std::vector<int>> counts(g.decodeBlocks);  // of each block's warps
  for (int w = 0; w < g.decodeWorkers(); w++) {
    const int begin = workers[w].begin, count = workers[w + 1].begin - begin;
    if (w >= made.decodeItems) {
      if (count != 0) return "an idle worker with tiles";
      continue;
    }
    if (count < 1) return "an idle worker among others";
    counts[w / W].push_back(count);
    // As the kernel walks.
    int entry = workers[w].entry;
    if (entry >= made.decodeSeqs) return "entry of a worker";
    const int within = begin - entries[entry].tileStart * passes;
    int tiles = static_cast<int>(owners[entry * passes].size());
    int pass = within / tiles, tile = within % tiles;
    for (int k = 0; k < count; k++) {
      if (entry >= made.decodeSeqs || pass < 0 || pass >= passes) return "walk past the end";
      int& owner = owners[entry * passes + pass][tile];
      if (owner != -1) return "a tile twice";
      owner = w;
      if (++tile < tiles) continue;
      tile = 0;
      if (++pass < passes) continue;
      pass = 0;
      if (++entry < made.decodeSeqs) tiles = static_cast<int>(owners[entry * passes].size());
    }
  }
  const int64_t line = workers[g.decodeWorkers()].begin;
  const int64_t most = std::clamp<int64_t>(line / (3 * W), 1, g.decodeBlocks);
  for (const std::vector<int>& warps : counts) {
    if (warps.empty()) continue;
    const int64_t tiles = std::accumulate(warps.begin(), warps.end(), int64_t{0});
    if (tooLong(tiles, line, most, 2 * W)) return "a block with too much";
    if (tooLong(*std::max_element(warps.begin(), warps.end()), tiles, std::min<int64_t>(W, tiles), 2)) {
      return "a warp with too much";
    }
  }
  // Whom a worker with a part of an item takes for the others, and the counters that blocks meet at.
  std::set<int> slots, leaders;
  int64_t at = 0;
  for (const auto& tiles : owners) {
    at += static_cast<int64_t>(tiles.size());
    for (size_t i = 0; i < tiles.size(); i++) {
      if (tiles[i] < 0) return "a tile of nobody";
      if (i > 0 && tiles[i] != tiles[i - 1] && tiles[i] != tiles[i - 1] + 1) return "order";
    }
    const int first = tiles.front(), last = tiles.back();
    for (int w = first; w <= last; w++) {
      if (w > first && workers[w].first != first) return "first worker of an item";
      if (w < last && workers[w].last != last) return "last worker of an item";
    }
    if (first / W == last / W) continue;
    for (int block = first / W; block <= last / W; block++) {
      if (!slots.insert(2 * block + (block == first / W ? 1 : 0)).second) return "a slot twice";
    }
    if (!leaders.insert(first / W).second) return "a counter twice";
  }
  return at == line ? "" : "length of the line";
}

inline std::string prefillProblem(const AttentionShape& shape, const Batch& batch,
                                  const PlanGeometry& g, const AttentionPlan& made,
                                  const char* plan) {
  const auto* items =
      reinterpret_cast<const PrefillItem*>(plan + planItemsAt(g, made.decodeSeqs));
  const int group = shape.heads / shape.kvHeads;
  std::map<std::pair<int, int>, std::vector<PrefillItem>> tiles;
  int before = INT32_MAX;
  for (int i = 0; i < made.prefillItems; i++) {
    const PrefillItem& item = items[i];
    const int length = (item.keyEnd - item.keyBegin + g.prefillKeys - 1) / g.prefillKeys;
    if (length < 1 || length > before) return "order of items";
    before = length;
    tiles[{item.seq, item.rowBegin}].push_back(item);
  }
  std::set<int> slots;
  size_t expected = 0;
  for (int s = 0; s < batch.seqs(); s++) {
    const int length = batch.queryStart[s + 1] - batch.queryStart[s];
    if (length <= 1) continue;
    for (int row = 0; row < length * group; row += g.prefillRows) {
      expected++;
      auto found = tiles.find({s, row});
      if (found == tiles.end()) return "rows of nobody";
      std::vector<PrefillItem>& parts = found->second;
      if (parts.size() != static_cast<size_t>(parts[0].parts)) return "number of parts";
      std::vector<const PrefillItem*> ordered(parts.size());
      for (const PrefillItem& part : parts) {
        if (part.part < 0 || part.part >= part.parts || ordered[part.part]) return "part number";
        ordered[part.part] = &part;
        if (part.parts > 1) {
          const int slot = part.slot + part.part;
          if (!slots.insert(slot).second || slot >= prefillPieces(shape, g)) return "slot";
        }
      }
      const int first = batch.contextLens[s] - length;
      const int last = std::min(row + g.prefillRows, length * group) - 1;
      const int low = shape.window > 0 ? std::max(0, first + row / group - shape.window + 1) : 0;
      if (ordered[0]->keyBegin != low / g.prefillKeys * g.prefillKeys) return "first key";
      if (ordered.back()->keyEnd != first + last / group + 1) return "last key";
      for (size_t i = 0; i + 1 < ordered.size(); i++) {
        if (ordered[i]->keyEnd != ordered[i + 1]->keyBegin) return "a gap between parts";
        if (ordered[i]->keyEnd % g.prefillKeys != 0) return "a part that ends within a tile";
      }
    }
  }
  return expected == tiles.size() ? "" : "rows of no sequence";
}

struct Equal {
  int seqs, context, kvHeads, cut, apart, longest;
};
// Sequences of one length on 132 blocks of 8 warps: how many items are cut, how many of them into parts of
// several blocks, and the longest stretch.
inline int checkEqualLengths() {
  int failures = 0;
  for (const Equal& e : {Equal{256, 192, 8, 0, 0, 24}, Equal{64, 1024, 8, 512, 0, 32},
                         Equal{1, 100000, 8, 8, 8, 49}, Equal{128, 192, 8, 0, 0, 12},
                         Equal{16, 850, 8, 128, 0, 7}, Equal{1, 1, 1, 0, 0, 1}}) {
    const AttentionShape shape{Elem::BF16, 4 * e.kvHeads, e.kvHeads, 128, 128, 16, 0, 1};
    const PlanGeometry g = {132, 8, 128, 64, 264};
    Batch batch;
    for (int s = 0; s < e.seqs; s++) batch.add(1, e.context);
    std::vector<int> plan(planBytes(shape, g, e.seqs, e.seqs) / 4 + 4);
    const AttentionPlan made = makePlan(shape, batch.view(), e.seqs, true, g, plan.data());
    const auto* workers = reinterpret_cast<const DecodeWorker*>(plan.data());
    int cut = 0, apart = 0, longest = 0;
    for (int w = 0; w < made.decodeItems; w++) {
      const int last = workers[w].last;
      const bool begins = last != w && (workers[w].first == w || last != workers[w - 1].last);
      cut += begins;
      apart += begins && last / g.decodeWarps != w / g.decodeWarps;
      longest = std::max(longest, workers[w + 1].begin - workers[w].begin);
    }
    if (cut == e.cut && apart == e.apart && longest == e.longest) continue;
    failures++;
    std::printf("plan of %d x %d: %d items cut, expected %d, by blocks %d, expected %d, longest stretch %d, "
                "expected %d FAIL\n",
                e.seqs, e.context, cut, e.cut, apart, e.apart, longest, e.longest);
  }
  return failures;
}

// Prints failures and one line; returns the number of failures.
inline int checkPlans(int rounds) {
  std::mt19937 random(11);
  auto below = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
  int failures = checkEqualLengths(), splits = 0;
  for (int round = 0; round < rounds; round++) {
    AttentionShape shape{};
    shape.elem = Elem::BF16;
    shape.kvHeads = 1 + below(10);
    shape.heads = shape.kvHeads * (1 + below(24));
    shape.headDim = shape.headStride = 64;
    shape.blockSize = 16;
    shape.window = below(3) == 0 ? 1 + below(500) : 0;
    shape.scale = 1;
    const PlanGeometry g = {1 + below(below(2) ? 40 : 270), 1 << below(5), 16 << below(4), 32 << below(2),
                            1 + below(500)};
    Batch batch;
    const int kind = below(4), seqs = below(3) == 0 ? 1 + below(400) : 1 + below(12);
    for (int s = 0; s < seqs; s++) {
      const int context = below(8) == 0 ? 1 + below(below(4) == 0 ? 60000 : 3000) : 1 + below(200);
      int queries = 1;
      if (kind == 1 || (kind == 2 && below(2))) queries = 1 + below(std::min(context, 300));
      batch.add(queries, context);
    }
    const size_t bytes = planBytes(shape, g, batch.tokens(), batch.seqs());
    // Integers behind the end that nobody may touch.
    std::vector<int> memory(bytes / 4 + 64, 0x5a5a5a5a);
    char* plan = reinterpret_cast<char*>(memory.data());
    const AttentionPlan made = makePlan(shape, batch.view(), batch.seqs(), false, g, plan);
    std::string problem = decodeProblem(shape, batch, g, made, plan);
    if (problem.empty()) problem = prefillProblem(shape, batch, g, made, plan);
    for (size_t i = (bytes + 3) / 4; i < memory.size(); i++) {
      if (memory[i] != 0x5a5a5a5a) problem = "wrote past the end";
    }
    splits += made.splits;
    if (!problem.empty()) {
      failures++;
      std::printf("plan %d (%d seqs, %d workers): %s FAIL\n", round, seqs, g.decodeWorkers(),
                  problem.c_str());
    }
  }
  std::printf("%d random plans, %d split prefill tiles, %d failures\n", rounds, splits, failures);
  return failures + (splits == 0);
}

}  // namespace attention_plan_cases
