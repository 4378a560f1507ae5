// Checks native/cuda/hopper_chain.cu, every way of cutting a chain and every result of each of its
// phases; which instructions become chains; and times a layer's chain beside the launches it stands for.
// Without a Hopper GPU there is no kernel to check, and it says so.
#include <algorithm>
#include <cstdio>
#include <memory>

#include "chain_plan_cases.h"
#include "chain_reference.cuh"
#include "chain_times.cuh"
#include "hopper.h"
#include "launch.h"

namespace {

using namespace chain_check;

// A product by its outputs and letters: s(caled), b(ias), r(esidual), g(ated), n(ormed). Its x is what the
// one before stores, its residual the last result that is as wide, else an input.
struct Phase {
  int n;
  const char* flags;
  bool has(char flag) const { return std::strchr(flags, flag) != nullptr; }
  int width() const { return has('g') ? n / 2 : n; }
};

struct Shape {
  std::string name;
  int k;  // of the first product
  std::vector<Phase> phases;
  int gap = 0;  // elements between rows
  float eps = 1e-5f;
};

// The products of a layer from attention's output on, the first `count` of them.
Shape layer(const char* name, int hidden, int queries, int inner, int qkv, int count = kChainPhases) {
  Shape shape = {std::string(name) + " " + std::to_string(count), queries,
                 {{hidden, "rn"}, {2 * inner, "sg"}, {hidden, count == 3 ? "r" : "rn"}, {qkv, "s"}}};
  shape.phases.resize(count);
  return shape;
}

bool same(const ChainTiles& a, const ChainTiles& b) {
  return a.outputs == b.outputs && a.rows == b.rows && a.cluster == b.cluster;
}

constexpr int kScratchGuard = 1024;  // bytes behind the scratch, which nobody may write

// The weights of a shape and what is the same for any number of rows.
struct Weights {
  explicit Weights(const Shape& shape) {
    int k = shape.k;
    for (size_t p = 0; p < shape.phases.size(); p++) {
      const Phase& phase = shape.phases[p];
      matrices.push_back(std::make_unique<Buffer>(phase.n, k, 0));
      matrices[p]->random(100 + p, 1 / std::sqrt(static_cast<float>(k)), false);
      std::vector<float> biasValues(phase.n), normValues(phase.n);
      for (float& each : biasValues) each = (generator()() % 200 - 100.0f) * 0.01f;
      for (float& each : normValues) each = (generator()() % 8 == 0 ? -0.5f : 0.5f) + generator()() % 100 * 0.01f;
      biases.push_back(std::make_unique<Device>(biasValues));
      norms.push_back(std::make_unique<Device>(normValues));
      if (phase.has('n')) width = std::max(width, phase.n);
      k = phase.width();
    }
    scratchBytes = chainScratchBytes(width);
    scratch = std::make_unique<Device>(scratchBytes + kScratchGuard);
    check(cudaMemset(scratch->as(), 0, scratchBytes), "cudaMemset");
  }
  bool scratchGuarded() const {
    const auto bytes = scratch->download<uint8_t>();
    return std::all_of(bytes.begin() + scratchBytes, bytes.end(), [](uint8_t byte) { return byte == 0xff; });
  }

  std::vector<std::unique_ptr<Buffer>> matrices;
  std::vector<std::unique_ptr<Device>> biases, norms;
  int width = 8;
  size_t scratchBytes;
  std::unique_ptr<Device> scratch;  // of all rows and tiles in turn, as in the engine
};

// A shape with some rows: inputs, results, and results as they were when they were found right.
class Case {
 public:
  Case(const Shape& shape, const Weights& weights, int rows)
      : shape_(shape),
        weights_(weights),
        rows_(rows),
        x_(rows, shape.k, shape.gap),
        xSource_(rows, shape.k, shape.gap),
        identity_(count(rows)),
        verdict_(rows) {
    xSource_.random(1, 1, true);
    for (size_t p = 0; p < shape.phases.size(); p++) {
      const Phase& phase = shape.phases[p];
      const auto buffer = [&](bool wanted) {
        return wanted ? std::make_unique<Buffer>(rows, phase.width(), shape.gap) : nullptr;
      };
      const bool external = phase.has('r') && summandOf(p) < 0;
      outs_.push_back(buffer(true));
      keptOuts_.push_back(buffer(true));
      normed_.push_back(buffer(phase.has('n')));
      keptNormed_.push_back(buffer(phase.has('n')));
      residuals_.push_back(buffer(external));
      sources_.push_back(buffer(external));
      if (external) sources_[p]->random(10 + p, 1, true);
    }
    const Phase& last = shape.phases.back();
    for (auto& each : finals_) each = std::make_unique<Buffer>(rows, last.width(), shape.gap);
  }

