// Loading: from ranges of files, or from a hash, to the packed layouts of gemm.h.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "gemm.h"
#include "memory.h"
#include "thread_pool.h"

namespace millrace {

// QuantizedMatrix of src/model/weights.ts: one of the checkpoint's own quantized tensors.
struct QuantizedPart {
  std::vector<int8_t> codes;
  std::vector<float> scales, offsets;  // [rows, groups]; no offsets: 0
  std::vector<int32_t> columns;        // [k] or empty
};

// A tensor of the checkpoint: TensorRef of src/model/weights.ts.
struct TensorPart {
  bool dummy;
  size_t elements;
  // Reads a quantized tensor, when it is needed; called on the thread that makes the WeightStore.
  std::function<QuantizedPart()> quantized;
  IntegerFormat integer;
  // Makes the floats of a computed tensor, in the same way.
  std::function<std::vector<float>()> computed;
  // A file's range...
  std::string path;
  size_t offset;  // bytes
  DType dtype;
  // ...or numbers from a hash.
  uint32_t seed;
  float mean, scale;
};

enum class WeightLayout { Vector, Matrix, GateUp };

// One weight of the program: the parts' elements one after the other are [experts, n, k].
struct WeightSpec {
  std::string name;
  WeightLayout layout;  // vectors are float32 whatever the storage type; k and experts are 1
  int n, k, experts;
  IntegerFormat integer;
  std::vector<TensorPart> parts;
};

// All weights of a model in one block of memory.
class WeightStore {
 public:
  // Rounds floats to the integers a weight asks for: `quantizeRows` of src/model/quantize-rows.ts.
  // Throws std::runtime_error naming the file if one is missing or shorter than its ranges, or a
  // weight that has no integers or other ones than asked for; std::bad_alloc. `progress` is called on the calling thread with the share done, 0 to 1.
  WeightStore(const std::vector<WeightSpec>& specs, DType dtype, ThreadPool& pool,
              const std::function<void(double)>& progress);

  int size() const { return static_cast<int>(specs_.size()); }
  const WeightSpec& spec(int weight) const { return specs_[weight]; }
  const float* vector(int weight) const {
    return reinterpret_cast<const float*>(memory_.data() + offsets_[weight]);
  }
  PackedMatrix matrix(int weight, int expert = 0) const;
  size_t bytes() const { return memory_.bytes(); }

 private:
  std::vector<WeightSpec> specs_;
  std::vector<size_t> offsets_;
  std::vector<bool> reordered_;  // weights followed by their order of columns
  DType dtype_;
  Memory memory_;
};

}  // namespace millrace
