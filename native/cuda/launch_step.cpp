// What a step launches, and the graphs that replay most of it.
#include <algorithm>

#include "runner.h"

namespace millrace::cuda {
namespace {

// Sizes of decode steps that have a graph: close together where a step is short, so that padding
// costs little beside it.
std::vector<int> bucketsUpTo(int most) {
  std::vector<int> list;
  for (int size = 1; size < most;) {
    list.push_back(size);
    size += size < 4 ? size : size < 8 ? 4 : size < 256 ? 8 : 32;
  }
  list.push_back(most);
  return list;
}

}  // namespace

int Runner::bucketOf(const Batch& batch) const {
  if (eager_ || batch.numTokens != batch.numSeqs || batch.numRows != batch.numSeqs) return 0;
  for (int row = 0; row < batch.numRows; row++) {
    if (batch.rows[row] != row) return 0;
  }
  const auto& graphs = slots_[0]->graphs;
  const auto found = graphs.lower_bound(batch.numTokens);
  return found == graphs.end() ? 0 : found->first;
}

void Runner::captureGraphs(const std::function<void(double)>& progress) {
  const double before = 0.9;  // of loading
  const std::vector<int> buckets =
      bucketsUpTo(std::min({limits_.maxSeqs, limits_.maxTokens, limits_.rowTile}));
  for (size_t i = 0; i < buckets.size(); i++) {
    const int bucket = buckets[i];
    const StepSize size = {bucket, bucket, bucket};
    for (auto& slot : slots_) {
      slot_ = slot->index;
      slot->staging.packPadding(size);
      const auto body = [&] {
        runTokens(bucket);
        runRows(0, bucket);
      };
      // Once for both: loads code and chooses algorithms, which cannot be done while capturing.
      if (slot->index == 0) {
        copyInputs(*slot);
        body();
        stream_.wait();
      }
      check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
      body();
      cudaGraph_t graph = nullptr;
      check(cudaStreamEndCapture(stream_, &graph), "cudaStreamEndCapture");
      cudaGraphExec_t exec = nullptr;
      const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0);
      cudaGraphDestroy(graph);
      check(status, "cudaGraphInstantiate");
      slot->graphs[bucket] = exec;
      check(cudaGraphUpload(exec, stream_), "cudaGraphUpload");
    }
    progress(before + (1 - before) * (i + 1) / buckets.size());
  }
  stream_.wait();
}

// By a stream of its own: the step before is still being computed, and between two steps this and its start
// would take 8 us. Nobody reads what the slot's step before this had there, whose results were collected.
void Runner::copyInputs(Slot& slot) {
  const Staging& staging = slot.staging;
  check(cudaMemcpyAsync(at(map_.staging[slot.index]), staging.data(), staging.bytes(),
                        cudaMemcpyHostToDevice, inputs_),
        "copying a step's inputs");
  slot.copied.record(inputs_);
  slot.copied.holdUp(stream_);
}

// Likewise, while the step after is computed.
void Runner::fetchOutputs(Slot& slot, int rows) {
  slot.computed.record(stream_);
  slot.computed.holdUp(results_);
  if (rows > 0) {
    const size_t numbers = slot.staging.needs().logprobs ? kOutputsOfRow : 1;
    check(cudaMemcpyAsync(slot.outputs.data(), at(map_.outputs[slot.index]), rows * numbers * 4,
                          cudaMemcpyDeviceToHost, results_),
          "copying a step's results");
  }
  slot.done.record(results_);
}

void Runner::launch(Slot& slot, const Batch& batch, int bucket) {
  slot_ = slot.index;
  marked_ = profiling_ ? &slot : nullptr;
  slot.kinds.clear();
  mark(Profile::kBatch);
  copyInputs(slot);
  copyBlocksOfStep();
  mark(Profile::kBatch);
  const int rows = batch.numRows;
  if (limits_.keepLogits) slot.logits.resize(size_t(rows) * vocab());
  if (bucket > 0) {
    check(cudaGraphLaunch(slot.graphs.at(bucket), stream_), "cudaGraphLaunch");
  } else {
    runTokens(batch.numTokens);
  }
  for (const RaggedGroup& group : staging().groups()) {
    // A group never reaches into another tile; several may share one.
    if (group.firstRow % limits_.rowTile == 0) {
      const int tile = std::min(limits_.rowTile, rows - group.firstRow);
      if (bucket == 0) runRows(group.firstRow, tile);
      if (head_) runHead(tile);
      if (limits_.keepLogits) fetchLogits(slot, group.firstRow, tile);
    }
    sampleGroup(slot, group);
  }
  mark(Profile::kBatch);
  fetchOutputs(slot, rows);
  marked_ = nullptr;
}

void Runner::mark(int kind) {
  if (!marked_) return;
  Slot& slot = *marked_;
  const size_t count = slot.kinds.size();
  if (slot.marks.size() == count) slot.marks.emplace_back(true);
  slot.marks[count].record(stream_);
  slot.kinds.push_back(kind);
}

