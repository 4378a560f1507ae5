// Dense products through cuBLASLt, which is opened at run time, or on Hopper through a kernel of our
// own (hopper_gemm.h). Every kind of product is tuned when the weights are there: candidates are
// timed with the weights of different layers in turn, so that a matrix is not found in a cache where
// a step would not find it.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "device.h"
#include "kernels.h"

namespace millrace::cuda {

// out [rows, n] = x [rows, k] . weight [n, k]^T (+ residual) (+ bias). Equal ones are tuned once.
struct Product {
  int n, k;
  Elem elem;
  bool fp8;  // x and weight are rows of fp8.h; `elem` is that of the others
  bool floatOut;  // out is float32 whatever `elem`; without residual
  bool residual, bias;
  int64_t xStride, residualStride, outStride;  // elements
  int alignment;  // bytes, of all pointers, at most 16
  bool freshWeight = false;  // the kernel before the product may write the weight
  // Instead of float32 results `out` has the best of every kBestWidth of a row, as `takeBest` wants them. Only our
  // own kernel does that: such a product may have no algorithm (seconds is 0 then).
  bool best = false;
  friend bool operator==(const Product& a, const Product& b) {
    return a.n == b.n && a.k == b.k && a.elem == b.elem && a.fp8 == b.fp8 && a.floatOut == b.floatOut &&
           a.residual == b.residual && a.bias == b.bias && a.xStride == b.xStride &&
           a.residualStride == b.residualStride && a.outStride == b.outStride &&
           a.alignment == b.alignment && a.freshWeight == b.freshWeight && a.best == b.best;
  }
};

struct ProductCall {
  const void* weight;
  const void* x;
  const void* residual;     // may be `out`
  const void* bias;         // in the storage type
  const float* biasFloats;  // the same
  void* out;
  const float *weightScales, *xScales;  // of fp8
};

class Gemm {
 public:
  static constexpr size_t kWorkspaceBytes = size_t(32) << 20;

  // `libraries`: what to open, best first; `workspace` is kWorkspaceBytes of the device. Throws
  // CudaError that says what was tried. Without `own` only the library's algorithms are candidates.
  Gemm(const std::vector<std::string>& libraries, void* workspace, bool own = true);
  ~Gemm();

  // The id of a kind of product. Throws CudaError if the library has none such on this GPU.
  int add(const Product& product);
  // Chooses an algorithm for each number of rows up to `maxRows`. `calls` are what the product is
  // used for.
  void tune(int id, const std::vector<ProductCall>& calls, int maxRows, cudaStream_t stream);
  // Of one launch with this many rows, as tuned; 0 if it was not. And of all tuning.
  double seconds(int id, int rows) const;
  double tuningSeconds() const { return tuningSeconds_; }
  // Rows of the same number always take the same algorithm.
  void run(int id, const ProductCall& call, int rows, cudaStream_t stream);
  // Of the library, such as "cuBLASLt 13.1.0".
  const std::string& description() const { return description_; }

 private:
  struct Library;
  struct Algorithm;
  struct Kind;
  std::unique_ptr<Library> library_;
  std::vector<std::unique_ptr<Kind>> kinds_;
  void* workspace_;
  bool hopper_;
  std::string description_;
  double tuningSeconds_ = 0;
};

}  // namespace millrace::cuda
