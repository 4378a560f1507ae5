#include "fp8_plan.h"

#include <algorithm>
#include <stdexcept>

#include "fp8.h"

namespace millrace::cuda {
namespace {

void checkWeights(const Program& program, const std::vector<WeightSpec>& weights, Elem elem) {
  for (const WeightSpec& spec : weights) {
    if (!spec.fp8) continue;
    const char* problem = nullptr;
    if (elem == Elem::F32) problem = "need a 16-bit storage type";
    if (spec.layout != WeightLayout::Matrix || spec.experts != 1) problem = "are one matrix";
    if (spec.n % kFp8Multiple != 0 || spec.k % kFp8Multiple != 0 || spec.k > kFp8MaxWidth) {
      problem = "have sizes that are multiples of 16, and at most 32,768 inputs";
    }
    if (problem) throw std::invalid_argument(spec.name + ": weights of fp8 " + problem);
  }
  for (const auto* list : {&program.tokenOps, &program.rowOps}) {
    for (const Instruction& op : *list) {
      const bool keepsFloats = op.kind == OpKind::Embed || op.kind == OpKind::Moe;
      if (keepsFloats && weights[op.weight].fp8) {
        throw std::invalid_argument(weights[op.weight].name + ": only products take fp8 weights");
      }
    }
  }
}

}  // namespace

void planFp8(Program& program, const std::vector<WeightSpec>& weights, Elem elem) {
  checkWeights(program, weights, elem);
  const auto multiplies = [&](const Instruction& op) {
    return op.kind == OpKind::Linear && weights[op.weight].fp8;
  };
  const std::vector<int> readers = readersOf(program);
  for (auto* list : {&program.tokenOps, &program.rowOps}) {
    auto& ops = *list;
    for (size_t i = 0; i < ops.size(); i++) {
      Instruction& maker = ops[i];
      const bool norm = maker.kind == OpKind::RmsNorm && weights[maker.weight].n == maker.x.width;
      const bool fuses = norm || maker.kind == OpKind::SiluMul;
      const Operand made = fuses ? maker.out : multiplies(maker) ? maker.x : Operand{};
      if (!made) continue;
      size_t end = i + 1;
      while (end < ops.size() && multiplies(ops[end]) && ops[end].x == made) end++;
      const int products = static_cast<int>(end - i - 1);
      if (fuses && (products == 0 || readers[made.buffer] != products)) continue;
      maker.toFp8 = fuses;
      for (size_t j = i + 1; j < end; j++) ops[j].fromFp8 = true;
      i = end - 1;
    }
  }
}

}  // namespace millrace::cuda
