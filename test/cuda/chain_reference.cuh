// What check_chain.cu measures results by: float64 sums by a plain kernel, since a host would take minutes
// for all results of large chains; bounds from the rounding to bfloat16; where results are wrong.
#pragma once
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>

#include "device.h"
#include "hopper_chain.h"
#include "kernel_check.h"

namespace chain_check {

using namespace kernel_check;
using Element = __nv_bfloat16;

// Ends the program if what it watches is not over in time: a grid that waits for itself never ends.
class Watch {
 public:
  inline static int seconds = 20;

  explicit Watch(const std::string& what) : thread_([this, what] {
    std::unique_lock<std::mutex> lock(mutex_);
    if (over_.wait_for(lock, std::chrono::seconds(seconds), [&] { return done_; })) return;
    std::printf("HANGS: %s: not done after %d s\nFAIL\n", what.c_str(), seconds);
    std::fflush(stdout);
    _exit(2);
  }) {}
  ~Watch() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      done_ = true;
    }
    over_.notify_one();
    thread_.join();
  }

 private:
  std::mutex mutex_;
  std::condition_variable over_;
  bool done_ = false;
  std::thread thread_;  // last: it uses the others
};

// One line on something wrong; of many only the first are printed.
inline void complain(const std::string& text) {
  static int lines = 0;
  if (++lines <= 40) std::printf("  FAIL %s\n", text.c_str());
  if (lines == 40) std::printf("  and more that is not printed\n");
}

// Uniform numbers with a deviation of `scale`, if wanted of another size in each row; gaps stay.
__global__ void randomRows(Element* data, int rows, int width, int64_t stride, uint32_t seed, float scale,
                           bool uneven) {
  const int64_t all = int64_t{rows} * width;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < all;
       i += int64_t{gridDim.x} * blockDim.x) {
    const int r = static_cast<int>(i / width), c = static_cast<int>(i % width);
    uint32_t x = (static_cast<uint32_t>(i) + seed * 0x51ED270Bu) * 0x9E3779B9u + seed;
    x = (x ^ x >> 16) * 0x85EBCA6Bu;
    x = (x ^ x >> 13) * 0xC2B2AE35u;
    const float factor = uneven ? ldexpf(1, r * 7 % 5 - 2) : 1;
    const float uniform = static_cast<int>(x ^ x >> 16) * 0x1p-31f;
    data[r * stride + c] = __float2bfloat16(uniform * 1.732f * scale * factor);
  }
}

// Rows of bfloat16. What lies between and behind them is NaN, which no result may show, and stays it.
struct Buffer {
  static constexpr int kRowsBehind = 8;

  Buffer(int rows, int width, int gap)
      : rows(rows), width(width), stride(width + gap), bytes(size_t(rows + kRowsBehind) * stride * 2),
        memory(bytes) {}
  Element* data() const { return memory.as<Element>(); }
  Matrix matrix() const { return {data(), stride, width}; }
  void poison(cudaStream_t stream) const {
    check(cudaMemsetAsync(data(), 0xff, bytes, stream), "cudaMemset");
  }
  void random(uint32_t seed, float scale, bool uneven) const {
    randomRows<<<1024, 256>>>(data(), rows, width, stride, seed, scale, uneven);
    check(cudaDeviceSynchronize(), "random numbers");
  }
  void take(const Buffer& other, cudaStream_t stream) const {
    check(cudaMemcpyAsync(data(), other.data(), bytes, cudaMemcpyDeviceToDevice, stream), "copy");
  }

  const int rows, width;
  const int64_t stride;
  const size_t bytes;
  Device memory;
};

// What is wrong with the results of a phase.
struct Found {
  unsigned long long worst;  // the largest error in bounds, as the bits of a float, and its place
  int wrong, firstRow, lastRow, firstColumn, lastColumn;
};
constexpr Found kNothingFound = {0, 0, 1 << 30, -1, 1 << 30, -1};

