// Which instructions chain_plan.h takes for chains, without a GPU: layers as models have them, and each
// thing that keeps a kernel from doing them as one.
#pragma once
#include <functional>

#include "chain_plan.h"
#include "kernel_check.h"

namespace chain_plan_cases {

using namespace millrace::cuda;

// Two layers after attention, then a last one on wanted rows. Every value has a buffer of its own.
struct Model {
  static constexpr int kHidden = 64, kQueries = 128, kInner = 88, kQkv = 192;
  Program program{};
  std::vector<WeightSpec> weights;

  Model() {
    std::vector<Instruction>* ops = &program.tokenOps;
    Operand hidden = value(kHidden, true);
    for (int layer = 0; layer < 3; layer++) {
      const bool last = layer == 2;
      if (last) {
        ops = &program.rowOps;
        hidden = gather(hidden);
      }
      const Operand attended = last ? gather(value(kQueries, true)) : value(kQueries, true);
      const Operand sum = linear(*ops, attended, kHidden, hidden);
      const Operand gates = linear(*ops, norm(*ops, sum), 2 * kInner, {});
      ops->push_back({OpKind::SiluMul});
      ops->back().x = gates;
      ops->back().out = value(kInner, !last);
      hidden = linear(*ops, ops->back().out, kHidden, sum);
      const Operand out = linear(*ops, norm(*ops, hidden), kQkv, {});
      if (last) program.buffers[out.buffer].floats = true;
      if (!last) ops->push_back({OpKind::Attention});
    }
  }

  // Lengths of chains, of tokens then of rows.
  std::vector<int> lengths(Elem elem = Elem::BF16) {
    planChains(program, weights, elem);
    std::vector<int> list;
    for (const auto* ops : {&program.tokenOps, &program.rowOps}) {
      for (const Instruction& op : *ops) {
        if (op.chained > 0) list.push_back(op.chained);
      }
    }
    return list;
  }

 private:
  Operand value(int width, bool perToken) {
    program.buffers.push_back({perToken, false, (width + 63) / 64 * 64, 0});
    return {static_cast<int>(program.buffers.size()) - 1, 0, width};
  }
  int weight(int n, int k) {
    weights.push_back({});
    weights.back().n = n;
    weights.back().k = k;
    return static_cast<int>(weights.size()) - 1;
  }
  Operand linear(std::vector<Instruction>& ops, Operand x, int n, Operand residual) {
    Instruction op{OpKind::Linear};
    op.x = x;
    op.residual = residual;
    op.weight = weight(n, x.width);
    op.out = value(n, program.buffers[x.buffer].perToken);
    ops.push_back(op);
    return op.out;
  }
  Operand norm(std::vector<Instruction>& ops, Operand x) {
    Instruction op{OpKind::RmsNorm};
    op.x = x;
    op.weight = weight(x.width, 1);
    op.out = value(x.width, program.buffers[x.buffer].perToken);
    ops.push_back(op);
    return op.out;
  }
  Operand gather(Operand x) {
    Instruction op{OpKind::Gather};
    op.x = x;
    op.out = value(x.width, false);
    program.rowOps.push_back(op);
    return op.out;
  }
};

// Instructions of the first layer, in order.
enum { kOut, kNorm, kGateUp, kSilu, kDown, kNextNorm, kQkv };

inline void run() {
  using Lengths = std::vector<int>;
  const auto expect = [](const std::string& name, const Lengths& want, Elem elem,
                         const std::function<void(Model&)>& change) {
    Model model;
    change(model);
    kernel_check::report("plan: " + name, model.lengths(elem) == want ? 0 : 1, 0);
  };
  const auto with = [&](const std::string& name, const Lengths& want,
                        const std::function<void(std::vector<Instruction>&, Model&)>& change) {
    expect(name, want, Elem::BF16, [&](Model& model) { change(model.program.tokenOps, model); });
  };
  const Lengths all = {7, 7, 5}, notFirst = {7, 5}, firstShort = {5, 7, 5};
  expect("layers, the last on wanted rows", all, Elem::BF16, [](Model&) {});
  expect("float16", {}, Elem::F16, [](Model&) {});
  with("a weight in fp8", notFirst,
       [](auto& ops, Model& model) { model.weights[ops[kDown].weight].fp8 = true; });
  with("a weight in 4 bits", notFirst,
       [](auto& ops, Model& model) { model.weights[ops[kOut].weight].group = 128; });
  with("the last weight in fp8", firstShort,
       [](auto& ops, Model& model) { model.weights[ops[kQkv].weight].fp8 = true; });
  with("norms of heads", notFirst,
       [](auto& ops, Model& model) { model.weights[ops[kNorm].weight].n = 32; });
  with("normed sums that are read again", notFirst,
       [](auto& ops, Model&) { ops[kDown].residual = ops[kNorm].out; });
  with("gates that wanted rows read", notFirst, [](auto& ops, Model& model) {
    model.program.rowOps.push_back({OpKind::Gather});
    model.program.rowOps.back().x = ops[kSilu].out;
  });
  with("another read of what is normed for qkv", firstShort,
       [](auto& ops, Model&) { ops.back().key = ops[kNextNorm].out; });
  with("a sum that is read later", all, [](auto& ops, Model&) { ops.back().key = ops[kOut].out; });
  with("a product without residual", all, [](auto& ops, Model&) { ops[kOut].residual = {}; });
  with("columns that are not aligned", notFirst, [](auto& ops, Model&) { ops[kOut].x.column = 4; });
  with("a width that is no multiple of 8", firstShort, [](auto& ops, Model&) { ops[kQkv].out.width = 100; });
  with("a norm of other columns", notFirst, [](auto& ops, Model&) { ops[kNorm].x.column = 8; });
  with("something between", notFirst, [](auto& ops, Model&) {
    ops.insert(ops.begin() + kSilu, Instruction{OpKind::Attention});
  });
}

}  // namespace chain_plan_cases
