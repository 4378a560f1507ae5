// Times of launches as a step has them: what is chosen at load is chosen by these.
#pragma once
#include <functional>
#include <vector>

#include "device.h"
#include "kernels.h"

namespace millrace::cuda {

// Numbers of rows for which something is chosen; one between two takes what the next has.
inline constexpr int kTunedRows[] = {1,   2,   4,   8,   16,  24,  32,   48,   64,   96,   128,
                                     192, 256, 384, 512, 768, 1024, 2048, 4096, 8192, 16384};
// Of what cannot be launched.
constexpr double kNever = 1e30;

class LaunchTimer {
 public:
  explicit LaunchTimer(cudaStream_t stream) : stream_(stream) {}

  // Seconds of one of so many calls of `launch` in a graph, so that the time is the GPU's and not that of
  // the calls; kNever if one says false.
  double seconds(int launches, const std::function<bool()>& launch);
  // Times ways to do the same, whose `seconds` say about how long each takes, in rounds in which they take
  // turns: the medians are their `seconds` then. `launch` is given a way.
  template <class Way, class Launch>
  void inTurns(std::vector<Way>& ways, const Launch& launch) {
    std::vector<double> about;
    for (const Way& each : ways) about.push_back(each.seconds);
    const auto medians = mediansOf(about, [&](size_t way) { return launch(ways[way]); });
    for (size_t i = 0; i < ways.size(); i++) ways[i].seconds = medians[i];
  }

 private:
  std::vector<double> mediansOf(const std::vector<double>& about,
                                const std::function<bool(size_t)>& launch);

  cudaStream_t stream_;
  Event start_{true}, end_{true};
};

// A small kernel as it comes before a product in a step. It moves rows within `workspace`.
void launchSmall(Elem elem, void* workspace, size_t bytes, int width, int rows, cudaStream_t stream);

}  // namespace millrace::cuda
