// Paged attention over a mixed batch of prefill chunks and decodes: the layout of the KV cache, the
// plan of a step, and the kernels that every instruction set provides (attention.inl).
//
// The order in a step: `AttentionPlanner::build` once for each (shape, window) of the program, then
// for each layer `writeKv` on all threads, a barrier, `attend` on all threads.
//
// Only declarations and plain data stand here: this header is compiled with several sets of
// machine flags, and an inline function would leak from one to the other at link time.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace millrace {

// Tokens in a tile: the lanes of a vector of scores.
constexpr int kTileTokens = 16;
// Head sizes the kernels take: even numbers in this range.
constexpr int kMinHeadDim = 8, kMaxHeadDim = 256;

// The cache of one layer is [block][kv head][tile of 16 tokens], a tile holding keys, then values:
//   BF16      K [headDim / 2][16 tokens][2]   V [8 token pairs][paddedDim][2]
//   F16, F32  K [headDim][16 tokens]          V [16 tokens][paddedDim]
//   I8        the same, each followed by a float for each token, the scale of its codes: symmetric,
//             largest magnitude / 127. K's codes are padded to whole lines.
// so that 16 scores come out of one register without a horizontal sum, and a pair of bf16 numbers
// is what vdpbf16ps takes. Memory that was never written may hold anything, NaN included.
struct KvLayout {
  DType dtype;
  int kvHeads, headDim;
  int blockSize;      // tokens, a multiple of 16
  int paddedDim;      // headDim rounded up to 16
  size_t valueOffset; // bytes from a tile's start to its values
  size_t keyScales, valueScales;  // and to the scales of I8
  size_t tileBytes;   // a multiple of 64, as are the two below
  size_t headBytes;   // of one kv head in one block
  size_t blockBytes;  // of one block in one layer: this sum over the layers is kvBytesPerBlock
};

// The one place that says what a block costs. Arguments are checked by the caller: blockSize a
// multiple of 16, headDim even and 8 .. 256.
KvLayout kvLayout(DType dtype, int kvHeads, int headDim, int blockSize);

// What the plan depends on. Layers equal in all of it share a plan.
struct AttentionShape {
  int heads, kvHeads, headDim;  // heads a multiple of kvHeads
  int window;                   // keys p - window + 1 .. p are seen from p; 0: all
};

// One unit of work: query rows (tokens x heads of one kv head) against a range of keys.
struct AttentionItem {
  int32_t seq, kvHead;
  int32_t tokenBegin, tokenEnd;  // tokens of the step
  int32_t keyBegin, keyEnd;      // positions; keyBegin a multiple of 16
  int32_t split;                 // index into splits, or -1: the item writes the output itself
  int32_t partial;               // first row of its partial results
};

// The items that share query rows and differ in their keys: the last to finish merges them.
struct AttentionSplit {
  int32_t firstPartial, parts;  // part i has its rows at firstPartial + i * rows
};

// A step's plan, as the kernels read it. Memory belongs to the planner.
struct AttentionPlan {
  const AttentionItem* items;
  int numItems;
  const AttentionSplit* splits;
  std::atomic<int32_t>* unfinished;  // [splits] parts to go; back at `parts` after each layer
  float* partials;                   // rows of partialStride: maximum, sum, 14 unused, the output
  size_t partialStride;
  int threads;
  uint8_t* scratch;                  // scratchBytes for each thread, 64-byte aligned
  size_t scratchBytes;
};

// Largest step the planner must be ready for.
struct AttentionLimits {
  int maxTokens, maxSeqs, maxModelLen, threads;
};

// Makes the plan of each step. All memory is allocated by the constructor (std::bad_alloc if it
// cannot be had); `build` allocates nothing.
//
// How the keys of a sequence are split depends on its own lengths and the number of threads only,
// so its result does not depend on what else is in the batch, with one exception: when the partial
// results of very many short chunks over long contexts do not fit, the last of them are not split.
class AttentionPlanner {
 public:
  AttentionPlanner(const AttentionShape& shape, const AttentionLimits& limits);
  ~AttentionPlanner();
  AttentionPlanner(const AttentionPlanner&) = delete;
  AttentionPlanner& operator=(const AttentionPlanner&) = delete;

  // Plans a step; valid until the next call. Needs only queryStart, contextLens and numSeqs.
  const AttentionPlan& build(const Step& step);
  // Allocated bytes, for the memory plan.
  size_t bytes() const;

 private:
  void addSequence(const Step& step, int seq);

  AttentionShape shape_;
  int threads_, tileTokens_;
  size_t partialRows_, usedPartialRows_ = 0;
  std::vector<AttentionItem> items_;
  std::vector<AttentionSplit> splits_;
  std::atomic<int32_t>* unfinished_ = nullptr;
  uint8_t* memory_ = nullptr;
  size_t memoryBytes_ = 0, itemCapacity_ = 0, splitCapacity_ = 0;
  AttentionPlan plan_ = {};
};

// Writes the keys and values of the step's tokens to their slots. Threads share the tokens.
struct KvWrite {
  const Step* step;  // numTokens, slots
  KvLayout kv;
  uint8_t* cache;    // of the layer, 64-byte aligned
  View k, v;         // [T, kvHeads * headDim], rope already applied to k
};

// out = softmax(q . k^T * scale) . v of one layer, causal, within the window.
struct Attention {
  const Step* step;
  const AttentionPlan* plan;
  AttentionShape shape;
  KvLayout kv;
  const uint8_t* cache;        // of the layer
  View q, out;                 // [T, heads * headDim]; may not overlap
  float scale;
  std::atomic<int32_t>* next;  // claims items: 0 before the first thread enters, one for each layer
};

// What each instruction set provides. `thread` is 0 .. threads - 1, each passed once; `attend` may
// be entered by all of them at once, one after the other, or by fewer: who enters does what is
// left.
struct AttentionKernels {
  void (*writeKv)(const KvWrite&, int thread, int threads);
  void (*attend)(const Attention&, int thread);
};

// Copies blocks (pairs source, target) in every layer; threads share the work. No block may be a
// source and a target, or a target twice, in one call.
void copyBlocks(uint8_t* const* layerCaches, const KvLayout* layouts, int numLayers,
                const int32_t* pairs, int numPairs, int thread, int threads);

}  // namespace millrace
