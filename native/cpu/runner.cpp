#include "runner.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "gemm_plan.h"

namespace millrace {
namespace {

// Work on fewer numbers than this is over before another thread has noticed it.
constexpr int64_t kSerialNumbers = 8192;

// Of the KV cache, what gets its memory at load. The rest gets it when first written: a new huge page
// in each layer costs a step some milliseconds, but a cache planned for peak load may never need it.
constexpr size_t kReadyBytes = size_t(512) << 20;

double secondsNow() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <class T>
T* at(uint8_t* base, size_t offset, size_t elements) {
  return reinterpret_cast<T*>(base + offset) + elements;
}

Step stepOf(const Batch& b) {
  return {b.numTokens,        b.numSeqs,              b.numRows,          b.tokens.data,
          b.positions.data,   b.slots.data,           b.queryStart.data,  b.contextLens.data,
          b.blockTables.data, b.blockTableStart.data, b.rows.data};
}

SampleParams samplingOf(const Batch& b) {
  return {b.temperature.data,      b.topK.data,            b.topP.data,
          b.minP.data,             b.seed.data,            b.draw.data,
          b.repetitionPenalty.data, b.presencePenalty.data, b.frequencyPenalty.data,
          b.historyStart.data,     b.historyTokens.data,   b.historyCounts.data,
          b.biasStart.data,        b.biasTokens.data,      b.biasValues.data,
          b.logprobs.data,         b.targets.data};
}

}  // namespace

Runner::Runner(const RunnerConfig& config, const std::function<void(double)>& progress)
    : kernels_(*config.kernels),
      limits_(config.limits),
      kvDtype_(config.kvDtype),
      bf16Inputs_(config.kernels->gemm.wantsBf16 && config.dtype == DType::BF16),
      pool_(config.threads),
      program_(config.program),
      weights_(config.weights, config.dtype, pool_, progress) {
  checkProgram(program_, limits_);
  const auto decode = [&](const std::vector<double>& code, bool perToken) {
    return decodeInstructions(code.data(), code.size(), perToken, program_, config.weights,
                              bf16Inputs_);
  };
  program_.tokenOps = decode(config.tokenCode, true);
  program_.rowOps = decode(config.rowCode, false);
  for (const Instruction& op : program_.tokenOps) {
    if (op.kind == OpKind::Embed && config.weights[op.weight].n < vocab()) {
      throw std::invalid_argument("the embedding has fewer rows than the vocabulary");
    }
  }
  linkProducts();
  workspace_ = Memory(program_.workspaceBytes);
  makeRopeTables();
  makeCaches();
  makePlanners();
  makeMixtures();
  makeQuantizedRows();
  sampleScratchBytes_ = alignUp(kernels_.sample.scratchBytes(vocab()), 64);
  sampleScratch_ = Memory(sampleScratchBytes_ * pool_.size());
}

// Tells each matrix product which weight is wanted after it.
void Runner::linkProducts() {
  const uint8_t* next = nullptr;
  for (List* list : {&program_.rowOps, &program_.tokenOps}) {
    for (auto op = list->rbegin(); op != list->rend(); ++op) {
      if (op->kind != OpKind::Linear) continue;
      op->nextWeight = next;
      next = weights_.matrix(op->weight).data;
    }
  }
}

void Runner::makeRopeTables() {
  size_t floatsNeeded = 0;
  for (const RopeTable& table : program_.ropeTables) {
    floatsNeeded += table.invFreq.size() * 2 * limits_.maxModelLen;
  }
  ropeMemory_ = Memory(floatsNeeded * sizeof(float));
  float* next = reinterpret_cast<float*>(ropeMemory_.data());
  for (const RopeTable& table : program_.ropeTables) {
    const int half = static_cast<int>(table.invFreq.size());
    float* rows = next;
    pool_.parallel(limits_.maxModelLen, [&](int position, int) {
      float* row = rows + size_t(position) * 2 * half;
      for (int i = 0; i < half; i++) {
        const double angle = position * table.invFreq[i];
        row[i] = static_cast<float>(std::cos(angle) * table.scale);
        row[half + i] = static_cast<float>(std::sin(angle) * table.scale);
      }
    });
    cosSin_.push_back(rows);
    next += size_t(limits_.maxModelLen) * 2 * half;
  }
}

void Runner::makeCaches() {
  size_t total = 0;
  for (const KvLayer& layer : program_.kvLayers) {
    layouts_.push_back(kvLayout(kvDtype_, layer.kvHeads, layer.headDim, limits_.blockSize));
    total += layouts_.back().blockBytes * limits_.numBlocks;
  }
  kvCache_ = Memory(total);
  uint8_t* next = kvCache_.data();
  for (const KvLayout& layout : layouts_) {
    caches_.push_back(next);
    next += layout.blockBytes * limits_.numBlocks;
  }
  // Blocks are handed out from 0 on, so these are the first that sequences get.
  const size_t share = kReadyBytes / std::max<size_t>(1, layouts_.size());
  pool_.parallel(static_cast<int>(layouts_.size()), [&](int layer, int) {
    populate(caches_[layer], std::min(share, layouts_[layer].blockBytes * limits_.numBlocks));
  });
}

void Runner::makePlanners() {
  const AttentionLimits limits = {limits_.maxTokens, limits_.maxSeqs, limits_.maxModelLen,
                                  pool_.size()};
  for (const Instruction& op : program_.tokenOps) {
    int found = -1;
    if (op.kind == OpKind::Attention) {
      const AttentionShape shape = {op.heads, op.kvHeads, op.headDim, op.window};
      for (size_t i = 0; i < planners_.size(); i++) {
        const AttentionShape& s = planners_[i].shape;
        if (s.heads == shape.heads && s.kvHeads == shape.kvHeads && s.headDim == shape.headDim &&
            s.window == shape.window) {
          found = static_cast<int>(i);
        }
      }
      if (found < 0) {
        found = static_cast<int>(planners_.size());
        planners_.push_back({shape, std::make_unique<AttentionPlanner>(shape, limits), nullptr});
      }
    }
    plannerOf_.push_back(found);
  }
}

void Runner::makeMixtures() {
  for (const List* list : {&program_.tokenOps, &program_.rowOps}) {
    for (const Instruction& op : *list) {
      if (op.kind != OpKind::Moe) continue;
      if (!moe_) moe_ = std::make_unique<MoeRunner>(kernels_, pool_, bf16Inputs_);
      moe_->reserve(weights_, op.weight, op.down, op.topK, limits_.maxTokens);
    }
  }
}

// Room for the largest quantized input of a product; one is needed at a time.
void Runner::makeQuantizedRows() {
  size_t bytes = 0;
  for (const List* list : {&program_.tokenOps, &program_.rowOps}) {
    const size_t rows = list == &program_.tokenOps ? limits_.maxTokens : limits_.rowTile;
    for (const Instruction& op : *list) {
      if (op.kind != OpKind::Linear || weights_.spec(op.weight).integer.bits == 0) continue;
      bytes = std::max(bytes, rows * kernels_.gemm.rowBytes(weights_.matrix(op.weight)));
    }
  }
  quantized_ = Memory(bytes);
}

size_t Runner::workspaceBytes() const {
  size_t bytes = workspace_.bytes() + ropeMemory_.bytes() + sampleScratch_.bytes() +
                 quantized_.bytes();
  for (const Planner& each : planners_) bytes += each.planner->bytes();
  if (moe_) bytes += moe_->bytes();
  return bytes;
}

float* Runner::floats(const Operand& operand, int row) const {
  const BufferSpec& buffer = program_.buffers[operand.buffer];
  return at<float>(workspace_.data(), buffer.offset, row * buffer.stride + operand.column);
}

uint16_t* Runner::halves(const Operand& operand, int row) const {
  const BufferSpec& buffer = program_.buffers[operand.buffer];
  return at<uint16_t>(workspace_.data(), buffer.offset, row * buffer.stride + operand.column);
}

Rows Runner::input(const Operand& operand, const PackedMatrix& weight, int rows) {
  if (weight.integer.bits == 0) {
    if (bf16Inputs_) return {halves(operand), stride(operand)};
    return {floats(operand), stride(operand)};
  }
  const size_t rowBytes = kernels_.gemm.rowBytes(weight);
  eachRow(rows, weight.k, [&](int row, int) {
    kernels_.gemm.quantizeRow(weight, floats(operand, row), quantized_.data() + row * rowBytes);
  });
  return {quantized_.data(), rowBytes};
}

template <class Fn>
void Runner::eachRow(int rows, int width, Fn&& fn) {
  if (pool_.size() == 1 || int64_t(rows) * width < kSerialNumbers) {
    for (int row = 0; row < rows; row++) fn(row, 0);
    return;
  }
  const int chunk = std::max(1, rows / (8 * pool_.size()));
  pool_.parallel((rows + chunk - 1) / chunk, [&](int item, int thread) {
    const int end = std::min(rows, (item + 1) * chunk);
    for (int row = item * chunk; row < end; row++) fn(row, thread);
  });
}

void Runner::step(const Batch& batch, const StepOutput& output) {
  const double start = secondsNow();
  checkBatch(batch, limits_, vocab());
  step_ = stepOf(batch);
  // One pair after the other: a block may be the source of one and the target of another.
  for (int i = 0; i < batch.numCopies; i++) {
    pool_.parallel(pool_.size(), [&](int item, int) {
      copyBlocks(caches_.data(), layouts_.data(), static_cast<int>(caches_.size()),
                 batch.copies.data + 2 * i, 1, item, pool_.size());
    });
  }
  for (Planner& each : planners_) each.plan = &each.planner->build(step_);
  profile_.seconds[Profile::kBatch] += secondsNow() - start;
  profile_.calls[Profile::kBatch] += 1;

  run(program_.tokenOps, batch.numTokens, nullptr);
  for (int row = 0; row < batch.numRows; row += limits_.rowTile) {
    const int rows = std::min(limits_.rowTile, batch.numRows - row);
    run(program_.rowOps, rows, batch.rows.data + row);
    sample(batch, row, rows, output);
  }
}

void Runner::run(const List& list, int rows, const int32_t* rowTokens) {
  if (rows == 0) return;
  double start = secondsNow();
  for (size_t i = 0; i < list.size(); i++) {
    size_t last = i;
    while (last + 1 < list.size() && list[last].kind == OpKind::Rope) last++;
    if (list[last].kind == OpKind::Attention) {
      attention(&list[i], list[last]);
      i = last;
    } else {
      execute(list[i], rows, rowTokens);
    }
    const double end = secondsNow();
    const int kind = static_cast<int>(list[i].kind);
    profile_.seconds[kind] += end - start;
    profile_.calls[kind] += 1;
    start = end;
  }
}

void Runner::execute(const Instruction& op, int rows, const int32_t* rowTokens) {
  const RowKernels& k = kernels_.rows;
  const auto out = [&](int row) { return op.out ? floats(op.out, row) : nullptr; };
  const auto outBf16 = [&](int row) { return op.outBf16 ? halves(op.outBf16, row) : nullptr; };
  switch (op.kind) {
    case OpKind::Embed: {
      const PackedMatrix weight = weights_.matrix(op.weight);
      return eachRow(rows, 4 * weight.k, [&](int row, int) {
        k.unpackRow(weight, step_.tokens[row], out(row));
      });
    }
    case OpKind::RmsNorm:
      return eachRow(rows, op.x.width, [&](int row, int) {
        k.rmsNorm(floats(op.x, row), weights_.vector(op.weight), op.x.width, op.group, op.eps,
                  out(row), outBf16(row));
      });
    case OpKind::Linear:
      return linear(op, rows);
    case OpKind::Add:
      return eachRow(rows, op.x.width, [&](int row, int) {
        k.add(floats(op.x, row), floats(op.residual, row), op.x.width, out(row));
      });
    case OpKind::Rope:
      return eachRow(rows, op.x.width, [&](int row, int) {
        rope(op, row, step_.positions[rowTokens ? rowTokens[row] : row]);
      });
    case OpKind::SiluMul: {
      const int width = op.x.width / 2;
      return eachRow(rows, 4 * width, [&](int row, int) {
        const float* x = floats(op.x, row);
        k.siluMul(x, x + width, width, out(row), outBf16(row));
      });
    }
    case OpKind::Moe:
      return mixture(op, rows);
    case OpKind::Gather:
      return eachRow(rows, op.x.width, [&](int row, int) {
        std::memcpy(out(row), floats(op.x, rowTokens[row]), size_t(op.x.width) * sizeof(float));
      });
    case OpKind::ToBf16:
      return eachRow(rows, op.x.width, [&](int row, int) {
        k.toBf16(floats(op.x, row), op.x.width, outBf16(row));
      });
    case OpKind::Attention:
    case OpKind::Count:
      return;
  }
}

void Runner::rope(const Instruction& op, int row, int position) const {
  kernels_.rows.rope(floats(op.x, row), cosSin_[op.table] + size_t(position) * op.headDim,
                     op.x.width, op.headDim, floats(op.out, row));
}

void Runner::linear(const Instruction& op, int rows) {
  const PackedMatrix weight = weights_.matrix(op.weight);
  // Of a number; rows of quantized ones count in bytes.
  const size_t inputBytes = weight.integer.bits > 0 ? 1 : bf16Inputs_ ? 2 : 4;
  GemmTile whole{};
  whole.weight = &weight;
  whole.x = input(op.x, weight, rows);
  if (op.out) {
    whole.out.f32 = floats(op.out);
    whole.out.f32Stride = stride(op.out);
  }
  if (op.outBf16) {
    whole.out.bf16 = halves(op.outBf16);
    whole.out.bf16Stride = stride(op.outBf16);
  }
  if (op.residual) {
    whole.out.residual = floats(op.residual);
    whole.out.residualStride = stride(op.residual);
  }
  if (op.bias >= 0) whole.out.bias = weights_.vector(op.bias);
  const int threads = pool_.size();
  const GemmPlan plan = planGemm(weight, rows, inputBytes, threads);
  pool_.parallel(plan.items(), [&](int item, int) {
    GemmTile tile = whole;
    plan.cut(item, threads, tile, inputBytes, op.nextWeight);
    kernels_.gemm.gemm(tile);
  });
}

void Runner::mixture(const Instruction& op, int rows) {
  MoeCall call{};
  call.weights = &weights_;
  call.gateUp = op.weight;
  call.down = op.down;
  call.experts = op.router.width;
  call.topK = op.topK;
  call.normalize = op.normalize;
  call.router = floats(op.router);
  call.routerStride = stride(op.router);
  const bool halved = bf16Inputs_ && weights_.spec(op.weight).integer.bits == 0;
  call.x = {halved ? static_cast<const void*>(halves(op.x)) : floats(op.x), stride(op.x)};
  call.out = floats(op.out);
  call.outStride = stride(op.out);
  moe_->run(call, rows);
}

void Runner::attention(const Instruction* first, const Instruction& op) {
  const Planner& planner = planners_[plannerOf_[&op - program_.tokenOps.data()]];
  const KvWrite write = {&step_, layouts_[op.layer], caches_[op.layer],
                         {floats(op.key), stride(op.key)},
                         {floats(op.value), stride(op.value)}};
  const int64_t tokens = step_.numTokens;
  const bool serial = tokens * op.x.width < kSerialNumbers;
  const int parts = serial ? 1 : pool_.size();
  pool_.parallel(parts, [&](int part, int) {
    // The tokens that writeKv takes for this part.
    const int begin = static_cast<int>(tokens * part / parts);
    const int end = static_cast<int>(tokens * (part + 1) / parts);
    for (const Instruction* each = first; each != &op; each++) {
      for (int t = begin; t < end; t++) rope(*each, t, step_.positions[t]);
    }
    kernels_.attention.writeKv(write, part, parts);
  });
  std::atomic<int32_t> next{0};
  const Attention call = {&step_,
                          planner.plan,
                          planner.shape,
                          layouts_[op.layer],
                          caches_[op.layer],
                          {floats(op.x), stride(op.x)},
                          {floats(op.out), stride(op.out)},
                          op.scale,
                          &next};
  const int threads = planner.plan->numItems == 1 ? 1 : pool_.size();
  pool_.parallel(threads, [&](int, int thread) { kernels_.attention.attend(call, thread); });
}

void Runner::sample(const Batch& batch, int firstRow, int rows, const StepOutput& output) {
  const double start = secondsNow();
  const SampleParams params = samplingOf(batch);
  eachRow(rows, vocab(), [&](int row, int thread) {
    const float* logits = floats(program_.logits, row);
    if (output.logits) {
      std::memcpy(output.logits + size_t(firstRow + row) * vocab(), logits,
                  size_t(vocab()) * sizeof(float));
    }
    kernels_.sample.sampleRow(logits, vocab(), params, firstRow + row, output.sampled,
                              sampleScratch_.data() + sampleScratchBytes_ * thread);
  });
  profile_.seconds[Profile::kSample] += secondsNow() - start;
  profile_.calls[Profile::kSample] += 1;
}

}  // namespace millrace