void Runner::copyBlocksOfStep() {
  const Staging& staging = this->staging();
  for (const auto& run : staging.copyRuns()) {
    for (int done = 0; done < run.count; done += kCopiesAtOnce) {
      const int count = std::min(kCopiesAtOnce, run.count - done);
      check(cudaMemcpyAsync(at(map_.copies), staging.copies() + 2 * size_t(run.first + done),
                            size_t(count) * 8, cudaMemcpyHostToDevice, stream_),
            "copying a step's inputs");
      copyBlocks(elem_, layers_.data(), static_cast<int>(layers_.size()),
                 reinterpret_cast<const int*>(at(map_.copies)), count, stream_);
    }
  }
}

void Runner::runTokens(int tokens) {
  runList(program_.tokenOps, program_.tokenOps.size(), tokens, nullptr);
}

void Runner::runRows(int firstRow, int rows) {
  const List& ops = program_.rowOps;
  runList(ops, ops.size() - (head_ ? 1 : 0), rows, stagedInts(staging().layout().rows) + firstRow);
}

void Runner::runHead(int rows) {
  if (takesBest(rows)) multiply(*head_, head_->best, rows);
  else linear(*head_, rows);
  mark(static_cast<int>(head_->kind));
}

void Runner::runList(const List& ops, size_t count, int rows, const int* rowTokens) {
  for (size_t i = 0; i < count;) {
    const Instruction& op = ops[i];
    const ChainTiles* tiles = chainTilesOf(op, rows);
    int done = 1;
    if (tiles) {
      hopperChain(chainCall(&op, op.chained), *tiles, rows, stream_);
      done = op.chained;
    } else if (const auto store = storeOfAttention(ops, i)) {
      attend(ops[i + 1], rows, &*store);
      done = 2;
    } else {
      execute(op, rows, rowTokens);
    }
    // Of several that one launch does the last, but of a chain its first product's.
    mark(static_cast<int>(tiles ? op.kind : ops[i + done - 1].kind));
    i += done;
  }
}

std::optional<QkvStore> Runner::storeOfAttention(const List& ops, size_t i) const {
  if (ops[i].kind != OpKind::QkvStore || i + 1 == ops.size() || elem_ == Elem::F32) return {};
  const Instruction &op = ops[i], &next = ops[i + 1];
  if (next.kind != OpKind::Attention || next.layer != op.layer || !(next.x == op.out)) return {};
  const QkvStore store = storeCall(op);
  if (!attentionStores(shapes_[next.shape], staging().plans()[next.shape], store)) return {};
  return store;
}

void Runner::execute(const Instruction& op, int rows, const int* rowTokens) {
  switch (op.kind) {
    case OpKind::Embed:
      return embed(elem_, weights_.matrix(op.weight), stagedInts(staging().layout().tokens),
                   reinterpret_cast<const int*>(at(map_.outputs[1 - slot_])), rows, matrix(op.out),
                   stream_);
    case OpKind::RmsNorm:
      if (op.toFp8) {
        return fp8RmsNorm(elem_, matrix(op.x), weights_.vector(op.weight), op.eps, rows,
                          fp8Rows(op.out.width), stream_);
      }
      return rmsNorm(elem_, matrix(op.x), nullptr, weights_.vector(op.weight), op.eps,
                     weights_.spec(op.weight).n, rows, matrix(op.out), stream_);
    case OpKind::Linear:
      return linear(op, rows);
    case OpKind::Add:
      return add(elem_, matrix(op.x), matrix(op.residual), rows, matrix(op.out), stream_);
    case OpKind::QkvStore:
      return qkvStore(elem_, storeCall(op), rows, stream_);
    case OpKind::Attention:
      return attend(op, rows, nullptr);
    case OpKind::SiluMul:
      if (op.toFp8) {
        return fp8SiluMul(elem_, matrix(op.x), op.out.width, rows, fp8Rows(op.out.width), stream_);
      }
      return siluMul(elem_, matrix(op.x), rows, matrix(op.out), stream_);
    case OpKind::Moe:
      return mixture(op, rows);
    case OpKind::Gather:
      return gatherRows(elem_, matrix(op.x), rowTokens, rows, matrix(op.out), stream_);
    case OpKind::Count:
      return;
  }
}

// Few rows multiply weights of 4 bits as they are. With more the multiplication itself takes the time,
// which the library is better at: the weight is written out in the storage type for it.
void Runner::linear(const Instruction& op, int rows) {
  if (weights_.isInt4(op.weight)) {
    const Int4Linear call = int4Call(op);
    if (int4Takes(call, rows)) return int4Linear(elem_, call, rows, stream_);
    int4Dequantize(elem_, call.weight, at(map_.int4Wide), stream_);
  }
  multiply(op, op.product, rows);
}