  Chain chain(bool inPlace = false) const {
    Chain chain;
    chain.count = static_cast<int>(shape_.phases.size());
    chain.scratch = weights_.scratch->as();
    const Buffer* x = &x_;
    for (int p = 0; p < chain.count; p++) {
      const Phase& phase = shape_.phases[p];
      const Buffer& out = outOf(p, inPlace);
      ChainPhase& to = chain.phases[p];
      to.weight = weights_.matrices[p]->data();
      to.n = phase.n;
      to.k = x->width;
      to.x = x->data();
      to.xStride = x->stride;
      to.scaled = phase.has('s');
      to.eps = to.scaled ? shape_.eps : 0;
      if (phase.has('b')) to.bias = weights_.biases[p]->as<float>();
      if (phase.has('r')) {
        const Buffer& residual = residualOf(p, inPlace);
        to.residual = residual.data();
        to.residualStride = residual.stride;
      }
      to.gated = phase.has('g');
      to.out = out.data();
      to.outStride = out.stride;
      x = &out;
      if (!phase.has('n')) continue;
      const Buffer& normed = normedOf(p, inPlace);
      to.normWeight = weights_.norms[p]->as<float>();
      to.normed = normed.data();
      to.normedStride = normed.stride;
      if (p + 1 < chain.count && shape_.phases[p + 1].has('s')) x = &normed;
    }
    return chain;
  }

  // Everything about one way of cutting: the largest error in units of its bound, infinite where
  // something is wrong that is no matter of rounding.
  double verify(const ChainTiles& tiles, const std::string& what) {
    const Watch watch(what);
    overlapLaunches = false;
    prepare(stream_);
    hopperChain(chain(), tiles, rows_, stream_);
    stream_.wait();
    double worst = 0;
    for (size_t p = 0; p < outs_.size(); p++) worst = std::max(worst, verifyPhase(p, what));
    keep();
    overlapLaunches = launchesCanOverlap();
    verifyRepeats(tiles, what + ", repeated", &worst);
    verifyInPlace(tiles, what + ", in place", &worst);
    overlapLaunches = false;
    return worst;
  }

 private:
  // The last phase before `p` whose result is as wide as its own, -1 if there is none.
  int summandOf(int p) const {
    int found = -1;
    for (int q = 0; q < p; q++) {
      if (shape_.phases[q].width() == shape_.phases[p].n) found = q;
    }
    return found;
  }
  // `inPlace` sums replace their residuals, and normed ones those that were read before.
  const Buffer& residualOf(int p, bool inPlace) const {
    return residuals_[p] ? *residuals_[p] : outOf(summandOf(p), inPlace);
  }
  const Buffer& outOf(int p, bool inPlace) const {
    return inPlace && shape_.phases[p].has('r') ? residualOf(p, inPlace) : *outs_[p];
  }
  const Buffer& normedOf(int p, bool inPlace) const {
    for (int q = 0; inPlace && q + 1 < p; q++) {
      if (normed_[q] && normed_[q]->width == normed_[p]->width) return *normed_[q];
    }
    return *normed_[p];
  }

  static std::vector<int> count(int rows) {
    std::vector<int> list(rows);
    for (int r = 0; r < rows; r++) list[r] = r;
    return list;
  }

  void copy(const Buffer& from, const Buffer& to, cudaStream_t stream) const {
    gatherRows(Elem::BF16, from.matrix(), identity_.as<int>(), rows_, to.matrix(), stream);
  }

  // Results are NaN, inputs as they were: in the end by small kernels, which launches overlap with.
  void prepare(cudaStream_t stream) const {
    for (size_t p = 0; p < outs_.size(); p++) {
      outs_[p]->poison(stream);
      if (normed_[p]) normed_[p]->poison(stream);
    }
    for (size_t p = 0; p < outs_.size(); p++) {
      if (residuals_[p]) copy(*sources_[p], *residuals_[p], stream);
    }
    copy(xSource_, x_, stream);
  }

