#include "weights.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>

namespace millrace::cuda {
namespace {

size_t packedBytes(const WeightSpec& spec) {
  return alignUp(int4Bytes(spec.n, spec.k, spec.group, spec.offsets));
}

Int4Weight viewOf(const WeightSpec& spec, uint8_t* data) {
  const int* columns = reinterpret_cast<const int*>(data + packedBytes(spec));
  return {data, spec.n, spec.k, spec.group, spec.offsets, spec.columns.empty() ? nullptr : columns,
          int4InOrder()};
}

size_t fp8CodeBytes(const WeightSpec& spec) { return alignUp(spec.elements()); }

size_t storedBytes(const WeightSpec& spec, Elem elem) {
  if (spec.fp8) return fp8CodeBytes(spec) + alignUp(size_t(spec.n) * 4);
  if (spec.group > 0) return packedBytes(spec) + alignUp(spec.columns.size() * 4);
  const size_t floats = alignUp(spec.elements() * 4), stored = alignUp(spec.elements() * bytesOf(elem));
  if (spec.layout == WeightLayout::Matrix) return stored;
  return spec.layout == WeightLayout::Vector ? floats : floats + stored;
}

class File {
 public:
  explicit File(const std::string& path) : path_(path) {
    descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) fail("cannot be opened");
  }
  ~File() { close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  void read(size_t offset, size_t bytes, uint8_t* to) const {
    while (bytes > 0) {
      const ssize_t got = pread(descriptor_, to, bytes, static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) fail("cannot be read");
      if (got == 0) {
        throw std::runtime_error(path_ + " is truncated: a tensor's bytes from " +
                                 std::to_string(offset) + " on are missing");
      }
      offset += got;
      to += got;
      bytes -= got;
    }
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw std::runtime_error(path_ + " " + what + ": " + std::strerror(errno));
  }
  std::string path_;
  int descriptor_;
};

// Copies numbers from the host through two pinned buffers, so that reading a chunk and copying the
// one before go on at the same time; conversions are the device's work.
class Uploader {
 public:
  Uploader(uint8_t* scratch, cudaStream_t stream) : scratch_(scratch), stream_(stream) {
    for (auto& slot : slots_) slot.pinned = PinnedMemory(kChunk * 4);
  }

  // `fill(first, count, to)` writes `count` numbers of type `from`, beginning with number `first`.
  template <class Fill>
  void upload(Elem from, size_t elements, Elem to, uint8_t* target, Fill&& fill) {
    for (size_t first = 0; first < elements; first += kChunk) {
      const size_t count = std::min(kChunk, elements - first);
      Slot& slot = slots_[next_ ^= 1];
      slot.copied.wait();
      fill(first, count, slot.pinned.data());
      uint8_t* out = target + first * bytesOf(to);
      uint8_t* landing = from == to ? out : scratch_;
      check(cudaMemcpyAsync(landing, slot.pinned.data(), count * bytesOf(from),
                            cudaMemcpyHostToDevice, stream_),
            "copying weights to the GPU");
      slot.copied.record(stream_);
      if (from != to) convert(from, landing, to, out, count);
    }
  }

  void uploadBytes(const void* from, size_t bytes, void* target) {
    const uint8_t* source = static_cast<const uint8_t*>(from);
    uploadBytes(bytes, target, [&](size_t first, size_t count, uint8_t* to) {
      std::memcpy(to, source + first, count);
    });
  }

  // `fill(first, count, to)` writes `count` bytes, beginning with byte `first`.
  template <class Fill>
  void uploadBytes(size_t bytes, void* target, Fill&& fill) {
    for (size_t first = 0; first < bytes; first += kChunk * 4) {
      const size_t count = std::min(kChunk * 4, bytes - first);
      Slot& slot = slots_[next_ ^= 1];
      slot.copied.wait();
      fill(first, count, slot.pinned.data());
      check(cudaMemcpyAsync(static_cast<uint8_t*>(target) + first, slot.pinned.data(), count,
                            cudaMemcpyHostToDevice, stream_),
            "copying weights to the GPU");
      slot.copied.record(stream_);
    }
  }

  // Device to device; between the two 16-bit types by way of float32.
  void convert(Elem from, const void* source, Elem to, uint8_t* target, size_t count) {
    if (from == Elem::F32 || to == Elem::F32) {
      convertFloats(from, source, to, target, count, stream_);
      return;
    }
    uint8_t* floats = scratch_ + kChunk * 4;
    convertFloats(from, source, Elem::F32, floats, count, stream_);
    convertFloats(Elem::F32, floats, to, target, count, stream_);
  }

