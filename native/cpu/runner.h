// The step interpreter: runs a lowered program over one batch and samples from its logits.
#pragma once
#include <array>
#include <functional>
#include <memory>
#include <vector>

#include "../batch.h"
#include "isa.h"
#include "memory.h"
#include "moe.h"
#include "program.h"
#include "thread_pool.h"
#include "weights.h"

namespace millrace {

struct RunnerConfig {
  const Kernels* kernels;
  int threads;
  DType dtype;  // of matrices
  DType kvDtype;
  Limits limits;
  Program program;  // without instructions: they are decoded once the weights are known
  std::vector<double> tokenCode, rowCode;
  std::vector<WeightSpec> weights;
};

// Where a step's results go: StepResult of src/backend/backend.ts.
struct StepOutput {
  SampleResult sampled;
  float* logits;  // [R, vocab] or null
};

// Time spent since the runner was made, by kind of operation; then sampling and everything else.
struct Profile {
  static constexpr int kSample = static_cast<int>(OpKind::Count), kBatch = kSample + 1;
  static constexpr int kEntries = kBatch + 1;
  std::array<double, kEntries> seconds{};
  std::array<double, kEntries> calls{};
};

class Runner {
 public:
  // Loads the weights and allocates everything. Throws std::invalid_argument, std::runtime_error
  // (files), std::bad_alloc.
  Runner(const RunnerConfig& config, const std::function<void(double)>& progress);

  // Runs one step. Throws std::invalid_argument on a malformed batch before any work.
  void step(const Batch& batch, const StepOutput& output);

  int vocab() const { return program_.logits.width; }
  int maxTokens() const { return limits_.maxTokens; }
  bool keepsLogits() const { return limits_.keepLogits; }
  size_t weightBytes() const { return weights_.bytes(); }
  size_t workspaceBytes() const;
  size_t kvCacheBytes() const { return kvCache_.bytes(); }
  const Profile& profile() const { return profile_; }

 private:
  void linkProducts();
  void makeRopeTables();
  void makeCaches();
  void makePlanners();
  void makeMixtures();
  void makeQuantizedRows();

  using List = std::vector<Instruction>;
  // `rows` rows of `list`; row i is token rowTokens[i], or token i if that is null.
  void run(const List& list, int rows, const int32_t* rowTokens);
  void execute(const Instruction& op, int rows, const int32_t* rowTokens);
  void linear(const Instruction& op, int rows);
  void mixture(const Instruction& op, int rows);
  // The ropes at `first` up to the attention at `attention`, which read no more than their own
  // token's row, together with writing the cache; then attention itself.
  void attention(const Instruction* first, const Instruction& attention);
  void sample(const Batch& batch, int firstRow, int rows, const StepOutput& output);

  // Calls fn(row, thread) for each row, on all threads if the work is worth it.
  template <class Fn>
  void eachRow(int rows, int width, Fn&& fn);

  float* floats(const Operand& operand, int row = 0) const;
  uint16_t* halves(const Operand& operand, int row = 0) const;
  // What a product reads. Where the weight has integers, the operand's rows are quantized first.
  Rows input(const Operand& operand, const PackedMatrix& weight, int rows);
  size_t stride(const Operand& operand) const { return program_.buffers[operand.buffer].stride; }
  void rope(const Instruction& op, int row, int position) const;

  const Kernels& kernels_;
  Limits limits_;
  DType kvDtype_;
  bool bf16Inputs_;
  ThreadPool pool_;
  Program program_;
  WeightStore weights_;
  Memory workspace_, kvCache_, ropeMemory_, sampleScratch_, quantized_;
  size_t sampleScratchBytes_ = 0;
  std::vector<const float*> cosSin_;  // of each rope table: [maxModelLen, headDim]
  std::vector<KvLayout> layouts_;
  std::vector<uint8_t*> caches_;
  struct Planner {
    AttentionShape shape;
    std::unique_ptr<AttentionPlanner> planner;
    const AttentionPlan* plan;
  };
  std::vector<Planner> planners_;
  std::vector<int> plannerOf_;  // of each instruction on tokens; -1 for other kinds
  std::unique_ptr<MoeRunner> moe_;
  Step step_{};
  Profile profile_;
};

}  // namespace millrace
