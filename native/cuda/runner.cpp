#include "runner.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "hopper.h"
#include "hopper_gemm.h"
#include "launch.h"

namespace millrace::cuda {
namespace {

// Shares of loading that are done when the weights are there, and when products are tuned.
constexpr double kLoaded = 0.8, kTuned = 0.9;

// Bytes that all of these are a multiple of, at most 16.
int commonAlignment(std::initializer_list<size_t> offsets) {
  size_t bits = 16;
  for (size_t offset : offsets) bits |= offset;
  return static_cast<int>(bits & (~bits + 1));
}

}  // namespace

Runner::Slot::Slot(const Runner& runner, int index)
    : index(index),
      staging(runner.limits_,
              runner.elem_ == Elem::F32 ? std::vector<AttentionShape>{} : runner.shapes_,
              runner.limits_.rowTile, runner.map_.raggedEntries),
      outputs(size_t(runner.limits_.maxTokens) * kOutputsOfRow * 4) {}

Runner::Slot::~Slot() {
  for (auto& [bucket, graph] : graphs) cudaGraphExecDestroy(graph);
}

Runner::Runner(const RunnerConfig& config, const std::function<void(double)>& progress)
    : device_(config.device),
      elem_(config.elem),
      limits_(config.limits),
      eager_(config.eager || config.profiling),
      profiling_(config.profiling),
      program_(decodeProgram(config, shapes_)),
      map_((useDevice(config.device), mapMemory(config, program_, shapes_))),
      freeBefore_(freeMemory(config.device)),
      overlap_(config.overlap && launchesCanOverlap()),
      weightMemory_(map_.weights),
      workspace_(map_.workspace),
      kvCache_(map_.kvCache),
      gemm_(config.libraries, at(map_.products)),
      weights_(config.weights, config.elem, weightMemory_.data(), at(map_.products), stream_,
               [&](double share) { progress(share * kLoaded); }) {
  overlapLaunches = overlap_;
  for (int i : {0, 1}) slots_[i] = std::make_unique<Slot>(*this, i);
  makeLayers();
  head_ = findHead();
  const auto clear = [&](const DeviceMemory& memory, size_t offset, size_t bytes) {
    if (bytes > 0) check(cudaMemsetAsync(memory.data() + offset, 0, bytes, stream_), "cudaMemset");
  };
  clear(workspace_, map_.chainScratch, map_.chainNormed - map_.chainScratch);
  makeProducts(progress);
  makeChains();
  clear(kvCache_, 0, map_.kvCache);
  clear(workspace_, map_.activations, program_.activationBytes);
  clear(workspace_, map_.attentionScratch, map_.moeScratch - map_.attentionScratch);
  clear(workspace_, map_.outputs[0], map_.products - map_.outputs[0]);
  clear(workspace_, map_.int4Counters, map_.int4End - map_.int4Counters);
  for (size_t i = 0; i < program_.ropeTables.size(); i++) {
    const RopeTable& table = program_.ropeTables[i];
    ropeTable(reinterpret_cast<float2*>(at(map_.ropeTables[i])), table.invFreq.data(),
              static_cast<int>(table.invFreq.size()), table.scale, limits_.maxModelLen, stream_);
  }
  stream_.wait();
  warmUp();
  if (!eager_) captureGraphs(progress);
  profile_ = {};
  const size_t taken = freeBefore_ - std::min(freeBefore_, freeMemory(device_));
  const size_t asked = map_.weights + map_.workspace + map_.kvCache;
  overhead_ = taken > asked ? taken - asked : 0;
  progress(1);
}

Runner::~Runner() {
  cudaSetDevice(device_);
  for (const Stream* each : {&inputs_, &stream_, &results_}) cudaStreamSynchronize(*each);
}

void Runner::makeLayers() {
  uint8_t* next = kvCache_.data();
  for (const KvShape& shape : program_.kvLayers) {
    const size_t bytes = kvHalfBytes(shape, elem_, limits_);
    layers_.push_back({next, next + bytes, shape.kvHeads, shape.headDim,
                       headStrideOf(shape.headDim), limits_.blockSize, shape.fp8});
    next += 2 * bytes;
  }
}

void Runner::makeProducts(const std::function<void(double)>& progress) {
  struct Use {
    std::vector<ProductCall> calls;
    Matrix fp8;  // what becomes x of fp8
    int maxRows = 0;
  };
  std::map<int, Use> uses;
  for (List* list : {&program_.tokenOps, &program_.rowOps}) {
    for (Instruction& op : *list) {
      if (op.kind != OpKind::Linear) continue;
      const WeightSpec& weight = weights_.spec(op.weight);
      const bool floatOut = program_.buffers[op.out.buffer].floats;
      const auto bytes = [&](const Operand& operand, bool floats) {
        return size_t(operand.column) * (floats ? 4 : bytesOf(elem_));
      };
      const auto stride = [&](const Operand& operand) {
        return operand ? program_.buffers[operand.buffer].stride : 0;
      };
      Product product = {weight.n, weight.k, elem_, weight.fp8,
                         floatOut && elem_ != Elem::F32, static_cast<bool>(op.residual),
                         op.bias >= 0, weight.fp8 ? fp8Rows(weight.k).stride : stride(op.x),
                         stride(op.residual), stride(op.out),
                         commonAlignment({weight.fp8 ? 0 : bytes(op.x, false),
                                          bytes(op.residual, false), bytes(op.out, floatOut)}),
                         weights_.isInt4(op.weight)};
      op.product = gemm_.add(product);
      const int rows = list == &program_.tokenOps ? limits_.maxTokens : limits_.rowTile;
      if (&op == head_) {
        product.best = true;
        op.best = gemm_.add(product);
        uses[op.best] = {{productCall(op)}, weight.fp8 ? matrix(op.x) : Matrix{}, std::min(rows, kHopperMaxRows)};
      }
      Use& use = uses[op.product];
      // Where tokens are multiplied, too, a tile of wanted rows has no room for that many.
      if (rows < use.maxRows) continue;
      use.maxRows = rows;
      use.calls.push_back(productCall(op));
      if (weight.fp8) use.fp8 = matrix(op.x);
    }
  }
  // Float32 is for comparisons, where the library's first choice will do.
  if (elem_ == Elem::F32) return;
  // Zeros would take less power than numbers do, and so less time.
  fillDummy(elem_, at(map_.activations), 0, program_.activationBytes / bytesOf(elem_), 1, 0, 0.25f,
            stream_);
  const size_t wide = (map_.int4Scratch - map_.int4Wide) / bytesOf(elem_);
  if (wide > 0) fillDummy(elem_, at(map_.int4Wide), 0, wide, 2, 0, 0.25f, stream_);
  size_t done = 0;
  for (auto& [product, use] : uses) {
    if (use.fp8.data) fp8Quantize(elem_, use.fp8, use.maxRows, fp8Rows(use.fp8.width), stream_);
    gemm_.tune(product, use.calls, use.maxRows, stream_);
    progress(kLoaded + (kTuned - kLoaded) * ++done / uses.size());
  }
}

Runner::ProductTimes Runner::productTimes(int rows) const {
  ProductTimes sum;
  for (const List* list : {&program_.tokenOps, &program_.rowOps}) {
    for (size_t i = 0; i < list->size(); i++) {
      const Instruction& op = (*list)[i];
      if (chainTilesOf(op, rows)) {
        sum.seconds += chains_.seconds(op.chain, rows);
        sum.chains++;
        i += op.chained - 1;
      } else if (op.kind == OpKind::Linear) {
        const double each = gemm_.seconds(op.product, rows);
        if (each == 0) return {};
        sum.seconds += each;
      }
    }
  }
  return sum;
}

const Instruction* Runner::findHead() const {
  if (!hopperAvailable() || elem_ == Elem::F32 || limits_.keepLogits || program_.rowOps.empty()) return nullptr;
  const Instruction& last = program_.rowOps.back();
  const bool floats = last.kind == OpKind::Linear && !weights_.isInt4(last.weight);
  return floats && last.out == program_.logits ? &last : nullptr;
}

bool Runner::takesBest(int rows) const {
  if (!head_ || !staging().needs().onlyBest()) return false;
  const double best = gemm_.seconds(head_->best, rows);
  // The logits are read once more, about as fast as memory is, by a launch of its own.
  const double scan = 2e-6 + size_t(rows) * vocab() * 4 / 4e12;
  return best > 0 && best < gemm_.seconds(head_->product, rows) + scan;
}

// One prompt through everything that a step may launch: the driver loads code when it is first
// used, which takes time and memory that no later step may need.
void Runner::warmUp() {
  const int64_t room = int64_t(limits_.numBlocks) * limits_.blockSize;
  const int count = static_cast<int>(
      std::min<int64_t>({limits_.maxTokens, limits_.maxModelLen, room}));
  std::vector<int32_t> tokens(count, 0), positions(count), blocks;
  for (int i = 0; i < count; i++) positions[i] = i;
  for (int i = 0; i * limits_.blockSize < count; i++) blocks.push_back(i);
  const int32_t starts[2] = {0, count}, tables[2] = {0, int32_t(blocks.size())};
  const int32_t row[1] = {count - 1}, one[2] = {0, 1}, zero[1] = {0}, target[1] = {-1};
  const int32_t logprobs[1] = {1}, topK[1] = {2};
  const float temperature[1] = {1}, share[1] = {0.5f}, penalty[1] = {1.5f};
  const uint32_t seed[2] = {1, 2};
  Batch b{};
  b.numTokens = count;
  b.numSeqs = b.numRows = 1;
  const size_t size = count;
  b.tokens = {tokens.data(), size};
  b.positions = b.slots = {positions.data(), size};  // blocks 0, 1, ... in order
  b.queryStart = {starts, 2};
  b.contextLens = {starts + 1, 1};
  b.blockTables = {blocks.data(), blocks.size()};
  b.blockTableStart = {tables, 2};
  b.rows = {row, 1};
  b.temperature = {temperature, 1};
  b.topK = {topK, 1};
  b.topP = b.minP = {share, 1};
  b.seed = {seed, 2};
  b.draw = {seed, 1};
  b.repetitionPenalty = b.presencePenalty = b.frequencyPenalty = {penalty, 1};
  b.historyStart = b.biasStart = {one, 2};
  b.historyTokens = b.historyCounts = b.biasTokens = {zero, 1};
  b.biasValues = {penalty, 1};
  b.logprobs = {logprobs, 1};
  b.targets = {target, 1};
  std::vector<float> logits(limits_.keepLogits ? vocab() : 0);
  int32_t token, rank, topTokens[kMaxLogprobs];
  float logprob, topLogprobs[kMaxLogprobs];
  const auto step = [&] {
    submit(b);
    collect({&token, &logprob, &rank, topTokens, topLogprobs, logits.empty() ? nullptr : logits.data()});
  };
  const bool eager = std::exchange(eager_, true);
  step();
  // And one token, in a step that is not replayed.
  b.numTokens = 1;
  const int32_t single[2] = {0, 1};
  b.queryStart = {single, 2};
  b.contextLens = {single + 1, 1};
  b.rows = {single, 1};
  step();
  // The best alone.
  const float greedy[1] = {0}, none[1] = {1}, never[1] = {0};
  const int32_t nothing[2] = {0, 0}, off[1] = {-1};
  b.temperature = b.presencePenalty = b.frequencyPenalty = {greedy, 1};
  b.repetitionPenalty = {none, 1};
  b.historyStart = b.biasStart = {nothing, 2};
  b.historyTokens = b.historyCounts = b.biasTokens = {off, 0};
  b.biasValues = {never, 0};
  b.logprobs = {off, 1};
  step();
  eager_ = eager;
  previousRows_ = 0;
}

Matrix Runner::matrix(const Operand& operand) const {
  const BufferSpec& buffer = program_.buffers[operand.buffer];
  const size_t size = buffer.floats ? 4 : bytesOf(elem_);
  uint8_t* data = at(map_.activations) + buffer.offset + operand.column * size;
  return {data, buffer.stride, operand.width};
}

ProductCall Runner::productCall(const Instruction& op) const {
  ProductCall call{};
  call.weight = weights_.isInt4(op.weight) ? at(map_.int4Wide) : weights_.matrix(op.weight);
  call.x = matrix(op.x).data;
  if (weights_.isFp8(op.weight)) {
    const Fp8Rows rows = fp8Rows(op.x.width);
    call.x = rows.codes;
    call.xScales = rows.scales;
    call.weightScales = weights_.fp8Scales(op.weight);
  }
  if (op.residual) call.residual = matrix(op.residual).data;
  if (op.bias >= 0) {
    call.bias = weights_.bias(op.bias);
    call.biasFloats = weights_.vector(op.bias);
  }
  call.out = matrix(op.out).data;
  return call;
}

// There is one place for them: planFp8 sees to it that nothing comes between writing and reading.
Fp8Rows Runner::fp8Rows(int width) const {
  return {at(map_.fp8Codes), width, reinterpret_cast<float*>(at(map_.fp8Scales))};
}

Int4Linear Runner::int4Call(const Instruction& op) const {
  Int4Linear call{};
  call.weight = weights_.int4(op.weight);
  call.x = matrix(op.x);
  call.out = matrix(op.out);
  call.floatOut = program_.buffers[op.out.buffer].floats;
  if (op.residual) {
    const Matrix residual = matrix(op.residual);
    call.residual = residual.data;
    call.residualStride = residual.stride;
  }
  if (op.bias >= 0) call.bias = weights_.vector(op.bias);
  call.scratch = at(map_.int4Scratch);
  call.counters = reinterpret_cast<int*>(at(map_.int4Counters));
  return call;
}

void Runner::requireAlive() const {
  if (failure_.empty()) return;
  throw CudaError("the runner stopped after an error of the GPU: " + failure_);
}

// What fails half-way leaves a cache that cannot be trusted, and most errors of a GPU stay.
template <class Body>
void Runner::guarded(Body&& body) {
  try {
    body();
  } catch (const std::exception& error) {
    failure_ = error.what();
    throw;
  }
}

void Runner::submit(const Batch& batch) {
  requireAlive();
  if (submitted_ - collected_ >= 2) {
    throw std::invalid_argument("two steps are on their way; collect one before another is submitted");
  }
  checkBatch(batch, limits_, vocab(), previousRows_);
  check(cudaSetDevice(device_), "cudaSetDevice");
  overlapLaunches = overlap_;
  Slot& slot = *slots_[submitted_ % 2];
  const int bucket = bucketOf(batch);
  const StepSize size = bucket > 0 ? StepSize{bucket, bucket, bucket}
                                   : StepSize{batch.numTokens, batch.numSeqs, batch.numRows};
  slot.staging.pack(batch, size, bucket > 0);
  guarded([&] { launch(slot, batch, bucket); });
  slot.rows = previousRows_ = batch.numRows;
  submitted_++;
}

int Runner::pendingRows() const {
  return submitted_ == collected_ ? -1 : slots_[collected_ % 2]->rows;
}

void Runner::collect(const StepOutput& out) {
  requireAlive();
  if (submitted_ == collected_) throw std::invalid_argument("no step is on its way");
  Slot& slot = *slots_[collected_ % 2];
  guarded([&] {
    check(cudaSetDevice(device_), "cudaSetDevice");
    slot.done.wait();
    for (size_t i = 1; i < slot.kinds.size(); i++) {
      profile_.seconds[slot.kinds[i]] += slot.marks[i].secondsSince(slot.marks[i - 1]);
      profile_.calls[slot.kinds[i]] += 1;
    }
  });
  collected_++;
  const size_t rows = slot.rows;
  const bool logprobs = slot.staging.needs().logprobs;
  const uint8_t* from = slot.outputs.data();
  const auto get = [&](auto* to, size_t count, auto absent) {
    if (logprobs) {
      std::memcpy(to, from, count * 4);
    } else {
      std::fill_n(to, count, absent);
    }
    from += count * 4;
  };
  if (rows > 0) std::memcpy(out.tokens, from, rows * 4);
  from += rows * 4;
  get(out.logprobs, rows, NAN);
  get(out.ranks, rows, 0);
  get(out.topTokens, rows * kMaxLogprobs, -1);
  get(out.topLogprobs, rows * kMaxLogprobs, NAN);
  if (out.logits && rows > 0) std::memcpy(out.logits, slot.logits.data(), rows * vocab() * 4);
}

}  // namespace millrace::cuda
