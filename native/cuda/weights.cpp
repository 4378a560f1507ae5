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

size_t storedBytes(const WeightSpec& spec, Elem elem) {
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

void load(const WeightSpec& spec, const TensorPart& part, Elem elem, uint8_t* target,
          Uploader& uploader, Files& files, cudaStream_t stream) {
  switch (part.kind) {
    case TensorPart::Kind::Dummy:
      fillDummy(elem, target, 0, part.elements, part.seed, part.mean, part.scale, stream);
      return;
    case TensorPart::Kind::Computed: {
      const std::vector<float> floats = part.computed();
      if (floats.size() != part.elements) {
        throw std::runtime_error(spec.name + ": a computed part has the wrong length");
      }
      uploader.upload(Elem::F32, part.elements, elem, target,
                      [&](size_t first, size_t count, uint8_t* to) {
                        std::memcpy(to, floats.data() + first, count * 4);
                      });
      return;
    }
    case TensorPart::Kind::File: {
      auto& file = files[part.path];
      if (!file) file = std::make_unique<File>(part.path);
      const size_t size = bytesOf(part.dtype);
      uploader.upload(part.dtype, part.elements, elem, target,
                      [&](size_t first, size_t count, uint8_t* to) {
                        file->read(part.offset + first * size, count * size, to);
                      });
      return;
    }
  }
}

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
    uint8_t* target = next;
    for (const TensorPart& part : spec.parts) {
      load(spec, part, type, target, uploader, files, stream);
      target += part.elements * bytesOf(type);
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

}  // namespace millrace::cuda
