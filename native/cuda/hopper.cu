#include "hopper.h"

#include <atomic>
#include <string>

#include "check.h"
#include "hopper.cuh"

namespace millrace::cuda {
namespace {

// Tells by its shared memory, without being launched, whether the code of sm_90a is what the device runs.
__global__ void hopperProbe(int* out) {
#if defined(MILLRACE_HOPPER)
  __shared__ int seen[32];
  seen[threadIdx.x] = out[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = seen[31 - threadIdx.x];
#endif
}

decltype(&cuTensorMapEncodeTiled) encodeMap() {
  static const auto function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault,
                                           &result),
          "cudaGetDriverEntryPointByVersion");
#else
    check(cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &found, cudaEnableDefault, &result),
          "cudaGetDriverEntryPoint");
#endif
    if (!found) throw CudaError("the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  return function;
}

// Strides in bytes, of all dimensions but the first.
template <int kRank>
CUtensorMap encoded(CUtensorMapDataType type, const void* data, const cuuint64_t (&sizes)[kRank],
                    const cuuint64_t (&strides)[kRank - 1], const cuuint32_t (&box)[kRank], bool swizzled) {
  CUtensorMap map;
  cuuint32_t steps[kRank];
  for (cuuint32_t& step : steps) step = 1;
  const CUresult result =
      encodeMap()(&map, type, kRank, const_cast<void*>(data), sizes, strides, box, steps,
                  CU_TENSOR_MAP_INTERLEAVE_NONE,
                  swizzled ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw CudaError("cuTensorMapEncodeTiled: error " + std::to_string(result));
  }
  return map;
}

bool isHopper(int device) {
  int major = 0, minor = 0;
  const auto read = [&](int& value, cudaDeviceAttr attribute) {
    check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
  };
  read(major, cudaDevAttrComputeCapabilityMajor);
  read(minor, cudaDevAttrComputeCapabilityMinor);
  if (major != 9 || minor != 0) return false;
  cudaFuncAttributes attributes;
  check(cudaFuncGetAttributes(&attributes, hopperProbe), "cudaFuncGetAttributes");
  return attributes.sharedSizeBytes > 0;
}

}  // namespace

bool hopperAvailable() {
  enum Known : signed char { Unasked, No, Yes };
  static std::atomic<signed char> known[64];
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  if (device >= 64) return isHopper(device);
  if (known[device] == Unasked) known[device] = isHopper(device) ? Yes : No;
  return known[device] == Yes;
}

int multiprocessors() {
  static const int count = [] {
    int device = 0, found = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&found, cudaDevAttrMultiProcessorCount, device),
          "cudaDeviceGetAttribute");
    return found;
  }();
  return count;
}

CUtensorMap tileMap(CUtensorMapDataType type, int size, const void* data, int columns, int rows,
                    int64_t stride, int tileRows, int rowBytes) {
  return encoded<2>(type, data, {cuuint64_t(columns), cuuint64_t(rows)}, {cuuint64_t(stride) * size},
                    {cuuint32_t(rowBytes / size), cuuint32_t(tileRows)}, rowBytes == kTileWidth);
}

CUtensorMap pairedTileMap(CUtensorMapDataType type, int size, const void* data, int columns, int rows,
                          int tileRows, Pairs pairs) {
  const cuuint64_t row = cuuint64_t(columns) * size, half = rows / 2 * row;
  const bool neighbors = pairs == Pairs::Neighbors;
  return encoded<4>(type, data, {cuuint64_t(columns), 8, 2, cuuint64_t(rows / 16)},
                    {neighbors ? 2 * row : row, neighbors ? row : half, neighbors ? 16 * row : 8 * row},
                    {cuuint32_t(kTileWidth / size), 8, 2, cuuint32_t(tileRows / 16)}, true);
}

}  // namespace millrace::cuda
