// A step's inputs on their way to the GPU: packed into one pinned buffer, copied at once. What the
// captured part of a step reads lies at offsets that depend on the step's sizes only, so a graph of
// a bucket finds it at fixed addresses.
#pragma once
#include <vector>

#include "../batch.h"
#include "device.h"
#include "kernels.h"

namespace millrace::cuda {

// Sizes of a step as it is computed: those of the batch, or of the bucket it is padded to.
struct StepSize {
  int tokens, seqs, rows;
};

// Byte offsets in the staging buffer. Block tables and sampling come last: they grow.
struct StagingLayout {
  StagingLayout(const StepSize& size, const std::vector<AttentionShape>& shapes);

  size_t tokens, positions, slots, rowSeq, queryStart, contextLens, blockTableStart, rows;
  std::vector<size_t> plans;  // of each shape
  size_t blockTables;
};
// Most bytes that a step takes.
size_t stagingBytes(const BatchLimits& limits, const std::vector<AttentionShape>& shapes);

// Histories and biases of some consecutive rows: [history tokens, counts, bias tokens, values].
struct RaggedGroup {
  int firstRow, rows;
  size_t offset;  // bytes in the ragged buffer
  int history, bias;

  size_t bytes() const { return (size_t(history) + bias) * 8; }
};

// One of the two steps on their way: its pinned memory and what is known of it on the host. Its
// memory must not be packed again before the step it was packed for is done.
class Staging {
 public:
  // `raggedEntries`: room on the device for histories and biases of a group.
  Staging(const BatchLimits& limits, const std::vector<AttentionShape>& shapes, int rowTile,
          int raggedEntries);

  // Packs a checked batch for a step of `size`; the padding of a bucket (`graph`) stores nothing and
  // sees nothing. Throws std::invalid_argument, before the GPU is asked for anything, if one row has
  // more entries than there is room for.
  void pack(const Batch& batch, const StepSize& size, bool graph);
  // A step of padding only, to capture.
  void packPadding(const StepSize& size);

  const uint8_t* data() const { return memory_.data(); }
  size_t bytes() const { return bytes_; }
  const StagingLayout& layout() const { return layout_; }
  const std::vector<AttentionPlan>& plans() const { return plans_; }

  // Device pointers of row `row` on, for a staging buffer at `device`; ragged arrays at `ragged`.
  SamplingInputs sampling(const uint8_t* device, const RaggedGroup& group, uint8_t* ragged,
                          float* saved) const;
  const SamplingNeeds& needs() const { return needs_; }
  const std::vector<RaggedGroup>& groups() const { return groups_; }
  const uint8_t* ragged() const { return ragged_.data(); }
  // Pairs of blocks to copy, in runs of which none reads what it wrote.
  struct CopyRun {
    int first, count;
  };
  const std::vector<CopyRun>& copyRuns() const { return copyRuns_; }
  const int* copies() const { return reinterpret_cast<const int*>(copies_.data()); }

 private:
  void packSequences(const Batch& batch, const StepSize& size, bool graph);
  void packSampling(const Batch& batch);
  void packRagged(const Batch& batch);
  void packCopies(const Batch& batch);
  template <class T>
  T* at(size_t offset) {
    return reinterpret_cast<T*>(memory_.data() + offset);
  }

  BatchLimits limits_;
  std::vector<AttentionShape> shapes_;
  int rowTile_, raggedEntries_;
  PinnedMemory memory_, ragged_, copies_;
  StagingLayout layout_;
  std::vector<AttentionPlan> plans_;
  size_t bytes_ = 0;
  struct SamplingOffsets {
    size_t temperature, topK, topP, minP, seed, draw, repetitionPenalty, presencePenalty,
        frequencyPenalty, historyStart, biasStart, logprobs, targets;
  } offsets_{};
  SamplingNeeds needs_{};
  std::vector<RaggedGroup> groups_;
  std::vector<int> historyStart_, biasStart_;
  std::vector<CopyRun> copyRuns_;
};

}  // namespace millrace::cuda
