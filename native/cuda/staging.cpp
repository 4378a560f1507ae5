#include "staging.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <unordered_set>

namespace millrace::cuda {
namespace {

constexpr size_t kAlignment = 16;
// Arrays of a row's sampling parameters, the seed's two words and the two starts included.
constexpr int kSamplingArrays = 14;

// Hands out consecutive aligned ranges.
struct Cursor {
  size_t end = 0;
  size_t take(size_t bytes, size_t alignment = kAlignment) {
    const size_t begin = alignUp(end, alignment);
    end = begin + bytes;
    return begin;
  }
  size_t ints(size_t count) { return take(count * 4); }
};

void grow(PinnedMemory& memory, size_t bytes) {
  if (memory.bytes() < bytes) memory = PinnedMemory(bytes + bytes / 2);
}

}  // namespace

StagingLayout::StagingLayout(const StepSize& size, const std::vector<AttentionShape>& shapes) {
  Cursor at;
  tokens = at.ints(size.tokens);
  positions = at.ints(size.tokens);
  slots = at.ints(size.tokens);
  rowSeq = at.ints(size.tokens);
  queryStart = at.ints(size.seqs + 1);
  contextLens = at.ints(size.seqs);
  blockTableStart = at.ints(size.seqs + 1);
  rows = at.ints(size.rows);
  for (const AttentionShape& shape : shapes) {
    plans.push_back(at.take(attentionPlanBytes(shape, size.tokens, size.seqs), kDeviceAlignment));
  }
  blockTables = at.take(0);
}

size_t stagingBytes(const BatchLimits& limits, const std::vector<AttentionShape>& shapes) {
  const StagingLayout layout({limits.maxTokens, limits.maxSeqs, limits.maxTokens}, shapes);
  const size_t blocks = (size_t(limits.maxModelLen) + limits.blockSize - 1) / limits.blockSize;
  const size_t sampling = kSamplingArrays * ((size_t(limits.maxTokens) + 1) * 4 + kAlignment);
  return alignUp(layout.blockTables + limits.maxSeqs * blocks * 4 + sampling);
}

Staging::Staging(const BatchLimits& limits, const std::vector<AttentionShape>& shapes, int rowTile,
                 int raggedEntries)
    : limits_(limits), shapes_(shapes), rowTile_(rowTile), raggedEntries_(raggedEntries),
      memory_(stagingBytes(limits, shapes)), layout_({1, 1, 1}, shapes), plans_(shapes.size()) {}

void Staging::pack(const Batch& batch, const StepSize& size, bool graph) {
  layout_ = StagingLayout(size, shapes_);
  packRagged(batch);
  packSequences(batch, size, graph);
  packSampling(batch);
  packCopies(batch);
}

void Staging::packPadding(const StepSize& size) {
  static const int32_t zero[1] = {0};
  Batch none{};
  none.queryStart = none.blockTableStart = {zero, 1};
  layout_ = StagingLayout(size, shapes_);
  packSequences(none, size, true);
}

void Staging::packSequences(const Batch& b, const StepSize& size, bool graph) {
  const auto copy = [&](size_t offset, const int32_t* from, int count) {
    if (count > 0) std::memcpy(at<int>(offset), from, size_t(count) * 4);
  };
  copy(layout_.tokens, b.tokens.data, b.numTokens);
  copy(layout_.positions, b.positions.data, b.numTokens);
  copy(layout_.slots, b.slots.data, b.numTokens);
  copy(layout_.queryStart, b.queryStart.data, b.numSeqs + 1);
  copy(layout_.contextLens, b.contextLens.data, b.numSeqs);
  copy(layout_.rows, b.rows.data, b.numRows);
  int* rowSeq = at<int>(layout_.rowSeq);
  int* tableStart = at<int>(layout_.blockTableStart);
  int* tables = at<int>(layout_.blockTables);
  int blocks = 0;
  for (int seq = 0; seq < b.numSeqs; seq++) {
    std::fill(rowSeq + b.queryStart[seq], rowSeq + b.queryStart[seq + 1], seq);
    // Tables may be longer than what a step reads of them.
    const int count = (b.contextLens[seq] + limits_.blockSize - 1) / limits_.blockSize;
    tableStart[seq] = blocks;
    std::memcpy(tables + blocks, b.blockTables.data + b.blockTableStart[seq], size_t(count) * 4);
    blocks += count;
  }
  tableStart[b.numSeqs] = blocks;
  for (int t = b.numTokens; t < size.tokens; t++) {
    at<int>(layout_.tokens)[t] = at<int>(layout_.positions)[t] = 0;
    at<int>(layout_.slots)[t] = rowSeq[t] = -1;
  }
  for (int seq = b.numSeqs; seq < size.seqs; seq++) {
    at<int>(layout_.queryStart)[seq + 1] = seq + 1;
    at<int>(layout_.contextLens)[seq] = 0;
    tableStart[seq + 1] = blocks;
  }
  for (int row = b.numRows; row < size.rows; row++) at<int>(layout_.rows)[row] = row;
  const AttentionBatch attention = {b.numSeqs, b.queryStart.data, b.contextLens.data};
  for (size_t i = 0; i < shapes_.size(); i++) {
    plans_[i] = planAttention(shapes_[i], attention, size.seqs, graph, at<void>(layout_.plans[i]));
  }
  bytes_ = layout_.blockTables + size_t(blocks) * 4;
}

void Staging::packSampling(const Batch& b) {
  const size_t rows = b.numRows;
  Cursor cursor{bytes_};
  const auto put = [&](const void* from, size_t count) {
    const size_t offset = cursor.ints(count);
    if (count > 0) std::memcpy(memory_.data() + offset, from, count * 4);
    return offset;
  };
  offsets_.temperature = put(b.temperature.data, rows);
  offsets_.topK = put(b.topK.data, rows);
  offsets_.topP = put(b.topP.data, rows);
  offsets_.minP = put(b.minP.data, rows);
  offsets_.seed = put(b.seed.data, 2 * rows);
  offsets_.draw = put(b.draw.data, rows);
  offsets_.repetitionPenalty = put(b.repetitionPenalty.data, rows);
  offsets_.presencePenalty = put(b.presencePenalty.data, rows);
  offsets_.frequencyPenalty = put(b.frequencyPenalty.data, rows);
  offsets_.historyStart = put(b.historyStart.data, rows + 1);
  offsets_.biasStart = put(b.biasStart.data, rows + 1);
  offsets_.logprobs = put(b.logprobs.data, rows);
  offsets_.targets = put(b.targets.data, rows);
  bytes_ = cursor.end;
  needs_ = {};
  for (size_t row = 0; row < rows; row++) {
    const bool wants = b.logprobs[row] >= 0 || b.targets[row] >= 0;
    const bool draws = b.temperature[row] > 0;
    needs_.logprobs = needs_.logprobs || wants;
    needs_.draw = needs_.draw || draws;
    needs_.filter = needs_.filter ||
                    (draws && (b.topK[row] > 0 || b.topP[row] < 1 || b.minP[row] > 0));
  }
  needs_.adjust = b.historyStart[rows] > 0 || b.biasStart[rows] > 0;
}

// Rows whose entries together find room on the device make a group; a group ends with a tile.
void Staging::packRagged(const Batch& b) {
  groups_.clear();
  historyStart_.assign(b.historyStart.data, b.historyStart.data + b.numRows + 1);
  biasStart_.assign(b.biasStart.data, b.biasStart.data + b.numRows + 1);
  size_t offset = 0;
  for (int row = 0; row < b.numRows; row++) {
    const int history = b.historyStart[row + 1] - b.historyStart[row];
    const int bias = b.biasStart[row + 1] - b.biasStart[row];
    if (int64_t(history) + bias > raggedEntries_) {
      throw std::invalid_argument("row " + std::to_string(row) + " of the batch has " +
                                  std::to_string(int64_t(history) + bias) +
                                  " tokens of history and bias, more than " +
                                  std::to_string(raggedEntries_));
    }
    const bool fits = !groups_.empty() && row % rowTile_ != 0 &&
                      int64_t(groups_.back().history) + groups_.back().bias + history + bias <=
                          raggedEntries_;
    if (!fits) {
      if (!groups_.empty()) offset += alignUp(groups_.back().bytes(), kAlignment);
      groups_.push_back({row, 0, offset, 0, 0});
    }
    groups_.back().rows++;
    groups_.back().history += history;
    groups_.back().bias += bias;
  }
  if (groups_.empty()) return;
  grow(ragged_, offset + groups_.back().bytes());
  for (const RaggedGroup& group : groups_) {
    uint8_t* to = ragged_.data() + group.offset;
    const auto put = [&](const void* from, size_t first, size_t count) {
      if (count == 0) return;
      std::memcpy(to, static_cast<const uint8_t*>(from) + first * 4, count * 4);
      to += count * 4;
    };
    const int history = b.historyStart[group.firstRow], bias = b.biasStart[group.firstRow];
    put(b.historyTokens.data, history, group.history);
    put(b.historyCounts.data, history, group.history);
    put(b.biasTokens.data, bias, group.bias);
    put(b.biasValues.data, bias, group.bias);
  }
}

void Staging::packCopies(const Batch& b) {
  copyRuns_.clear();
  if (b.numCopies == 0) return;
  grow(copies_, size_t(b.numCopies) * 8);
  std::memcpy(copies_.data(), b.copies.data, size_t(b.numCopies) * 8);
  std::unordered_set<int> read, written;
  copyRuns_.push_back({0, 0});
  for (int i = 0; i < b.numCopies; i++) {
    const int source = b.copies[2 * i], target = b.copies[2 * i + 1];
    if (written.count(source) || written.count(target) || read.count(target)) {
      copyRuns_.push_back({i, 0});
      read.clear();
      written.clear();
    }
    read.insert(source);
    written.insert(target);
    copyRuns_.back().count++;
  }
}

SamplingInputs Staging::sampling(const uint8_t* device, const RaggedGroup& group, uint8_t* ragged,
                                 float* saved) const {
  const int row = group.firstRow;
  const auto ints = [&](size_t offset, int first) {
    return reinterpret_cast<const int*>(device + offset) + first;
  };
  const auto floats = [&](size_t offset) {
    return reinterpret_cast<const float*>(device + offset) + row;
  };
  // Starts count from the step's first row, the arrays hold the group's entries only.
  const int history = historyStart_[row], bias = biasStart_[row];
  const int* entries = reinterpret_cast<const int*>(ragged);
  SamplingInputs in{};
  in.temperature = floats(offsets_.temperature);
  in.topK = ints(offsets_.topK, row);
  in.topP = floats(offsets_.topP);
  in.minP = floats(offsets_.minP);
  in.seed = reinterpret_cast<const uint32_t*>(device + offsets_.seed) + 2 * size_t(row);
  in.draw = reinterpret_cast<const uint32_t*>(device + offsets_.draw) + row;
  in.repetitionPenalty = floats(offsets_.repetitionPenalty);
  in.presencePenalty = floats(offsets_.presencePenalty);
  in.frequencyPenalty = floats(offsets_.frequencyPenalty);
  in.historyStart = ints(offsets_.historyStart, row);
  in.historyTokens = entries - history;
  in.historyCounts = entries + group.history - history;
  in.biasStart = ints(offsets_.biasStart, row);
  in.biasTokens = entries + 2 * size_t(group.history) - bias;
  in.biasValues =
      reinterpret_cast<const float*>(entries + 2 * size_t(group.history) + group.bias) - bias;
  in.logprobs = ints(offsets_.logprobs, row);
  in.targets = ints(offsets_.targets, row);
  in.saved = saved - history - bias;
  return in;
}

}  // namespace millrace::cuda