  double verifyPhase(int p, const std::string& what) {
    const Chain all = chain();
    const ChainPhase& phase = all.phases[p];
    const ChainPhase* before = p > 0 ? &all.phases[p - 1] : nullptr;
    const std::string name = what + ": phase " + std::to_string(p);
    double worst = verdict_.results(phase, before, rows_, name);
    if (phase.normed) worst = std::max(worst, verdict_.normed(phase, rows_, name));
    for (const Buffer* each : {outs_[p].get(), normed_[p].get()}) {
      if (each && !verdict_.untouched(*each, name)) worst = INFINITY;
    }
    return worst;
  }

  void keep() {
    for (size_t p = 0; p < outs_.size(); p++) {
      keptOuts_[p]->take(*outs_[p], stream_);
      if (normed_[p]) keptNormed_[p]->take(*normed_[p], stream_);
    }
    stream_.wait();
  }

  void require(const Buffer& got, const Buffer& kept, const std::string& what, double* worst) {
    if (!verdict_.equal(got, kept, what)) *worst = INFINITY;
  }

  // In a graph that is replayed, behind small kernels and behind each other, with the same scratch. Every
  // result must be the same bit by bit.
  void verifyRepeats(const ChainTiles& tiles, const std::string& what, double* worst) {
    const Buffer& last = *outs_.back();
    for (auto& each : finals_) each->poison(stream_);
    Graph graph(stream_, [&] {
      for (auto& final : finals_) {
        prepare(stream_);
        hopperChain(chain(), tiles, rows_, stream_);
        copy(last, *final, stream_);
        hopperChain(chain(), tiles, rows_, stream_);
        hopperChain(chain(), tiles, rows_, stream_);
      }
    });
    for (int replay = 0; replay < 2; replay++) graph.launch(stream_);
    stream_.wait();
    for (size_t p = 0; p < outs_.size(); p++) {
      const std::string name = what + ": phase " + std::to_string(p);
      require(*outs_[p], *keptOuts_[p], name, worst);
      if (normed_[p]) require(*normed_[p], *keptNormed_[p], name + " normed", worst);
    }
    for (auto& each : finals_) require(*each, *keptOuts_.back(), what + ": a result on the way", worst);
  }

  // Results that nothing later replaces must be the same, too.
  void verifyInPlace(const ChainTiles& tiles, const std::string& what, double* worst) {
    prepare(stream_);
    hopperChain(chain(true), tiles, rows_, stream_);
    stream_.wait();
    const int count = static_cast<int>(outs_.size());
    for (int p = 0; p < count; p++) {
      bool out = true, normed = normed_[p] != nullptr;
      for (int q = p + 1; q < count; q++) {
        if (&outOf(q, true) == &outOf(p, true)) out = false;
        if (normed && normed_[q] && &normedOf(q, true) == &normedOf(p, true)) normed = false;
      }
      const std::string name = what + ": phase " + std::to_string(p);
      if (out) require(outOf(p, true), *keptOuts_[p], name, worst);
      if (normed) require(normedOf(p, true), *keptNormed_[p], name + " normed", worst);
    }
  }