 private:
  static constexpr size_t kChunk = WeightStore::kScratchBytes / 8;  // numbers
  struct Slot {
    PinnedMemory pinned;
    Event copied;
  };
  uint8_t* scratch_;
  cudaStream_t stream_;
  Slot slots_[2];
  int next_ = 0;
};

using Files = std::map<std::string, std::unique_ptr<File>>;

const File& openFile(Files& files, const std::string& path) {
  auto& file = files[path];
  if (!file) file = std::make_unique<File>(path);
  return *file;
}

// A part whose numbers are floats, of which any range can be had on the GPU.
class FloatPart {
 public:
  FloatPart(const WeightSpec& spec, const TensorPart& part, Uploader& uploader, Files& files,
            cudaStream_t stream)
      : part_(part), uploader_(uploader), stream_(stream) {
    if (part.kind == TensorPart::Kind::Codes || part.kind == TensorPart::Kind::Fp8) {
      throw std::runtime_error(spec.name + " is kept otherwise than its part of codes");
    }
    if (part.kind == TensorPart::Kind::Computed) {
      floats_ = part.computed();
      if (floats_.size() != part.elements) {
        throw std::runtime_error(spec.name + ": a computed part has the wrong length");
      }
    }
    if (part.kind == TensorPart::Kind::File) {
      file_ = &openFile(files, part.path);
    }
  }

  void load(size_t first, size_t count, Elem elem, uint8_t* target) {
    if (part_.kind == TensorPart::Kind::Dummy) {
      fillDummy(elem, target, first, count, part_.seed, part_.mean, part_.scale, stream_);
      return;
    }
    const size_t size = file_ ? bytesOf(part_.dtype) : 4;
    uploader_.upload(file_ ? part_.dtype : Elem::F32, count, elem, target,
                     [&](size_t from, size_t numbers, uint8_t* to) {
                       if (file_) {
                         file_->read(part_.offset + (first + from) * size, numbers * size, to);
                       } else {
                         std::memcpy(to, floats_.data() + first + from, numbers * size);
                       }
                     });
  }

 private:
  const TensorPart& part_;
  Uploader& uploader_;
  cudaStream_t stream_;
  std::vector<float> floats_;
  const File* file_ = nullptr;
};

// Rows of fp8 as the checkpoint has them.
void loadFp8Codes(const WeightSpec& spec, const TensorPart& part, int rows, uint8_t* codes,
                  float* scales, Uploader& uploader, Files& files) {
  const std::vector<float> read = part.computed();
  if (read.size() != size_t(rows)) {
    throw std::runtime_error(spec.name + ": a part of fp8 has the wrong number of scales");
  }
  uploader.uploadBytes(read.data(), read.size() * 4, scales);
  const File& file = openFile(files, part.path);
  uploader.uploadBytes(part.elements, codes, [&](size_t first, size_t count, uint8_t* to) {
    file.read(part.offset + first, count, to);
  });
}

// Fills a matrix of fp8, some rows at a time, which wait as floats in half of the scratch.
void loadFp8(const WeightSpec& spec, uint8_t* data, uint8_t* floats, Uploader& uploader,
             Files& files, cudaStream_t stream) {
  const int k = spec.k;
  const int rowsAtOnce = static_cast<int>(WeightStore::kScratchBytes / 2 / 4 / k);
  float* scales = reinterpret_cast<float*>(data + fp8CodeBytes(spec));
  for (const TensorPart& part : spec.parts) {
    if (part.elements % k != 0) {
      throw std::runtime_error(spec.name + ": a part is not a number of rows");
    }
    const int rows = static_cast<int>(part.elements / k);
    if (part.kind == TensorPart::Kind::Fp8) {
      loadFp8Codes(spec, part, rows, data, scales, uploader, files);
      data += part.elements;
      scales += rows;
      continue;
    }
    FloatPart numbers(spec, part, uploader, files, stream);
    for (int first = 0; first < rows; first += rowsAtOnce) {
      const int count = std::min(rowsAtOnce, rows - first);
      numbers.load(size_t(first) * k, size_t(count) * k, Elem::F32, floats);
      fp8Quantize(Elem::F32, {floats, k, k}, count, {data + size_t(first) * k, k, scales + first},
                  stream);
    }
    data += part.elements;
    scales += rows;
  }
}

// Fills a matrix in 4 bits, some rows at a time. The uploader lands in the first half of the
// scratch; rows wait in the second to be packed.
class Int4Loader {
 public:
  Int4Loader(const WeightSpec& spec, uint8_t* data, uint8_t* scratch, Uploader& uploader,
             cudaStream_t stream)
      : spec_(spec), weight_(viewOf(spec, data)), uploader_(uploader), stream_(stream),
        rowsAtOnce_(static_cast<int>(std::max<size_t>(1, kNumbers / spec.k))) {
    floats_ = scratch + WeightStore::kScratchBytes / 2;
    codes_ = reinterpret_cast<int8_t*>(floats_ + kNumbers * 4);
    scales_ = reinterpret_cast<float*>(codes_ + kNumbers);
    offsets_ = scales_ + kNumbers / 8;  // no row is shorter than 8
    if (size_t(spec.k) > kNumbers) throw std::runtime_error(spec.name + ": rows are too long");
    check(cudaMemsetAsync(data, 0, packedBytes(spec), stream), "cudaMemset");
    if (!spec.columns.empty()) {
      uploader.uploadBytes(spec.columns.data(), spec.columns.size() * 4, data + packedBytes(spec));
    }
  }

