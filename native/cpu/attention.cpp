// The part of attention that is the same on every instruction set: the cache layout, the plan of a
// step, the copying of blocks.
#include "attention.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace millrace {
namespace {

// Query rows of one item: enough to use each key and value loaded from the cache many times, few
// enough that their outputs (paddedDim floats each) stay in the L2 cache.
constexpr int kTileRows = 64;
// A range of keys is not made shorter than this for the sake of balance: merging costs a few
// thousand cycles, that many keys cost several times as much.
constexpr int kMinSplitKeys = 256;
// Items each thread should find, so that the last to finish is not far behind.
constexpr int kItemsPerThread = 4;

int divideUp(int n, int d) { return (n + d - 1) / d; }
size_t align64(size_t n) { return (n + 63) / 64 * 64; }

// Parts that a sequence's keys are cut into when it has `units` of (row tile, kv head) to offer.
int wantedParts(int threads, int units) { return divideUp(kItemsPerThread * threads, units); }

}  // namespace

KvLayout kvLayout(DType dtype, int kvHeads, int headDim, int blockSize) {
  KvLayout kv;
  kv.dtype = dtype;
  kv.kvHeads = kvHeads;
  kv.headDim = headDim;
  kv.blockSize = blockSize;
  kv.paddedDim = divideUp(headDim, 16) * 16;
  const size_t element = dtype == DType::F32 ? 4 : dtype == DType::I8 ? 1 : 2;
  const size_t scales = dtype == DType::I8 ? kTileTokens * sizeof(float) : 0;
  kv.keyScales = align64(element * kTileTokens * headDim);
  kv.valueOffset = kv.keyScales + scales;
  kv.valueScales = kv.valueOffset + element * kTileTokens * kv.paddedDim;
  kv.tileBytes = kv.valueScales + scales;
  kv.headBytes = kv.tileBytes * (blockSize / kTileTokens);
  kv.blockBytes = kv.headBytes * kvHeads;
  return kv;
}

AttentionPlanner::AttentionPlanner(const AttentionShape& shape, const AttentionLimits& limits)
    : shape_(shape), threads_(limits.threads) {
  const int group = shape.heads / shape.kvHeads;
  tileTokens_ = std::max(1, kTileRows / group);
  const int tileRows = tileTokens_ * group;
  const size_t paddedDim = divideUp(shape.headDim, 16) * 16;

  // Every decode may be split as far as its longest context allows; beyond that there is room for
  // a few chunks of prefill, of which a sequence needs at most 2 * kItemsPerThread * threads tiles.
  const int longest = divideUp(limits.maxModelLen, kMinSplitKeys);
  const int parts = std::min(wantedParts(threads_, shape.kvHeads), longest);
  partialRows_ = 0;
  if (parts > 1) partialRows_ += size_t(limits.maxSeqs) * parts * shape.heads;
  if (longest > 1) partialRows_ += size_t(4) * 2 * kItemsPerThread * threads_ * tileRows;

  const size_t tiles = limits.maxTokens / tileTokens_ + limits.maxSeqs;
  itemCapacity_ = tiles * shape.kvHeads + size_t(limits.maxSeqs) * 2 * kItemsPerThread * threads_;
  splitCapacity_ = size_t(limits.maxSeqs) * kItemsPerThread * threads_;
  items_.reserve(itemCapacity_);
  splits_.reserve(splitCapacity_);

  plan_.threads = threads_;
  plan_.partialStride = 16 + paddedDim;
  // Of each thread: query, output, maximum and sum of every row; scores and probabilities of a few.
  plan_.scratchBytes = align64(size_t(tileRows) * (paddedDim * 2 + 2) * sizeof(float)) + (16 << 10);

  const size_t partialBytes = partialRows_ * plan_.partialStride * sizeof(float);
  const size_t counterBytes = align64(splitCapacity_ * sizeof(std::atomic<int32_t>));
  memoryBytes_ = partialBytes + counterBytes + plan_.scratchBytes * threads_;
  memory_ = static_cast<uint8_t*>(::operator new(memoryBytes_, std::align_val_t(64)));
  plan_.partials = reinterpret_cast<float*>(memory_);
  unfinished_ = new (memory_ + partialBytes) std::atomic<int32_t>[splitCapacity_];
  plan_.unfinished = unfinished_;
  plan_.scratch = memory_ + partialBytes + counterBytes;
}

