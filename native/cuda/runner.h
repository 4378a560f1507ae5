// The step interpreter on a GPU: launches a lowered program over one batch and samples from its
// logits, all on one stream. Two steps may be on their way: while one runs, the next is packed.
#pragma once
#include <array>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "chains.h"
#include "gemm.h"
#include "memory_map.h"

namespace millrace::cuda {

// Where a step's results go: StepResult of src/backend/backend.ts.
struct StepOutput {
  int32_t* tokens;
  float* logprobs;
  int32_t* ranks;
  int32_t* topTokens;
  float* topLogprobs;
  float* logits;  // [R, vocab] or null
};

// Time spent since the runner was made, by kind of operation; then sampling, and inputs and results.
struct Profile {
  static constexpr int kSample = static_cast<int>(OpKind::Count), kBatch = kSample + 1;
  static constexpr int kEntries = kBatch + 1;
  std::array<double, kEntries> seconds{};
  std::array<double, kEntries> calls{};
};

class Runner {
 public:
  // Allocates everything, loads the weights, tunes products, captures graphs. Throws
  // std::invalid_argument, std::runtime_error (files, libraries), CudaError, std::bad_alloc.
  Runner(const RunnerConfig& config, const std::function<void(double)>& progress);
  ~Runner();

  // Launches a step. Throws std::invalid_argument on a malformed batch, or if two steps are already
  // on their way, before any work. After a CudaError every later call throws.
  void submit(const Batch& batch);
  // Waits for the oldest step on its way and writes its results.
  void collect(const StepOutput& output);
  // Rows of that step; -1 if there is none.
  int pendingRows() const;

  int vocab() const { return program_.logits.width; }
  bool keepsLogits() const { return limits_.keepLogits; }
  const MemoryMap& memory() const { return map_; }
  const Profile& profile() const { return profile_; }
  // Sizes of steps that are replayed.
  int graphs() const { return static_cast<int>(slots_[0]->graphs.size()); }
  // What libraries and graphs took of the GPU's memory besides what was asked for.
  size_t overheadBytes() const { return overhead_; }
  // What all products of a step of so many rows take, 0 if some are not tuned for that many; of those in
  // chains with what lies between them. And what tuning took.
  struct ProductTimes {
    double seconds = 0;
    int chains = 0;
  };
  ProductTimes productTimes(int rows) const;
  double tuningSeconds() const { return gemm_.tuningSeconds() + chains_.tuningSeconds(); }
  const std::string& library() const { return gemm_.description(); }

 private:
  using List = std::vector<Instruction>;
  // A step on its way: its inputs and results in pinned memory, and where they are on the device. Steps take
  // turns with two of them, so the other one's results are those of the step before.
  struct Slot {
    Slot(const Runner& runner, int index);
    ~Slot();
    const int index;
    Staging staging;
    PinnedMemory outputs;
    std::vector<float> logits;
    Event copied, computed, done;
    std::map<int, cudaGraphExec_t> graphs;  // by bucket
    int rows = 0;
    // With profiling: the time after each operation, and which it was.
    std::vector<Event> marks;
    std::vector<int> kinds;
  };

  void makeLayers();
  void makeProducts(const std::function<void(double)>& progress);
  void makeChains();
  void warmUp();
  void captureGraphs(const std::function<void(double)>& progress);

  // The bucket a step of decodes is padded to; 0 if it is none or there are no graphs.
  int bucketOf(const Batch& batch) const;
  void copyInputs(Slot& slot);
  void fetchOutputs(Slot& slot, int rows);
  void launch(Slot& slot, const Batch& batch, int bucket);
  void copyBlocksOfStep();
  // Everything of a step from its tokens to the wanted rows, and of these to their logits.
  void runTokens(int tokens);
  void runRows(int firstRow, int rows);
  void runHead(int rows);
  void runList(const List& ops, size_t count, int rows, const int* rowTokens);
  void execute(const Instruction& op, int rows, const int* rowTokens);
  void linear(const Instruction& op, int rows);
  void multiply(const Instruction& op, int id, int rows);
  QkvStore storeCall(const Instruction& op) const;
  // Of the instruction `i`, where it is one that the attention after it does, too.
  std::optional<QkvStore> storeOfAttention(const List& ops, size_t i) const;
  // store: what attention is to store first; null if that is done.
  void attend(const Instruction& op, int rows, const QkvStore* store);
  void mixture(const Instruction& op, int rows);
  const Instruction* findHead() const;
  // Whether it leaves the best only, of this many rows of the step.
  bool takesBest(int rows) const;
  void sampleGroup(Slot& slot, const RaggedGroup& group);
  void fetchLogits(Slot& slot, int firstRow, int rows);
  void requireAlive() const;
  template <class Body>
  void guarded(Body&& body);
  void mark(int kind);

  // Of the step that is launched.
  const Staging& staging() const { return slots_[slot_]->staging; }
  const uint8_t* staged(size_t offset) const { return at(map_.staging[slot_]) + offset; }
  const int* stagedInts(size_t offset) const {
    return reinterpret_cast<const int*>(staged(offset));
  }
  uint8_t* at(size_t offset) const { return workspace_.data() + offset; }
  Matrix matrix(const Operand& operand) const;
  ProductCall productCall(const Instruction& op) const;
  // Of a run of so many instructions.
  Chain chainCall(const Instruction* run, int length) const;
  // How to do the chain that begins here with so many rows; null if it is launched op by op, or none does.
  const ChainTiles* chainTilesOf(const Instruction& op, int rows) const {
    return op.chain < 0 ? nullptr : chains_.tiles(op.chain, rows);
  }
  Int4Linear int4Call(const Instruction& op) const;
  Fp8Rows fp8Rows(int width) const;
  SamplingOutputs outputsOf(int row, int rows) const;

  int device_;
  Elem elem_;
  Limits limits_;
  bool eager_, profiling_;
  std::vector<AttentionShape> shapes_;
  Program program_;
  // The product that makes logits, where it may leave the best of them instead; null where it never does. What it
  // does depends on the step's requests, so it is in no graph.
  const Instruction* head_ = nullptr;
  MemoryMap map_;
  size_t freeBefore_, overhead_ = 0;
  bool overlap_;  // kernels may be set up while those before them end
  Stream stream_, inputs_, results_;
  DeviceMemory weightMemory_, workspace_, kvCache_;
  Gemm gemm_;
  std::optional<ChainRight> chainRight_;
  Chains chains_;
  WeightStore weights_;
  std::vector<KvLayer> layers_;
  std::unique_ptr<Slot> slots_[2];
  int slot_ = 0;  // whose step is launched
  int64_t submitted_ = 0, collected_ = 0;
  int previousRows_ = 0;
  Slot* marked_ = nullptr;                 // whose operations are timed
  Profile profile_;
  std::string failure_;
};

}  // namespace millrace::cuda
