// Times of layers from attention's output to the next queries, keys and values: as launches of products
// and small kernels, and as chains.
#pragma once
#include <algorithm>

#include "chain_reference.cuh"
#include "gemm.h"
#include "launch.h"

namespace chain_check {

struct LayerSize {
  const char* name;
  int hidden, queries, inner, qkv;
  size_t bytes() const {
    return 2 * (size_t(hidden) * (queries + 3 * size_t(inner)) + size_t(qkv) * hidden);
  }
};

// Layers with weights of their own, at least a GB of them in turn, so that none comes from the L2 cache.
class TimedLayers {
 public:
  static constexpr int kMaxRows = 256;

  TimedLayers(const LayerSize& size, Gemm& gemm)
      : size_(size),
        gemm_(gemm),
        count_(static_cast<int>((size_t(1) << 30) / size.bytes() + 1)),
        arena_(size.bytes() * count_),
        ones_(std::vector<float>(size.hidden, 1.0f)),
        scratch_(chainScratchBytes(size.hidden)),
        attended_(kMaxRows, size.queries, 0),
        hidden_{{kMaxRows, size.hidden, 0}, {kMaxRows, size.hidden, 0}},
        normed_(kMaxRows, size.hidden, 0),
        gateUp_(kMaxRows, 2 * size.inner, 0),
        act_(kMaxRows, size.inner, 0),
        qkv_(kMaxRows, size.qkv, 0) {
    check(cudaMemset(scratch_.as(), 0, chainScratchBytes(size.hidden)), "cudaMemset");
    const struct {
      int n, k;
      const Buffer *x, *residual, *out;
    } products[] = {{size.hidden, size.queries, &attended_, &hidden_[0], &hidden_[1]},
                    {2 * size.inner, size.hidden, &normed_, nullptr, &gateUp_},
                    {size.hidden, size.inner, &act_, &hidden_[1], &hidden_[0]},
                    {size.qkv, size.hidden, &normed_, nullptr, &qkv_}};
    Element* next = arena_.as<Element>();
    for (int i = 0; i < count_; i++) {
      for (int p = 0; p < kChainPhases; p++) {
        const auto& [n, k, x, residual, out] = products[p];
        randomRows<<<1024, 256>>>(next, n, k, k, i * kChainPhases + p, 1 / std::sqrt(float(k)), false);
        ProductCall call{};
        call.weight = next;
        call.x = x->data();
        call.residual = residual ? residual->data() : nullptr;
        call.out = out->data();
        calls_[p].push_back(call);
        next += size_t(n) * k;
      }
    }
    for (const Buffer* each : {&attended_, &hidden_[0], &hidden_[1], &normed_, &act_, &qkv_}) {
      each->random(7, 1, false);
    }
    for (int p = 0; p < kChainPhases; p++) {
      const auto& [n, k, x, residual, out] = products[p];
      ids_[p] = gemm.add({n, k, Elem::BF16, false, false, residual != nullptr, false, x->stride,
                          residual ? residual->stride : 0, out->stride, 16, false});
      gemm.tune(ids_[p], calls_[p], kMaxRows, stream_);
    }
  }

  void time(int rows) {
    struct Way {
      std::string name;
      std::unique_ptr<Graph> graph;
      std::vector<double> us;
      double median() {
        std::sort(us.begin(), us.end());
        return us[us.size() / 2];
      }
    };
    std::vector<Way> ways;
    const auto enter = [&](const std::string& name, const std::function<void(int)>& layer) {
      const Watch watch(std::string(size_.name) + " " + std::to_string(rows) + " rows, " + name);
      attend(rows);
      layer(0);  // outside of a graph first: that loads its code
      stream_.wait();
      ways.push_back({name, std::make_unique<Graph>(stream_, [&] {
        for (int i = 0; i < count_; i++) {
          attend(rows);
          layer(i);
        }
      }), {}});
      replay(*ways.back().graph);
      ways.back().us.push_back(replay(*ways.back().graph));
    };
    enter("small kernel alone", [](int) {});
    enter("launches", [&](int i) { launches(i, rows); });
    for (const ChainTiles& tiles : chainTiles(chain(0), rows)) {
      enter(describe(tiles), [&](int i) { hopperChain(chain(i), tiles, rows, stream_); });
    }
    // The best go on, in turns with the launches.
    const size_t fixed = 2;
    std::sort(ways.begin() + fixed, ways.end(), [](const Way& a, const Way& b) { return a.us[0] < b.us[0]; });
    ways.resize(std::min(ways.size(), fixed + 5));
    for (Way& each : ways) each.us.clear();
    for (int round = 0; round < 9; round++) {
      for (Way& each : ways) each.us.push_back(replay(*each.graph));
    }
    std::sort(ways.begin() + fixed, ways.end(), [](Way& a, Way& b) { return a.median() < b.median(); });
    const double plain = ways[1].median();
    std::printf("%-5s rows %3d  add %.2f  launches %7.2f us", size_.name, rows, ways[0].median(), plain);
    if (ways.size() == fixed) std::printf("  no tiles");
    else std::printf("  chain %7.2f %5.2f x ", ways[fixed].median(), plain / ways[fixed].median());
    for (size_t i = fixed; i < std::min(ways.size(), fixed + 3); i++) {
      std::printf("%s %.2f %s", i == fixed ? "" : " |", ways[i].median(), ways[i].name.c_str());
    }
    std::printf("\n");
    std::fflush(stdout);
  }