__device__ inline void note(Found* found, double got, double want, double bound, int r, int c, int probe) {
  double error = fabs(got - want) / bound;
  if (!(error <= 1e30)) error = 1e30;  // NaN, too
  const int place = r << 16 | c;
  if (place == probe) printf("    got %g, want %g, bound %g\n", got, want, bound);
  const unsigned long long entry =
      static_cast<unsigned long long>(__float_as_uint(static_cast<float>(error))) << 32 | place;
  if (entry > *reinterpret_cast<volatile unsigned long long*>(&found->worst)) atomicMax(&found->worst, entry);
  if (error <= 1) return;
  atomicAdd(&found->wrong, 1);
  atomicMin(&found->firstRow, r);
  atomicMax(&found->lastRow, r);
  atomicMin(&found->firstColumn, c);
  atomicMax(&found->lastColumn, c);
}

constexpr int kRowsAtOnce = 8;
constexpr double kUnit = 0x1p-8;     // of rounding to bfloat16
constexpr double kSums = 4e-6;       // of sums by tensor cores, of the sum of absolute values
constexpr double kFunction = 1e-5;   // of a sum of squares and its root, of an exponential

// A warp computes one output for some rows: all that goes into `phase.out`, beside what is stored there.
__global__ void checkResults(ChainPhase phase, const double* scales, int rows, int probe, Found* found) {
  const int c = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  const int width = phase.gated ? phase.n / 2 : phase.n;
  if (c >= width) return;
  const auto* weight = static_cast<const Element*>(phase.weight);
  const auto* x = static_cast<const Element*>(phase.x);
  const int first = blockIdx.y * kRowsAtOnce;
  // [1]: of what gates multiply.
  double sum[2][kRowsAtOnce] = {}, all[2][kRowsAtOnce] = {};
  for (int i = lane; i < phase.k; i += 32) {
    const double w[2] = {__bfloat162float(weight[int64_t{c} * phase.k + i]),
                         phase.gated ? __bfloat162float(weight[int64_t{c + width} * phase.k + i]) : 0.0f};
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; r++) {
      const double value = __bfloat162float(x[min(first + r, rows - 1) * phase.xStride + i]);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        sum[half][r] += w[half] * value;
        all[half][r] += fabs(w[half] * value);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRowsAtOnce; r++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      for (int step = 16; step > 0; step /= 2) {
        sum[half][r] += __shfl_xor_sync(~0u, sum[half][r], step);
        all[half][r] += __shfl_xor_sync(~0u, all[half][r], step);
      }
    }
    const int row = first + r;
    if (lane > 0 || row >= rows) continue;
    double value[2], error[2];
    for (int half = 0; half < 2; half++) {
      const double scale = phase.scaled ? scales[row] : 1;
      value[half] = sum[half][r] * scale;
      error[half] = kSums * all[half][r] * scale + (phase.scaled ? kFunction * fabs(value[half]) : 0);
      if (phase.bias) value[half] += phase.bias[c + half * width * phase.gated];
    }
    double want = value[0], off = error[0];
    if (phase.gated) {
      const double silu = value[0] / (1 + exp(-value[0]));
      want = silu * value[1];
      // The slope of silu is at most 1.1.
      off = 1.1 * error[0] * (fabs(value[1]) + error[1]) + fabs(silu) * error[1] + kFunction * fabs(want);
    }
    if (phase.residual) {
      want += __bfloat162float(
          static_cast<const Element*>(phase.residual)[row * phase.residualStride + c]);
    }
    const double got = __bfloat162float(static_cast<const Element*>(phase.out)[row * phase.outStride + c]);
    note(found, got, want, kUnit * fabs(want) + off + 1e-6, row, c, probe);
  }
}

// Of the sums as they are stored, the rounded ones.
__global__ void checkNormed(ChainPhase phase, int rows, int probe, Found* found) {
  for (int c = threadIdx.x; c < phase.n; c += blockDim.x) {
    const int r = blockIdx.x;
    const double sum = __bfloat162float(static_cast<const Element*>(phase.out)[r * phase.outStride + c]);
    const double got =
        __bfloat162float(static_cast<const Element*>(phase.normed)[r * phase.normedStride + c]);
    const double want = sum * phase.normWeight[c];
    note(found, got, want, kUnit * fabs(want) * (1 + 1e-5) + 1e-30, r, c, probe);
  }
}

