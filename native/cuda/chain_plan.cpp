#include "chain_plan.h"

#include <algorithm>

namespace millrace::cuda {
namespace {

constexpr int kMultiple = 8;  // of widths, strides and columns: 16 bytes

class Planner {
 public:
  Planner(const Program& program, const std::vector<WeightSpec>& weights)
      : program_(program), weights_(weights), readers_(readersOf(program)) {}

  // Instructions of the longest chain that begins at `first`; 0 if none does.
  int lengthAt(const std::vector<Instruction>& ops, size_t first) const {
    const size_t left = ops.size() - first;
    const Instruction* op = ops.data() + first;
    if (left < kShortChain || !product(op[0]) || !normed(op[0], op[1], op[2])) return 0;
    const bool gated = op[3].kind == OpKind::SiluMul && passes(op[2], op[3]) && !op[2].residual;
    if (!gated || !product(op[4]) || !passes(op[3], op[4])) return 0;
    return left >= kLongChain && normed(op[4], op[5], op[6]) ? kLongChain : kShortChain;
  }

 private:
  bool suits(const Operand& operand) const {
    const BufferSpec& buffer = program_.buffers[operand.buffer];
    return !buffer.floats && buffer.stride % kMultiple == 0 && operand.column % kMultiple == 0 &&
           operand.width % kMultiple == 0;
  }

  bool product(const Instruction& op) const {
    if (op.kind != OpKind::Linear) return false;
    const WeightSpec& weight = weights_[op.weight];
    return weight.group == 0 && !weight.fp8 && suits(op.x) && suits(op.out) &&
           (!op.residual || suits(op.residual));
  }

  // Whether `reader` reads what `maker` makes, and nothing else does.
  bool passes(const Instruction& maker, const Instruction& reader) const {
    return maker.out == reader.x && readers_[maker.out.buffer] == 1;
  }

  // `sum` may be read by others, too: it is a chain's result.
  bool normed(const Instruction& sum, const Instruction& norm, const Instruction& next) const {
    return norm.kind == OpKind::RmsNorm && sum.out == norm.x && weights_[norm.weight].n == sum.out.width &&
           product(next) && passes(norm, next);
  }

  const Program& program_;
  const std::vector<WeightSpec>& weights_;
  const std::vector<int> readers_;  // of buffers
};

}  // namespace

void planChains(Program& program, const std::vector<WeightSpec>& weights, Elem elem) {
  if (elem != Elem::BF16) return;
  const Planner planner(program, weights);
  for (auto* ops : {&program.tokenOps, &program.rowOps}) {
    for (size_t i = 0; i < ops->size();) {
      const int length = planner.lengthAt(*ops, i);
      (*ops)[i].chained = length;
      i += std::max(length, 1);
    }
  }
}

ChainWidths chainWidths(const Program& program) {
  ChainWidths widths;
  for (const auto* ops : {&program.tokenOps, &program.rowOps}) {
    for (size_t i = 0; i < ops->size(); i++) {
      const Instruction* op = ops->data() + i;
      if (op->chained == 0) continue;
      widths.sums = std::max({widths.sums, op[0].out.width, op->chained == kLongChain ? op[4].out.width : 0});
      widths.gates = std::max(widths.gates, op[3].out.width);
    }
  }
  return widths;
}

}  // namespace millrace::cuda
