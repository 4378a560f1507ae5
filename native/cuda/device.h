// GPUs of this machine and what is held on one: memory, a stream, events.
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "check.h"

namespace millrace::cuda {

struct DeviceInfo {
  std::string name;
  int major, minor;  // compute capability
  int sms;
  size_t total;         // bytes of memory
  int driver, runtime;  // 1000 * major + 10 * minor
};

// All GPUs. Throws CudaError that says what is missing: driver, GPU, or a newer driver.
std::vector<DeviceInfo> devices();

// Bytes of memory of GPU `index` that can be had, once this process has taken what it needs to use
// the GPU at all.
size_t freeMemory(int index);

// Makes GPU `index` the current one of this thread. Throws CudaError if there is none such or it is
// too old for the kernels.
void useDevice(int index);

// Oldest compute capability the kernels run on.
constexpr int kOldestMajor = 8;

constexpr size_t kDeviceAlignment = 256;
inline size_t alignUp(size_t n, size_t multiple = kDeviceAlignment) {
  return (n + multiple - 1) / multiple * multiple;
}

// Memory of the device, or pinned memory of the host; throws std::bad_alloc where there is not enough.
enum class Place { Device, Pinned };

template <Place PLACE>
class Allocation {
 public:
  Allocation() = default;
  explicit Allocation(size_t bytes);
  ~Allocation();
  Allocation(Allocation&& other) noexcept { *this = std::move(other); }
  Allocation& operator=(Allocation&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  uint8_t* data_ = nullptr;
  size_t bytes_ = 0;
};
using DeviceMemory = Allocation<Place::Device>;
using PinnedMemory = Allocation<Place::Pinned>;

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  operator cudaStream_t() const { return stream_; }
  void wait() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  explicit Event(bool timed = false) {
    check(cudaEventCreateWithFlags(&event_, timed ? cudaEventDefault : cudaEventDisableTiming),
          "cudaEventCreate");
  }
  ~Event() {
    if (event_) cudaEventDestroy(event_);
  }
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&&) = delete;
  void record(cudaStream_t stream) { check(cudaEventRecord(event_, stream), "cudaEventRecord"); }
  void wait() const { check(cudaEventSynchronize(event_), "cudaEventSynchronize"); }
  // What is launched there from here on waits for it.
  void holdUp(cudaStream_t stream) const {
    check(cudaStreamWaitEvent(stream, event_, 0), "cudaStreamWaitEvent");
  }
  double secondsSince(const Event& start) const {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start.event_, event_), "cudaEventElapsedTime");
    return milliseconds * 1e-3;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace millrace::cuda