  void load(const TensorPart& part, Files& files) {
    if (part.elements % spec_.k != 0) {
      throw std::runtime_error(spec_.name + ": a part is not a number of rows");
    }
    const int rows = static_cast<int>(part.elements / spec_.k);
    if (part.kind == TensorPart::Kind::Codes) {
      loadCodes(part.codes(), rows);
    } else {
      loadFloats(FloatPart(spec_, part, uploader_, files, stream_), rows);
    }
    row_ += rows;
  }

 private:
  void loadFloats(FloatPart part, int rows) {
    for (int first = 0; first < rows; first += rowsAtOnce_) {
      const int count = std::min(rowsAtOnce_, rows - first);
      part.load(size_t(first) * spec_.k, size_t(count) * spec_.k, Elem::F32, floats_);
      float* offsets = spec_.offsets ? offsets_ : nullptr;
      int4Quantize(reinterpret_cast<const float*>(floats_), count, spec_.k, spec_.group, codes_,
                   scales_, offsets, stream_);
      int4Pack(weight_, row_ + first, count, codes_, scales_, offsets, stream_);
    }
  }

  void loadCodes(const CodesPart& part, int rows) {
    const size_t groups = (spec_.k + spec_.group - 1) / spec_.group;
    const bool fits = part.codes.size() == size_t(rows) * spec_.k &&
                      part.scales.size() == rows * groups &&
                      (part.offsets.size() == rows * groups || !spec_.offsets);
    if (!fits) throw std::runtime_error(spec_.name + ": a part of codes has the wrong length");
    for (int first = 0; first < rows; first += rowsAtOnce_) {
      const int count = std::min(rowsAtOnce_, rows - first);
      uploader_.uploadBytes(part.codes.data() + size_t(first) * spec_.k, size_t(count) * spec_.k,
                            codes_);
      uploader_.uploadBytes(part.scales.data() + first * groups, count * groups * 4, scales_);
      if (spec_.offsets) {
        uploader_.uploadBytes(part.offsets.data() + first * groups, count * groups * 4, offsets_);
      }
      int4Pack(weight_, row_ + first, count, codes_, scales_, spec_.offsets ? offsets_ : nullptr,
               stream_);
    }
  }

  static constexpr size_t kNumbers = WeightStore::kScratchBytes / 16;
  const WeightSpec& spec_;
  Int4Weight weight_;
  Uploader& uploader_;
  cudaStream_t stream_;
  int rowsAtOnce_;
  uint8_t* floats_;
  int8_t* codes_;
  float *scales_, *offsets_;
  int row_ = 0;  // of the next part
};

}  // namespace

size_t weightBytes(const std::vector<WeightSpec>& specs, Elem elem) {
  size_t total = 0;
  for (const WeightSpec& spec : specs) total += storedBytes(spec, elem);
  return total;
}

WeightStore::WeightStore(const std::vector<WeightSpec>& specs, Elem elem, uint8_t* memory,
                         uint8_t* scratch, cudaStream_t stream,
                         const std::function<void(double)>& progress)
    : specs_(specs) {
  const double total = static_cast<double>(weightBytes(specs, elem));
  Uploader uploader(scratch, stream);
  Files files;
  uint8_t* next = memory;
  for (const WeightSpec& spec : specs) {
    data_.push_back(next);
    const Elem type = spec.layout == WeightLayout::Matrix ? elem : Elem::F32;
    size_t elements = 0;
    for (const TensorPart& part : spec.parts) elements += part.elements;
    if (elements != spec.elements()) {
      throw std::runtime_error(spec.name + ": its parts have " + std::to_string(elements) +
                               " elements, not those of its shape");
    }
    if (spec.fp8) {
      loadFp8(spec, next, scratch + kScratchBytes / 2, uploader, files, stream);
    } else if (spec.group > 0) {
      Int4Loader loader(spec, next, scratch, uploader, stream);
      for (const TensorPart& part : spec.parts) loader.load(part, files);
    } else {
      uint8_t* target = next;
      for (const TensorPart& part : spec.parts) {
        FloatPart(spec, part, uploader, files, stream).load(0, part.elements, type, target);
        target += part.elements * bytesOf(type);
      }
    }
    if (spec.layout == WeightLayout::Bias) {
      uint8_t* stored = next + alignUp(spec.elements() * 4);
      if (elem == Elem::F32) {
        check(cudaMemcpyAsync(stored, next, spec.elements() * 4, cudaMemcpyDeviceToDevice, stream),
              "copying a bias");
      } else {
        convertFloats(Elem::F32, next, elem, stored, spec.elements(), stream);
      }
    }
    next += storedBytes(spec, elem);
    progress(total == 0 ? 1 : static_cast<double>(next - memory) / total);
  }
  check(cudaStreamSynchronize(stream), "loading weights");
}

const float* WeightStore::fp8Scales(int weight) const {
  return reinterpret_cast<const float*>(data_[weight] + fp8CodeBytes(specs_[weight]));
}

Int4Weight WeightStore::int4(int weight) const { return viewOf(specs_[weight], data_[weight]); }

}  // namespace millrace::cuda
