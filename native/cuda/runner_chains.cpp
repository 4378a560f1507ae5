// Chains of the program: where they lie in memory, and which are worth it.
#include <algorithm>

#include "chain_plan.h"
#include "hopper.h"
#include "runner.h"

namespace millrace::cuda {

// What lies between products has places of its own. Those of the program may be where something is that
// the instruction before reads; and here that instruction may not have ended.
Chain Runner::chainCall(const Instruction* run, int length) const {
  Chain chain;
  chain.scratch = at(map_.chainScratch);
  const auto between = [&](size_t offset, const Operand& as) {
    return Matrix{at(offset), as.width, as.width};
  };
  const auto product = [&](const Instruction& op, Matrix x, Matrix out) -> ChainPhase& {
    const ProductCall call = productCall(op);
    ChainPhase& phase = chain.phases[chain.count++];
    phase.weight = call.weight;
    phase.n = op.out.width;
    phase.k = op.x.width;
    phase.x = x.data;
    phase.xStride = x.stride;
    phase.bias = call.biasFloats;
    if (op.residual) {
      phase.residual = call.residual;
      phase.residualStride = matrix(op.residual).stride;
    }
    phase.out = out.data;
    phase.outStride = out.stride;
    return phase;
  };
  // A product's sums, normed, are x of the next.
  const auto norm = [&](ChainPhase& phase, const Instruction& op) {
    const Matrix normed = between(map_.chainNormed, op.out);
    phase.normWeight = weights_.vector(op.weight);
    phase.normed = normed.data;
    phase.normedStride = normed.stride;
  };
  const auto scaled = [&](const Instruction& norm, const Instruction& op, Matrix out) -> ChainPhase& {
    ChainPhase& phase = product(op, between(map_.chainNormed, norm.out), out);
    phase.scaled = true;
    phase.eps = norm.eps;
    return phase;
  };
  const Matrix gates = between(map_.chainGates, run[3].out);
  norm(product(run[0], matrix(run[0].x), matrix(run[0].out)), run[1]);
  scaled(run[1], run[2], gates).gated = true;
  ChainPhase& down = product(run[4], gates, matrix(run[4].out));
  if (length == kLongChain) {
    norm(down, run[5]);
    scaled(run[5], run[6], matrix(run[6].out));
  }
  return chain;
}

void Runner::makeChains() {
  struct Run {
    Instruction* first;
    int maxRows;
  };
  std::vector<Run> runs;
  for (List* list : {&program_.tokenOps, &program_.rowOps}) {
    const int most = list == &program_.tokenOps ? limits_.maxTokens : limits_.rowTile;
    for (Instruction& op : *list) {
      if (op.chained > 0) runs.push_back({&op, std::min(most, kChainMaxRows)});
    }
  }
  if (runs.empty() || !hopperAvailable()) return;
  chainRight_.emplace(device_);
  if (!chainRight_->held()) return;
  for (const Run& run : runs) {
    run.first->chain = chains_.add(chainCall(run.first, run.first->chained), run.maxRows);
  }
  for (int id = 0; id < chains_.count(); id++) {
    const auto own = std::find_if(runs.begin(), runs.end(),
                                  [&](const Run& run) { return run.first->chain == id; });
    const int length = own->first->chained;
    // Chains that begin as this one does stand for it: the last layer alone would be in a cache.
    std::vector<ChainUse> uses;
    for (const Run& run : runs) {
      if (run.maxRows < own->maxRows || run.first->chained < length) continue;
      const Chain chain = chainCall(run.first, length);
      if (!chains_.same(id, chain)) continue;
      uses.push_back({chain, [this, first = run.first, length](int rows) {
                        for (int i = 0; i < length; i++) {
                          execute(first[i], rows, nullptr);
                        }
                      }});
    }
    chains_.tune(id, uses, at(map_.products), stream_);
  }
}

}  // namespace millrace::cuda
