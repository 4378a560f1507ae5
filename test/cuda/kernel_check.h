// What check_kernels.cu stands on: buffers of any storage type, comparison, times.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "kernels.h"

namespace kernel_check {

using namespace millrace::cuda;

inline int passed = 0, failed = 0;

inline void report(const std::string& name, double error, double bound, const char* note = "") {
  const bool ok = error <= bound;  // false for NaN
  (ok ? passed : failed)++;
  std::printf("%-66s error %9.3g  bound %9.3g  %s %s\n", name.c_str(), error, bound,
              ok ? "ok" : "FAIL", note);
}

inline const char* nameOf(Elem elem) {
  return elem == Elem::F32 ? "f32" : elem == Elem::F16 ? "f16" : "bf16";
}
// The largest relative error of one rounding to the type; of float32, of a short sum.
inline double unitOf(Elem elem) {
  return elem == Elem::F32 ? 4e-6 : elem == Elem::F16 ? 0x1p-11 : 0x1p-8;
}

inline float decode(Elem elem, const void* data, size_t i) {
  if (elem == Elem::F32) return static_cast<const float*>(data)[i];
  if (elem == Elem::F16) return __half2float(static_cast<const __half*>(data)[i]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
}
inline void encode(Elem elem, void* data, size_t i, float value) {
  if (elem == Elem::F32) static_cast<float*>(data)[i] = value;
  if (elem == Elem::F16) static_cast<__half*>(data)[i] = __float2half_rn(value);
  if (elem == Elem::BF16) static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(value);
}

// Calls f(i) for i < count on all cores.
inline void parallelFor(int64_t count, const std::function<void(int64_t)>& f) {
  std::atomic<int64_t> next{0};
  std::vector<std::thread> threads;
  const int cores = std::max(1u, std::thread::hardware_concurrency());
  for (int t = 0; t < cores; t++) {
    threads.emplace_back([&] {
      for (int64_t i = next++; i < count; i = next++) f(i);
    });
  }
  for (auto& thread : threads) thread.join();
}

// Device memory, filled with NaN (every type: all bits set) until something is uploaded.
class Device {
 public:
  explicit Device(size_t bytes) : bytes_(bytes) {
    check(cudaMalloc(&data_, bytes + 256), "cudaMalloc");
    check(cudaMemset(data_, 0xff, bytes + 256), "cudaMemset");
  }
  template <class T>
  explicit Device(const std::vector<T>& values) : Device(values.size() * sizeof(T)) {
    if (bytes_ > 0) check(cudaMemcpy(data_, values.data(), bytes_, cudaMemcpyDefault), "upload");
  }
  ~Device() { cudaFree(data_); }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  template <class T = void>
  T* as() const {
    return static_cast<T*>(data_);
  }
  template <class T>
  std::vector<T> download() const {
    std::vector<T> values(bytes_ / sizeof(T));
    check(cudaDeviceSynchronize(), "kernel");
    check(cudaMemcpy(values.data(), data_, bytes_, cudaMemcpyDefault), "download");
    return values;
  }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

inline std::mt19937& generator() {
  static std::mt19937 random(7);
  return random;
}

// Rows of a storage type: on the device, and as uploaded (rounded) on the host. `shift` elements
// before the first row take the alignment away.
class Rows {
 public:
  Rows(Elem elem, int rows, int width, int64_t stride, int shift = 0)
      : elem(elem), rows(rows), width(width), stride(stride), shift(shift),
        device((rows * stride + shift) * bytesOf(elem)) {}

  // Normal numbers times `scale`; gaps between rows stay NaN.
  Rows& fill(float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    return fillWith([&] { return normal(generator()); });
  }
  Rows& fillWith(const std::function<float()>& value) {
    std::vector<uint8_t> bytes((rows * stride + shift) * bytesOf(elem), 0xff);
    host.assign(rows * stride, NAN);
    for (int r = 0; r < rows; r++) {
      for (int c = 0; c < width; c++) {
        encode(elem, bytes.data(), shift + r * stride + c, value());
        host[r * stride + c] = decode(elem, bytes.data(), shift + r * stride + c);
      }
    }
    check(cudaMemcpy(device.as(), bytes.data(), bytes.size(), cudaMemcpyDefault), "upload");
    return *this;
  }
  Matrix matrix() const {
    return {device.as<char>() + shift * bytesOf(elem), stride, width};
  }
  double at(int64_t r, int64_t c) const { return host[r * stride + c]; }

  // |result - expected| in units of the bound `relative * |expected| + absolute`: at most 1. Gaps
  // must still be NaN, and so must what is expected to be NaN.
  void compare(const std::string& name, double relative, double absolute,
               const std::function<double(int, int)>& expected) const {
    const std::vector<uint8_t> bytes = device.download<uint8_t>();
    double worst = 0;
    bool gaps = true;
    std::mutex mutex;
    parallelFor(rows, [&](int64_t r) {
      double rowWorst = 0;
      bool rowGaps = true;
      for (int c = 0; c < stride; c++) {
        const double got = decode(elem, bytes.data(), shift + r * stride + c);
        if (c >= width) {
          rowGaps = rowGaps && std::isnan(got);
          continue;
        }
        const double want = expected(static_cast<int>(r), c);
        double error = std::abs(got - want) / (relative * std::abs(want) + absolute);
        if (std::isnan(want)) error = std::isnan(got) ? 0 : INFINITY;
        if (!(error <= rowWorst)) rowWorst = std::isnan(error) ? INFINITY : error;
      }
      const std::lock_guard<std::mutex> lock(mutex);
      worst = std::max(worst, rowWorst);
      gaps = gaps && rowGaps;
    });
    report(name, gaps ? worst : INFINITY, 1, gaps ? "" : "(wrote between rows)");
  }

  const Elem elem;
  const int rows, width;
  const int64_t stride;
  const int shift;
  Device device;
  std::vector<float> host;
};

// What is captured in `body`, to be replayed.
class Graph {
 public:
  Graph(cudaStream_t stream, const std::function<void()>& body) {
    cudaGraph_t graph = nullptr;
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
    body();
    check(cudaStreamEndCapture(stream, &graph), "capture");
    check(cudaGraphInstantiate(&exec_, graph, 0), "graph");
    cudaGraphDestroy(graph);
  }
  ~Graph() { cudaGraphExecDestroy(exec_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void launch(cudaStream_t stream) const { check(cudaGraphLaunch(exec_, stream), "cudaGraphLaunch"); }

 private:
  cudaGraphExec_t exec_ = nullptr;
};

// Microseconds of one of the launches of f(0) .. f(repeats - 1), replayed as one graph.
inline double timeOf(int repeats, const std::function<void(int, cudaStream_t)>& f) {
  cudaStream_t stream;
  cudaEvent_t start, stop;
  check(cudaStreamCreate(&stream), "stream");
  check(cudaEventCreate(&start), "event");
  check(cudaEventCreate(&stop), "event");
  const Graph graph(stream, [&] {
    for (int i = 0; i < repeats; i++) f(i, stream);
  });
  float best = INFINITY;
  for (int round = 0; round < 4; round++) {
    check(cudaEventRecord(start, stream), "event");
    graph.launch(stream);
    check(cudaEventRecord(stop, stream), "event");
    check(cudaEventSynchronize(stop), "graph");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start, stop), "event");
    if (round > 0) best = std::min(best, ms);
  }
  cudaEventDestroy(start);
  cudaEventDestroy(stop);
  cudaStreamDestroy(stream);
  return best * 1e3 / repeats;
}

}  // namespace kernel_check
