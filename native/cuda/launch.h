// One way to launch the small kernels, so that programmatic dependent launch is decided in one place.
#pragma once
#include <cuda_runtime.h>

#include <utility>

#include "check.h"

namespace millrace::cuda {

// Programmatic dependent launch (CUDA programming guide, "Programmatic Dependent Launch and
// Synchronization"): a kernel's blocks are set up while the kernel before it drains. Safe only
// because every kernel launched here calls waitForPrevious() in every thread before it touches
// memory that the kernel ahead may write: the end of a kernel then implies the end of all before it,
// and when a kernel is let in all before the one ahead have ended.
// Of the thread that launches; off until it is turned on, which needs `launchesCanOverlap`.
inline thread_local bool overlapLaunches = false;
// Whether the last launch of the thread was the library's (cuBLASLt). Its kernels let nobody in before they
// end, and what has been set up to be let in begins half a microsecond later than what has not.
inline thread_local bool launchedByLibrary = false;

// The kernel after this one is let in as soon as all blocks of this one are past their wait: nothing
// of it but its set-up, and loads of what this one does not write, comes before its own wait for this
// one's end.
__device__ __forceinline__ void waitForPrevious() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;\n\tgriddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Whether the current device has programmatic dependent launch (compute capability 9.0) and the
// driver takes it into graphs (CUDA 12.3).
inline bool launchesCanOverlap() {
  int device = 0, major = 0, driver = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "cudaDeviceGetAttribute");
  check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  return major >= 9 && driver >= 12030;
}

// Lets a kernel have so many bytes of dynamic shared memory; the driver is asked once.
template <auto kKernel>
void allowShared(const char* name, int bytes) {
  static const cudaError_t allowed =
      cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  check(allowed, name);
}

// How a kernel is launched: blocks in clusters of `cluster` (compute capability 9.0 where it is more than 1).
struct LaunchShape {
  cudaLaunchConfig_t config = {};
  LaunchShape(dim3 grid, int cluster, int threads, size_t sharedBytes) {
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = sharedBytes;
    config.attrs = attributes_;
    if (cluster == 1) return;
    cudaLaunchAttribute& shape = attributes_[config.numAttrs++];
    shape.id = cudaLaunchAttributeClusterDimension;
    shape.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  }
  LaunchShape(const LaunchShape&) = delete;
  // Its blocks are set up while the kernel before it drains.
  void overlap() {
    cudaLaunchAttribute& overlap = attributes_[config.numAttrs++];
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
  }

 private:
  cudaLaunchAttribute attributes_[2] = {};
};

template <class... Params, class... Args>
void launchCluster(const char* name, void (*kernel)(Params...), dim3 grid, int cluster, int threads,
                   size_t sharedBytes, cudaStream_t stream, const Args&... args) {
  LaunchShape shape(grid, cluster, threads, sharedBytes);
  shape.config.stream = stream;
  if (overlapLaunches && !std::exchange(launchedByLibrary, false)) shape.overlap();
  check(cudaLaunchKernelEx(&shape.config, kernel, Params(args)...), name);
}

template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), dim3 grid, int threads, size_t sharedBytes,
            cudaStream_t stream, Args... args) {
  launchCluster(name, kernel, grid, 1, threads, sharedBytes, stream, args...);
}

}  // namespace millrace::cuda
