#include "memory_map.h"

#include <algorithm>
#include <stdexcept>

#include "chain_plan.h"
#include "fp8_plan.h"
#include "gemm.h"
#include "hopper.h"
#include "hopper_chain.h"

namespace millrace::cuda {
namespace {

// Histories and biases that fit on the device at a time.
constexpr int kRaggedEntries = 1 << 20;

void findShapes(Program& program, const RunnerConfig& config, std::vector<AttentionShape>& shapes) {
  for (Instruction& op : program.tokenOps) {
    if (op.kind != OpKind::Attention) continue;
    const KvShape& layer = program.kvLayers[op.layer];
    const AttentionShape shape = {config.elem,
                                  op.heads,
                                  layer.kvHeads,
                                  layer.headDim,
                                  headStrideOf(layer.headDim),
                                  config.limits.blockSize,
                                  op.window,
                                  op.scale,
                                  layer.fp8};
    const auto known = std::find(shapes.begin(), shapes.end(), shape);
    op.shape = static_cast<int>(known - shapes.begin());
    if (known == shapes.end()) shapes.push_back(shape);
  }
}

// One matrix of 4 bits as floats, for products of many rows; and what products of few rows need.
template <class Take>
void takeForInt4(const std::vector<WeightSpec>& weights, MemoryMap& map, Take&& take) {
  size_t elements = 0;
  int maxN = 0, reorderedK = 0;
  for (const WeightSpec& spec : weights) {
    if (spec.group == 0) continue;
    elements = std::max(elements, spec.elements());
    maxN = std::max(maxN, spec.n);
    if (!spec.columns.empty()) reorderedK = std::max(reorderedK, spec.k);
  }
  map.int4Wide = take(elements * 2);
  map.int4Scratch = take(elements > 0 ? int4ScratchBytes(reorderedK) : 0);
  map.int4Counters = take(int4Counters(maxN) * 4);
  map.int4End = map.workspace;
}

void checkInt4(const RunnerConfig& config) {
  for (const WeightSpec& spec : config.weights) {
    if (spec.group == 0 || config.elem != Elem::F32) continue;
    throw std::invalid_argument(spec.name + ": weights of 4 bits need a 16-bit storage type");
  }
}

}  // namespace

Program decodeProgram(const RunnerConfig& config, std::vector<AttentionShape>& shapes) {
  Program program = config.program;
  checkProgram(program, config.limits, config.elem);
  checkInt4(config);
  program.tokenOps = decodeInstructions(config.tokenCode, true, program, config.weights);
  program.rowOps = decodeInstructions(config.rowCode, false, program, config.weights);
  findShapes(program, config, shapes);
  planFp8(program, config.weights, config.elem);
  planChains(program, config.weights, config.elem);
  return program;
}

size_t kvHalfBytes(const KvShape& shape, Elem elem, const BatchLimits& limits) {
  return size_t(limits.numBlocks) * shape.kvHeads * limits.blockSize * headStrideOf(shape.headDim) *
         (shape.fp8 ? 1 : bytesOf(elem));
}

MemoryMap mapMemory(const RunnerConfig& config, const Program& program,
                    const std::vector<AttentionShape>& shapes) {
  const Limits& limits = config.limits;
  const int vocab = program.logits.width;
  MemoryMap map;
  const auto take = [&](size_t bytes) {
    const size_t offset = map.workspace;
    map.workspace += alignUp(bytes);
    return offset;
  };
  map.weights = weightBytes(config.weights, config.elem);
  for (const KvShape& layer : program.kvLayers) {
    map.kvCache += 2 * kvHalfBytes(layer, config.elem, limits);
  }

  size_t attention = 0, moe = 0;
  const bool plain = config.elem == Elem::F32;
  for (const AttentionShape& shape : shapes) {
    if (plain) break;
    attention = std::max(attention, attentionScratchBytes(shape, limits.maxTokens, limits.maxSeqs));
  }
  for (const auto* list : {&program.tokenOps, &program.rowOps}) {
    const int rows = list == &program.tokenOps ? limits.maxTokens : limits.rowTile;
    for (const Instruction& op : *list) {
      if (op.kind != OpKind::Moe) continue;
      const WeightSpec& gateUp = config.weights[op.weight];
      moe = std::max(moe, moeScratchBytes(config.elem, gateUp.experts, gateUp.n / 2, gateUp.k,
                                          op.topK, rows));
    }
  }
  map.raggedEntries = std::max(kRaggedEntries, 2 * vocab);
  map.activations = take(program.activationBytes);
  map.attentionScratch = take(attention);
  map.moeScratch = take(moe);
  map.samplingScratch = take(samplingScratchBytes(vocab, limits.rowTile));
  for (size_t& each : map.staging) {
    each = take(stagingBytes(limits, plain ? std::vector<AttentionShape>{} : shapes));
  }
  map.ragged = take(size_t(map.raggedEntries) * 8);
  map.saved = take(size_t(map.raggedEntries) * 4);
  for (size_t& each : map.outputs) each = take(size_t(limits.maxTokens) * kOutputsOfRow * 4);
  map.copies = take(size_t(kCopiesAtOnce) * 8);
  map.products = take(std::max(Gemm::kWorkspaceBytes, WeightStore::kScratchBytes));
  takeForInt4(config.weights, map, take);
  int fp8Width = 0;
  for (const WeightSpec& spec : config.weights) {
    if (spec.fp8) fp8Width = std::max(fp8Width, spec.k);
  }
  map.fp8Codes = take(size_t(limits.maxTokens) * fp8Width);
  map.fp8Scales = take(fp8Width > 0 ? size_t(limits.maxTokens) * 4 : 0);
  const ChainWidths chains = hopperAvailable() ? chainWidths(program) : ChainWidths{};
  map.chainScratch = take(chains.sums > 0 ? chainScratchBytes(chains.sums) : 0);
  map.chainNormed = take(size_t(kChainMaxRows) * chains.sums * bytesOf(config.elem));
  map.chainGates = take(size_t(kChainMaxRows) * chains.gates * bytesOf(config.elem));
  for (const RopeTable& table : program.ropeTables) {
    map.ropeTables.push_back(take(size_t(limits.maxModelLen) * table.invFreq.size() * 8));
  }
  return map;
}

}  // namespace millrace::cuda
