// Errors of the CUDA runtime as exceptions.
#pragma once
#include <cuda_runtime_api.h>

#include <stdexcept>
#include <string>

namespace millrace::cuda {

struct CudaError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw CudaError(std::string(what) + ": " + cudaGetErrorString(status));
}

// After a launch: bad configurations are reported here, faults inside of kernels later.
inline void checkLaunch(const char* kernel) { check(cudaGetLastError(), kernel); }

}  // namespace millrace::cuda
