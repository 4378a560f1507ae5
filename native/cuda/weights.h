// Loading weights to the GPU: from ranges of files, from a hash, or from floats made at load.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "device.h"
#include "fp8.h"
#include "int4_gemm.h"
#include "kernels.h"

namespace millrace::cuda {

// Codes of 4 bits, one a byte, as the checkpoint has them: QuantizedMatrix of src/model/weights.ts.
struct CodesPart {
  std::vector<int8_t> codes;
  std::vector<float> scales, offsets;
};

// A tensor of the checkpoint: TensorRef of src/model/weights.ts.
struct TensorPart {
  enum class Kind { File, Dummy, Computed, Fp8, Codes } kind;
  size_t elements;
  // A file's range...
  std::string path;
  size_t offset;  // bytes
  Elem dtype;
  // ...or numbers from a hash...
  uint32_t seed;
  float mean, scale;
  // ...or floats, asked for once, on the thread that loads: the numbers, or the scales of rows whose
  // e4m3 codes are a file's range (of weights that are kept in fp8)...
  std::function<std::vector<float>()> computed;
  // ...or codes, likewise: of weights that are kept in 4 bits.
  std::function<CodesPart()> codes;
};

// Vectors are float32 whatever the storage type. A bias is kept as float32 and, after that, in the
// storage type, as products can add it themselves.
enum class WeightLayout { Vector, Bias, Matrix };

// One weight of the program: the parts' elements one after the other are [experts, n, k]; k and
// experts of a vector are 1.
struct WeightSpec {
  std::string name;
  WeightLayout layout;
  int n, k, experts;
  std::vector<TensorPart> parts;
  // Columns of a matrix in 4 bits that share a scale; 0: floats. Parts that are floats are rounded.
  int group;
  bool offsets;              // of groups, besides scales
  std::vector<int> columns;  // act-order: column c multiplies input column columns[c]; empty: c
  bool fp8;                  // a matrix as rows of fp8.h, scales behind the codes
  size_t elements() const { return size_t(experts) * n * k; }
};

// Bytes of all weights: what a WeightStore needs at `memory`.
size_t weightBytes(const std::vector<WeightSpec>& specs, Elem elem);

class WeightStore {
 public:
  // Bytes of device memory that loading needs besides, for conversions.
  static constexpr size_t kScratchBytes = size_t(32) << 20;

  // Fills `memory` (device, weightBytes of it) before it returns. Throws std::runtime_error naming
  // the file if one is missing or too short, CudaError. `progress` is called with the share done.
  WeightStore(const std::vector<WeightSpec>& specs, Elem elem, uint8_t* memory, uint8_t* scratch,
              cudaStream_t stream, const std::function<void(double)>& progress);

  const WeightSpec& spec(int weight) const { return specs_[weight]; }
  const void* matrix(int weight) const { return data_[weight]; }
  const float* vector(int weight) const { return reinterpret_cast<const float*>(data_[weight]); }
  bool isInt4(int weight) const { return specs_[weight].group > 0; }
  Int4Weight int4(int weight) const;
  bool isFp8(int weight) const { return specs_[weight].fp8; }
  const float* fp8Scales(int weight) const;
  // A bias in the storage type.
  const void* bias(int weight) const { return data_[weight] + alignUp(size_t(specs_[weight].n) * 4); }

 private:
  std::vector<WeightSpec> specs_;
  std::vector<uint8_t*> data_;
};

}  // namespace millrace::cuda
