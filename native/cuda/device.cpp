#include "device.h"

#include <dlfcn.h>

#include <new>

namespace millrace::cuda {
namespace {

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

[[noreturn]] void failWithout(cudaError_t status) {
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
  if (!driver) {
    throw CudaError(
        "the NVIDIA driver is not installed here (libcuda.so.1 was not found). Install it, or in a "
        "container start that with its GPUs (docker run --gpus all)");
  }
  int has = 0, needs = 0;
  cudaDriverGetVersion(&has);
  cudaRuntimeGetVersion(&needs);
  if (status == cudaErrorInsufficientDriver) {
    throw CudaError("the NVIDIA driver is too old: it knows CUDA " + version(has) +
                    ", this build needs " + version(needs) +
                    ". Update the driver, or build with an older CUDA toolkit (12.4 or later)");
  }
  if (status == cudaErrorNoDevice) {
    throw CudaError(
        "the NVIDIA driver is there but shows no GPU. See `nvidia-smi` and CUDA_VISIBLE_DEVICES");
  }
  throw CudaError(std::string("no GPU can be used: ") + cudaGetErrorString(status));
}

int countDevices() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) failWithout(status);
  if (count == 0) failWithout(cudaErrorNoDevice);
  return count;
}

}  // namespace

std::vector<DeviceInfo> devices() {
  std::vector<DeviceInfo> list;
  const int count = countDevices();
  for (int i = 0; i < count; i++) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, i), "cudaGetDeviceProperties");
    DeviceInfo info{};
    info.name = properties.name;
    info.major = properties.major;
    info.minor = properties.minor;
    info.sms = properties.multiProcessorCount;
    info.total = properties.totalGlobalMem;
    check(cudaDriverGetVersion(&info.driver), "cudaDriverGetVersion");
    check(cudaRuntimeGetVersion(&info.runtime), "cudaRuntimeGetVersion");
    list.push_back(info);
  }
  return list;
}

void useDevice(int index) {
  const int count = countDevices();
  if (index >= count) {
    throw CudaError("there is no GPU " + std::to_string(index) + ": this machine has " +
                    std::to_string(count) + ", counted from 0");
  }
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "the GPU");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index), "the GPU");
  if (major < kOldestMajor) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
    throw CudaError(std::string("the GPU ") + properties.name + " has compute capability " +
                    std::to_string(major) + "." + std::to_string(minor) +
                    "; 8.0 (Ampere) or later is needed");
  }
  check(cudaSetDevice(index), "cudaSetDevice");
}

size_t freeMemory(int index) {
  useDevice(index);
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return free;
}

template <Place PLACE>
Allocation<PLACE>::Allocation(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  void* data = nullptr;
  const cudaError_t status = PLACE == Place::Device
                                 ? cudaMalloc(&data, bytes)
                                 : cudaHostAlloc(&data, bytes, cudaHostAllocDefault);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky: the next call must not see it
    throw std::bad_alloc();
  }
  check(status, PLACE == Place::Device ? "cudaMalloc" : "cudaHostAlloc");
  data_ = static_cast<uint8_t*>(data);
}

template <Place PLACE>
Allocation<PLACE>::~Allocation() {
  if (!data_) return;
  if (PLACE == Place::Device) {
    cudaFree(data_);
  } else {
    cudaFreeHost(data_);
  }
}

template class Allocation<Place::Device>;
template class Allocation<Place::Pinned>;

}  // namespace millrace::cuda