// What rows of `before` are divided by to be normed, by one warp a row.
__global__ void scalesOf(ChainPhase before, float eps, double* scales) {
  const int r = blockIdx.x;
  double squares = 0;
  for (int c = threadIdx.x; c < before.n; c += 32) {
    const double x = __bfloat162float(static_cast<const Element*>(before.out)[r * before.outStride + c]);
    squares += x * x;
  }
  for (int step = 16; step > 0; step /= 2) squares += __shfl_xor_sync(~0u, squares, step);
  if (threadIdx.x == 0) scales[r] = rsqrt(squares / before.n + eps);
}

// Counts what is not NaN behind and between rows.
__global__ void checkGaps(const uint16_t* data, int rows, int width, int64_t stride, Found* found) {
  const int r = blockIdx.x;
  for (int c = threadIdx.x; c < stride; c += blockDim.x) {
    if (r < rows && c < width) continue;
    if (data[r * stride + c] != 0xffff) note(found, NAN, 0, 1, r, c, -1);
  }
}

__global__ void compareBits(const uint16_t* a, const uint16_t* b, int64_t stride, Found* found) {
  const int r = blockIdx.x;
  for (int c = threadIdx.x; c < stride; c += blockDim.x) {
    if (a[r * stride + c] != b[r * stride + c]) note(found, NAN, 0, 1, r, c, -1);
  }
}

// Judges buffers, and says what is wrong with them.
class Verdict {
 public:
  explicit Verdict(int rows) : scales_(rows * sizeof(double)), found_(sizeof(Found)) {}

  // The results of a phase by what it read, where that is still there; as the largest error in bounds.
  double results(const ChainPhase& phase, const ChainPhase* before, int rows, const std::string& name) {
    if (phase.scaled) scalesOf<<<rows, 32>>>(*before, phase.eps, scales_.as<double>());
    const int width = phase.gated ? phase.n / 2 : phase.n;
    const dim3 grid((width + 7) / 8, (rows + kRowsAtOnce - 1) / kRowsAtOnce);
    return judge(name, [&](int probe) {
      checkResults<<<grid, 256>>>(phase, scales_.as<double>(), rows, probe, found_.as<Found>());
    });
  }
  double normed(const ChainPhase& phase, int rows, const std::string& name) {
    return judge(name + " normed", [&](int probe) {
      checkNormed<<<rows, 256>>>(phase, rows, probe, found_.as<Found>());
    });
  }
  bool untouched(const Buffer& buffer, const std::string& name) {
    return judge(name + " wrote between or behind rows", [&](int) {
      checkGaps<<<buffer.rows + Buffer::kRowsBehind, 256>>>(reinterpret_cast<const uint16_t*>(buffer.data()),
                                                            buffer.rows, buffer.width, buffer.stride,
                                                            found_.as<Found>());
    }) <= 1;
  }
  bool equal(const Buffer& got, const Buffer& kept, const std::string& name) {
    return judge(name + " differs from the first run", [&](int) {
      compareBits<<<got.rows + Buffer::kRowsBehind, 256>>>(
          reinterpret_cast<const uint16_t*>(got.data()), reinterpret_cast<const uint16_t*>(kept.data()),
          got.stride, found_.as<Found>());
    }) <= 1;
  }

 private:
  template <class Check>
  double judge(const std::string& name, Check&& run) {
    const auto once = [&](int probe) {
      check(cudaMemcpy(found_.as(), &kNothingFound, sizeof(Found), cudaMemcpyDefault), "upload");
      run(probe);
      check(cudaGetLastError(), "a check's kernel");
      return found_.download<Found>()[0];
    };
    const Found found = once(-1);
    const uint32_t bits = static_cast<uint32_t>(found.worst >> 32);
    float worst;
    std::memcpy(&worst, &bits, sizeof(worst));
    if (found.wrong == 0) return worst;
    const int place = static_cast<int>(found.worst & 0xffffffff);
    char text[200];
    std::snprintf(text, sizeof(text), ": %d wrong in rows %d..%d, columns %d..%d, worst %.3g bounds at %d, %d",
                  found.wrong, found.firstRow, found.lastRow, found.firstColumn, found.lastColumn, worst,
                  place >> 16, place & 0xffff);
    complain(name + text);
    if (failuresShown_++ < 8) once(place);
    return worst;
  }

  Device scales_, found_;
  int failuresShown_ = 0;
};

}  // namespace chain_check