  const Shape& shape_;
  const Weights& weights_;
  const int rows_;
  Stream stream_;
  Buffer x_, xSource_;
  Device identity_;
  Verdict verdict_;
  // By phase; `residuals_` are those that are inputs, made from `sources_`.
  std::vector<std::unique_ptr<Buffer>> outs_, keptOuts_, normed_, keptNormed_, residuals_, sources_;
  std::unique_ptr<Buffer> finals_[2];
};

void checkShape(const Shape& shape, const std::vector<int>& rowCounts) {
  const Weights weights(shape);
  double worst = 0;
  int runs = 0;
  // What was proposed for some number of rows must work with any.
  std::vector<ChainTiles> others;
  bool proposed = true;
  for (const int rows : rowCounts) {
    Case one(shape, weights, rows);
    std::vector<ChainTiles> list = chainTiles(one.chain(), rows);
    proposed = proposed && !list.empty();
    for (const ChainTiles& tiles : others) {
      const auto known = [&](const ChainTiles& each) { return same(each, tiles); };
      if (std::none_of(list.begin(), list.end(), known)) list.push_back(tiles);
    }
    others = list;
    for (const ChainTiles& tiles : list) {
      const std::string what = shape.name + ", " + std::to_string(rows) + " rows, " + describe(tiles);
      try {
        worst = std::max(worst, one.verify(tiles, what));
      } catch (const std::exception& error) {  // after which nothing works any more
        throw std::runtime_error(what + ": " + error.what());
      }
      runs++;
    }
  }
  if (!weights.scratchGuarded()) {
    complain(shape.name + ": wrote behind the scratch");
    worst = INFINITY;
  }
  if (!proposed) worst = INFINITY;
  const std::string name = shape.name + ", " + std::to_string(rowCounts.size()) + " numbers of rows, " +
                           std::to_string(runs) + " runs";
  report(name, worst, 1, proposed ? "" : "(no tiles proposed)");
}

void checkAll(bool quick, const std::string& only) {
  const std::vector<int> few = {1, 17, 130};
  const std::vector<int> many = {1,  2,  3,  7,   8,   9,   15,  16,  17,  31,  33,  48,
                                 63, 64, 65, 100, 127, 128, 129, 191, 192, 200, 255, 256};
  const std::vector<int> some = {1, 5, 16, 33, 64, 96, 130, 192, 256}, big = {3, 64, 200, 256};
  const auto run = [&](const Shape& shape, const std::vector<int>& rows) {
    if (shape.name.compare(0, only.size(), only) == 0) checkShape(shape, rows);
  };
  run({"odd", 72, {{208, "rn"}, {176, "sg"}, {208, "rn"}, {112, "s"}}, 8}, quick ? few : many);
  run({"biases", 136, {{64, "rbn"}, {176, "sbg"}, {64, "rbn"}, {1008, "sb"}}, 0, 0.5f}, quick ? few : many);
  run({"one product", 1000, {{80, "rb"}}, 24}, quick ? std::vector<int>{17} : few);
  if (quick) return;
  run({"two, the first alone normed", 64, {{256, "n"}, {1008, "s"}}, 8}, few);
  run({"one product, normed", 88, {{80, "n"}}, 24}, some);
  run({"three without norms", 208, {{336, ""}, {80, "b"}, {208, "r"}}, 8}, some);
  run({"gates first", 200, {{304, "g"}, {80, "rn"}, {16, "s"}}, 8}, some);
  run({"scales of scaled sums", 64, {{80, "n"}, {208, "sn"}, {272, "sn"}, {80, "sr"}}, 40}, some);
  run({"a normed sum that nothing reads", 80, {{144, "n"}, {144, "b"}, {144, "rn"}}, 8}, some);
  // More tiles than fit on the GPU at a time, and a sum of many of them.
  run({"wide", 80, {{24016, ""}, {80, "rn"}, {30000, "sg"}, {80, "r"}}, 8}, some);
  run(layer("hidden 64", 64, 128, 192, 256), some);
  for (const int count : {1, 2, 3, 4}) run(layer("0.6B", 1024, 2048, 3072, 4096, count), some);
  run(layer("1B", 2048, 2048, 8192, 3072, 3), big);
  run(layer("1B", 2048, 2048, 8192, 3072), big);
  run(layer("8B", 4096, 4096, 14336, 6144), big);
}

}  // namespace

int main(int count, char** arguments) {
  bool quick = false, times = false;
  std::string only;  // the start of the names of shapes
  for (int i = 1; i < count; i++) {
    const std::string argument = arguments[i];
    if (argument == "--quick") quick = true;
    else if (argument == "--time") times = true;
    else if (argument == "--only" && i + 1 < count) only = arguments[++i];
    else return std::printf("unknown argument %s\n", argument.c_str()), 2;
  }
  try {
    if (!times) chain_plan_cases::run();
    if (hopperAvailable()) {
      if (quick) Watch::seconds = 300;  // compute-sanitizer makes everything slow
      times ? timeLayers(only) : checkAll(quick, only);
    } else {
      std::printf("no Hopper GPU, or not built for sm_90a: no kernel to check\n");
    }
  } catch (const std::exception& error) {
    report("stopped", INFINITY, 0, error.what());
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed > 0;
}
