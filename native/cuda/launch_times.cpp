#include "launch_times.h"

#include <algorithm>
#include <array>

namespace millrace::cuda {
namespace {

constexpr int kRounds = 3;
// Of a round of one way.
constexpr double kRoundSeconds = 300e-6;
constexpr int kMaxLaunches = 16;

}  // namespace

double LaunchTimer::seconds(int launches, const std::function<bool()>& launch) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  bool fine = true;
  for (int i = 0; i < launches && fine; i++) fine = launch();
  fine = cudaStreamEndCapture(stream_, &graph) == cudaSuccess && fine;
  fine = fine && cudaGraphInstantiate(&exec, graph, 0) == cudaSuccess;
  double seconds = kNever;
  if (fine) {
    // Else the first launch does it, which takes longer the more kernels there are.
    check(cudaGraphUpload(exec, stream_), "cudaGraphUpload");
    start_.record(stream_);
    check(cudaGraphLaunch(exec, stream_), "cudaGraphLaunch");
    end_.record(stream_);
    end_.wait();
    seconds = end_.secondsSince(start_) / launches;
  }
  if (exec) cudaGraphExecDestroy(exec);
  if (graph) cudaGraphDestroy(graph);
  cudaGetLastError();  // of a capture that failed: the candidate is left out, no more
  return seconds;
}

std::vector<double> LaunchTimer::mediansOf(const std::vector<double>& about,
                                           const std::function<bool(size_t)>& launch) {
  std::vector<std::array<double, kRounds>> rounds(about.size());
  for (int round = 0; round < kRounds; round++) {
    for (size_t way = 0; way < about.size(); way++) {
      const double wanted = kRoundSeconds / std::max(about[way], 1e-9);
      const int launches = static_cast<int>(std::clamp(wanted, 2.0, double(kMaxLaunches)));
      rounds[way][round] = seconds(launches, [&] { return launch(way); });
    }
  }
  std::vector<double> medians;
  for (auto& each : rounds) {
    std::sort(each.begin(), each.end());
    medians.push_back(each[kRounds / 2]);
  }
  return medians;
}

void launchSmall(Elem elem, void* workspace, size_t bytes, int width, int rows, cudaStream_t stream) {
  const int fitting = std::min<size_t>(width, bytes / 4 / rows) / 8 * 8;
  const Matrix moved = {workspace, fitting, fitting};
  add(elem, moved, moved, rows, moved, stream);
}

}  // namespace millrace::cuda
