#include "chains.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <numeric>

#include "gemm.h"
#include "launch_times.h"

namespace millrace::cuda {
namespace {

// Numbers of rows for which is decided; one between two goes the next one's way. Where tiles have other sizes, too.
constexpr int kChainRows[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, kChainMaxRows};

// The best by two launches each are timed again, in turns with the launches.
constexpr size_t kFinalists = 4;
// What each launch takes longer in a step: timed here, its code is in the SMs' caches from the launch before,
// where attention's does not leave it. A chain's is small enough to stay. With 0.6B, a layer's seven launches took
// 2 to 4 us longer in steps than by these times, and its chain no longer (dev/chain.md, 12). While a launch that takes
// longer than this runs, the code of the next is fetched: those of 8B take no longer in steps.
constexpr double kColdCode = 0.4e-6, kLongLaunch = 8e-6;

// The launches that a chain stands for: products, and the norms and gates between them.
int launchesOf(const Chain& chain) {
  return std::accumulate(chain.phases, chain.phases + chain.count, 0, [](int sum, const ChainPhase& phase) {
    return sum + 1 + (phase.gated ? 1 : 0) + (phase.normWeight ? 1 : 0);
  });
}

// GPUs on which somebody in this process has the right.
constexpr int kMostDevices = 64;
std::atomic<bool> taken[kMostDevices];

// Under the multi-process service kernels of other processes run beside ours.
bool sharedByProcesses(int device) {
  int shared = 0;
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMpsEnabled, device), "cudaDeviceGetAttribute");
  return shared != 0;
}

}  // namespace

ChainRight::ChainRight(int device)
    : device_(device),
      held_(device < kMostDevices && !sharedByProcesses(device) && !taken[device].exchange(true)) {}

ChainRight::~ChainRight() {
  if (held_) taken[device_] = false;
}

bool Chains::sameShape(const Chain& a, const Chain& b) {
  const auto same = [](const ChainPhase& x, const ChainPhase& y) {
    return x.n == y.n && x.k == y.k && x.xStride == y.xStride && x.scaled == y.scaled &&
           !x.bias == !y.bias && !x.residual == !y.residual && x.residualStride == y.residualStride &&
           x.gated == y.gated && x.outStride == y.outStride && !x.normWeight == !y.normWeight &&
           x.normedStride == y.normedStride;
  };
  return a.count == b.count && std::equal(a.phases, a.phases + a.count, b.phases, same);
}

int Chains::add(const Chain& chain, int maxRows) {
  for (size_t i = 0; i < kinds_.size(); i++) {
    if (kinds_[i].maxRows == maxRows && sameShape(kinds_[i].shape, chain)) return static_cast<int>(i);
  }
  kinds_.push_back({chain, maxRows, {}});
  return count() - 1;
}

Chains::Choice Chains::choose(const Chain& shape, int rows, const std::vector<ChainUse>& uses,
                              void* workspace, cudaStream_t stream) {
  LaunchTimer timer(stream);
  const auto ahead = [&] {
    launchSmall(Elem::BF16, workspace, Gemm::kWorkspaceBytes, shape.phases[0].k, rows, stream);
    return true;
  };
  size_t next = 0;
  const auto launch = [&](const Choice& way) {
    ahead();
    const ChainUse& use = uses[next++ % uses.size()];
    if (way.chain) hopperChain(use.chain, way.tiles, rows, stream);
    else use.launches(rows);
    return true;
  };
  std::vector<Choice> list;
  const auto enter = [&](Choice way) {
    launch(way);  // outside of a graph first: that loads its code and chooses algorithms
    way.seconds = timer.seconds(2, [&] { return launch(way); });
    list.push_back(way);
  };
  for (const ChainTiles& tiles : chainTiles(shape, rows)) enter({true, tiles, 0});
  if (list.empty()) return {};
  const int launches = launchesOf(shape);
  const auto inStep = [&](const Choice& way) {
    const bool cold = !way.chain && way.seconds < kLongLaunch * launches;
    return way.seconds + (cold ? kColdCode * launches : 0);
  };
  const auto faster = [&](const Choice& a, const Choice& b) { return inStep(a) < inStep(b); };
  std::stable_sort(list.begin(), list.end(), faster);
  list.resize(std::min(list.size(), kFinalists));
  enter({});
  timer.inTurns(list, launch);
  Choice best = *std::min_element(list.begin(), list.end(), faster);
  best.seconds -= timer.seconds(16, ahead);
  return best;
}

void Chains::tune(int id, const std::vector<ChainUse>& uses, void* workspace, cudaStream_t stream) {
  const auto began = std::chrono::steady_clock::now();
  Kind& kind = kinds_[id];
  for (const int bucket : kChainRows) {
    const int rows = std::min(bucket, kind.maxRows);
    kind.tuned[rows] = choose(kind.shape, rows, uses, workspace, stream);
    if (rows == kind.maxRows) break;
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  tuningSeconds_ += took.count();
}

const ChainTiles* Chains::tiles(int id, int rows) const {
  const auto& tuned = kinds_[id].tuned;
  const auto found = tuned.lower_bound(rows);
  return found != tuned.end() && found->second.chain ? &found->second.tiles : nullptr;
}

}  // namespace millrace::cuda