void Runner::multiply(const Instruction& op, int id, int rows) {
  if (weights_.isFp8(op.weight) && !op.fromFp8) {
    fp8Quantize(elem_, matrix(op.x), rows, fp8Rows(op.x.width), stream_);
  }
  gemm_.run(id, productCall(op), rows, stream_);
}

QkvStore Runner::storeCall(const Instruction& op) const {
  const StagingLayout& layout = staging().layout();
  QkvStore step{};
  step.qIn = matrix(op.x);
  step.kIn = matrix(op.key);
  step.vIn = matrix(op.value);
  step.q = matrix(op.out);
  if (op.qNorm >= 0) step.qNorm = weights_.vector(op.qNorm);
  if (op.kNorm >= 0) step.kNorm = weights_.vector(op.kNorm);
  step.eps = op.eps;
  if (op.table >= 0) step.cosSin = reinterpret_cast<const float2*>(at(map_.ropeTables[op.table]));
  step.positions = stagedInts(layout.positions);
  step.slots = stagedInts(layout.slots);
  step.heads = op.heads;
  step.kv = layers_[op.layer];
  return step;
}

void Runner::attend(const Instruction& op, int rows, const QkvStore* store) {
  const Staging& staging = this->staging();
  const StagingLayout& layout = staging.layout();
  const AttentionShape& shape = shapes_[op.shape];
  AttentionInputs in{};
  in.queryStart = stagedInts(layout.queryStart);
  in.contextLens = stagedInts(layout.contextLens);
  in.blockTables = stagedInts(layout.blockTables);
  in.blockTableStart = stagedInts(layout.blockTableStart);
  in.scratch = at(map_.attentionScratch);
  in.store = store;
  if (elem_ == Elem::F32) {
    attentionPlain(shape, in, stagedInts(layout.rowSeq), stagedInts(layout.positions), rows,
                   layers_[op.layer], matrix(op.x), matrix(op.out), stream_);
    return;
  }
  in.plan = staged(layout.plans[op.shape]);
  attention(shape, staging.plans()[op.shape], in, layers_[op.layer], matrix(op.x), matrix(op.out),
            stream_);
}

void Runner::mixture(const Instruction& op, int rows) {
  const WeightSpec& gateUp = weights_.spec(op.weight);
  moe(elem_,
      {matrix(op.x), matrix(op.router), weights_.matrix(op.weight), weights_.matrix(op.down),
       gateUp.experts, gateUp.n / 2, op.topK, op.normalize, matrix(op.out), at(map_.moeScratch)},
      rows, stream_);
}

// One array after the other, each of the step's rows, so that a step without logprobs fetches the
// tokens alone; those stay where the next step looks for them.
SamplingOutputs Runner::outputsOf(int row, int rows) const {
  int* tokens = reinterpret_cast<int*>(at(map_.outputs[slot_]));
  const size_t count = rows;
  float* logprobs = reinterpret_cast<float*>(tokens + count);
  int* ranks = tokens + 2 * count;
  int* topTokens = tokens + 3 * count;
  float* topLogprobs = reinterpret_cast<float*>(topTokens + count * kMaxLogprobs);
  const size_t top = size_t(row) * kMaxLogprobs;
  return {tokens + row, logprobs + row, ranks + row, topTokens + top, topLogprobs + top};
}

void Runner::sampleGroup(Slot& slot, const RaggedGroup& group) {
  const Staging& staging = slot.staging;
  if (group.bytes() > 0) {
    check(cudaMemcpyAsync(at(map_.ragged), staging.ragged() + group.offset, group.bytes(),
                          cudaMemcpyHostToDevice, stream_),
          "copying a step's inputs");
  }
  const Matrix logits = matrix(program_.logits);
  const int inTile = group.firstRow % limits_.rowTile;
  const RaggedGroup& last = staging.groups().back();
  const int allRows = last.firstRow + last.rows;
  const SamplingInputs in = staging.sampling(at(map_.staging[slot_]), group, at(map_.ragged),
                                             reinterpret_cast<float*>(at(map_.saved)));
  const SamplingOutputs out = outputsOf(group.firstRow, allRows);
  // Without penalties and biases a tile is one group.
  if (takesBest(group.rows)) {
    takeBest(static_cast<BestKey*>(logits.data), vocab(), group.rows, in, out, stream_);
  } else {
    sample(static_cast<float*>(logits.data) + inTile * logits.stride, logits.stride, vocab(), group.rows, in,
           staging.needs(), out, at(map_.samplingScratch), stream_);
  }
  mark(Profile::kSample);
}

void Runner::fetchLogits(Slot& slot, int firstRow, int rows) {
  const Matrix logits = matrix(program_.logits);
  const size_t width = size_t(vocab()) * 4;
  check(cudaMemcpy2DAsync(slot.logits.data() + size_t(firstRow) * vocab(), width, logits.data,
                          logits.stride * 4, width, rows, cudaMemcpyDeviceToHost, stream_),
        "copying logits");
}

}  // namespace millrace::cuda