AttentionPlanner::~AttentionPlanner() { ::operator delete(memory_, std::align_val_t(64)); }

size_t AttentionPlanner::bytes() const {
  return memoryBytes_ + itemCapacity_ * sizeof(AttentionItem) +
         splitCapacity_ * sizeof(AttentionSplit);
}

void AttentionPlanner::addSequence(const Step& step, int seq) {
  const int first = step.queryStart[seq], end = step.queryStart[seq + 1], tokens = end - first;
  if (tokens == 0) return;
  const int past = step.contextLens[seq] - tokens;  // position of the first token
  const int group = shape_.heads / shape_.kvHeads;
  const int tiles = divideUp(tokens, tileTokens_);
  const int parts = wantedParts(threads_, tiles * shape_.kvHeads);
  // Tiles of equal size: the last would else be a small one.
  const int tileTokens = divideUp(tokens, tiles);

  for (int t = first; t < end; t += tileTokens) {
    const int tEnd = std::min(t + tileTokens, end);
    const int keyEnd = past + (tEnd - first);
    const int seen = shape_.window > 0 ? std::max(0, past + (t - first) - shape_.window + 1) : 0;
    const int keyBegin = seen / kTileTokens * kTileTokens;
    const int keys = keyEnd - keyBegin;
    const int ideal = divideUp(divideUp(keys, parts), kTileTokens) * kTileTokens;
    const int length = std::max(kMinSplitKeys, ideal);
    const int rows = (tEnd - t) * group;
    int pieces = divideUp(keys, length);
    const size_t needed = size_t(pieces) * rows * shape_.kvHeads;
    if (pieces > 1 && (usedPartialRows_ + needed > partialRows_ ||
                       splits_.size() + shape_.kvHeads > splitCapacity_)) {
      pieces = 1;
    }
    for (int head = 0; head < shape_.kvHeads; head++) {
      if (pieces == 1) {
        items_.push_back({seq, head, t, tEnd, keyBegin, keyEnd, -1, 0});
        continue;
      }
      const int split = int(splits_.size());
      splits_.push_back({int32_t(usedPartialRows_), pieces});
      for (int i = 0; i < pieces; i++) {
        const int from = keyBegin + i * length, to = std::min(from + length, keyEnd);
        items_.push_back({seq, head, t, tEnd, from, to, split, int32_t(usedPartialRows_)});
        usedPartialRows_ += rows;
      }
    }
  }
}

const AttentionPlan& AttentionPlanner::build(const Step& step) {
  items_.clear();
  splits_.clear();
  usedPartialRows_ = 0;
  for (int seq = 0; seq < step.numSeqs; seq++) addSequence(step, seq);

  // Longest first, so that threads which claim one after another finish at about the same time.
  const auto cost = [](const AttentionItem& item) {
    return int64_t(item.tokenEnd - item.tokenBegin) * (item.keyEnd - item.keyBegin);
  };
  const auto costlier = [&](const AttentionItem& a, const AttentionItem& b) {
    const int64_t ca = cost(a), cb = cost(b);
    if (ca != cb) return ca > cb;
    if (a.tokenBegin != b.tokenBegin) return a.tokenBegin < b.tokenBegin;
    if (a.kvHead != b.kvHead) return a.kvHead < b.kvHead;
    return a.keyBegin < b.keyBegin;
  };
  // std::sort works in place; std::stable_sort would allocate.
  std::sort(items_.begin(), items_.end(), costlier);

  for (size_t i = 0; i < splits_.size(); i++) unfinished_[i].store(splits_[i].parts);
  plan_.items = items_.data();
  plan_.numItems = int(items_.size());
  plan_.splits = splits_.data();
  return plan_;
}

void copyBlocks(uint8_t* const* layerCaches, const KvLayout* layouts, int numLayers,
                const int32_t* pairs, int numPairs, int thread, int threads) {
  for (int i = thread; i < numLayers * numPairs; i += threads) {
    const int layer = i / numPairs, pair = i % numPairs;
    const size_t bytes = layouts[layer].blockBytes;
    memcpy(layerCaches[layer] + bytes * pairs[2 * pair + 1],
           layerCaches[layer] + bytes * pairs[2 * pair], bytes);
  }
}

}  // namespace millrace