 private:
  // In place of attention.
  void attend(int rows) {
    const Matrix queries = {qkv_.data(), qkv_.stride, size_.queries};
    add(Elem::BF16, queries, queries, rows, attended_.matrix(), stream_);
  }

  void launches(int i, int rows) {
    const auto product = [&](int p) { gemm_.run(ids_[p], calls_[p][i], rows, stream_); };
    const auto norm = [&](const Buffer& x) {
      rmsNorm(Elem::BF16, x.matrix(), nullptr, ones_.as<float>(), 1e-5f, size_.hidden, rows,
              normed_.matrix(), stream_);
    };
    product(0);
    norm(hidden_[1]);
    product(1);
    siluMul(Elem::BF16, gateUp_.matrix(), rows, act_.matrix(), stream_);
    product(2);
    norm(hidden_[0]);
    product(3);
  }

  Chain chain(int i) {
    const auto phase = [&](int p, int n, const Buffer& x, const Buffer& out) {
      ChainPhase phase;
      phase.weight = calls_[p][i].weight;
      phase.n = n;
      phase.k = x.width;
      phase.x = x.data();
      phase.xStride = x.stride;
      phase.out = out.data();
      phase.outStride = out.stride;
      return phase;
    };
    const auto sum = [&](ChainPhase phase, const Buffer& residual) {
      phase.residual = residual.data();
      phase.residualStride = residual.stride;
      phase.normWeight = ones_.as<float>();
      phase.normed = normed_.data();
      phase.normedStride = normed_.stride;
      return phase;
    };
    Chain chain;
    chain.count = kChainPhases;
    chain.scratch = scratch_.as();
    chain.phases[0] = sum(phase(0, size_.hidden, attended_, hidden_[1]), hidden_[0]);
    chain.phases[1] = phase(1, 2 * size_.inner, normed_, act_);
    chain.phases[1].gated = true;
    chain.phases[2] = sum(phase(2, size_.hidden, act_, hidden_[0]), hidden_[1]);
    chain.phases[3] = phase(3, size_.qkv, normed_, qkv_);
    for (int p : {1, 3}) {
      chain.phases[p].scaled = true;
      chain.phases[p].eps = 1e-5f;
    }
    return chain;
  }

  // Microseconds a layer.
  double replay(const Graph& graph) {
    start_.record(stream_);
    graph.launch(stream_);
    end_.record(stream_);
    end_.wait();
    return end_.secondsSince(start_) * 1e6 / count_;
  }

  const LayerSize size_;
  Gemm& gemm_;
  const int count_;
  Stream stream_;
  Event start_{true}, end_{true};
  Device arena_, ones_, scratch_;
  const Buffer attended_, hidden_[2], normed_, gateUp_, act_, qkv_;
  std::vector<ProductCall> calls_[kChainPhases];
  int ids_[kChainPhases];
};

inline void timeLayers(const std::string& only) {
  overlapLaunches = launchesCanOverlap();
  const Device workspace(Gemm::kWorkspaceBytes);
  for (const LayerSize& size : {LayerSize{"0.6B", 1024, 2048, 3072, 4096},
                                LayerSize{"1B", 2048, 2048, 8192, 3072},
                                LayerSize{"8B", 4096, 4096, 14336, 6144}}) {
    if (std::string(size.name).compare(0, only.size(), only) != 0) continue;
    Gemm gemm({"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}, workspace.as());
    TimedLayers layers(size, gemm);
    for (const int rows : {1, 16, 32, 64, 80, 96, 112, 128, 160, 192, 224, 256}) layers.time(rows);
  }
}

}  // namespace chain_check
