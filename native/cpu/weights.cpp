#include "weights.h"

#include "integers.h"
#include "pack_integers.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <map>
#include <memory>
#include <stdexcept>
#include <sys/stat.h>
#include <unistd.h>

#define MILLRACE_ISA loading
#include "vec.h"

namespace millrace {
namespace {

using namespace loading;

size_t bytesOf(DType dtype) { return dtype == DType::F32 ? 4 : 2; }

// A whole file, read-only. Its size is asked for when it is mapped, so that a range beyond the end
// is an error here and not a signal later.
class FileMapping {
 public:
  explicit FileMapping(const std::string& path) : path_(path) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd < 0) fail("cannot be opened");
    struct stat info;
    if (fstat(fd, &info) != 0) {
      close(fd);
      fail("cannot be examined");
    }
    bytes_ = static_cast<size_t>(info.st_size);
    data_ = bytes_ > 0 ? mmap(nullptr, bytes_, PROT_READ, MAP_PRIVATE, fd, 0) : nullptr;
    close(fd);
    if (data_ == MAP_FAILED) fail("cannot be mapped");
  }
  ~FileMapping() {
    if (data_) munmap(data_, bytes_);
  }
  FileMapping(const FileMapping&) = delete;
  FileMapping& operator=(const FileMapping&) = delete;

  const uint8_t* range(size_t offset, size_t bytes) const {
    if (offset > bytes_ || bytes > bytes_ - offset) {
      throw std::runtime_error(path_ + " is truncated: a tensor's bytes " + std::to_string(offset) +
                               " to " + std::to_string(offset + bytes) + " lie beyond its end at " +
                               std::to_string(bytes_));
    }
    return static_cast<const uint8_t*>(data_) + offset;
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw std::runtime_error(path_ + " " + what + ": " + std::strerror(errno));
  }
  std::string path_;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// A part whose bytes are at hand.
struct Source {
  const TensorPart* part;
  const uint8_t* data;  // of a file, or computed
  size_t firstRow;      // of the weight, in rows of k elements
  std::shared_ptr<const QuantizedPart> quantized;
  int k;
  std::shared_ptr<const std::vector<float>> computed;
};

// A row of a quantized part.
IntegerRow integerRow(const Source& source, size_t row) {
  const QuantizedPart& part = *source.quantized;
  const size_t groups = groupCount(source.part->integer, source.k);
  return {part.codes.data() + row * source.k, part.scales.data() + row * groups,
          part.offsets.empty() ? nullptr : part.offsets.data() + row * groups};
}

// Its numbers in the order of the input, for a weight that is kept as floats after all.
void dequantize(const Source& source, size_t row, float* out) {
  const IntegerRow from = integerRow(source, row);
  const int size = groupNumbers(source.part->integer, source.k);
  const std::vector<int32_t>& columns = source.quantized->columns;
  for (int i = 0; i < source.k; i++) {
    const int g = i / size;
    const float offset = from.offsets ? from.offsets[g] : 0;
    out[columns.empty() ? i : columns[i]] = from.scales[g] * from.codes[i] + offset;
  }
}

// Reads a quantized tensor and checks that it is what its description says.
std::shared_ptr<const QuantizedPart> readQuantized(const WeightSpec& spec, const TensorPart& part) {
  auto read = std::make_shared<QuantizedPart>(part.quantized());
  const IntegerFormat& format = part.integer;
  const auto require = [&](bool holds, const char* what) {
    if (!holds) throw std::runtime_error(spec.name + ": a quantized part has " + what);
  };
  const size_t rows = part.elements / spec.k, groups = groupCount(format, spec.k);
  require(read->codes.size() == part.elements, "the wrong number of codes");
  require(read->scales.size() == rows * groups, "the wrong number of scales");
  require(read->offsets.empty() ? format.symmetric : read->offsets.size() == rows * groups,
          "the wrong number of offsets");
  if (format.symmetric) {
    const float zero = format.bits == 4 ? 8 : 0;
    for (size_t i = 0; i < read->offsets.size(); i++) {
      require(read->offsets[i] == -zero * read->scales[i], "offsets that are not symmetric");
    }
  }
  if (format.bits == 4) {
    const auto outside = [](int8_t code) { return code < 0 || code > 15; };
    require(std::none_of(read->codes.begin(), read->codes.end(), outside), "codes beyond 4 bits");
    // Its zero is 8, said or unsaid.
    if (read->offsets.empty()) {
      for (float scale : read->scales) read->offsets.push_back(-8 * scale);
    }
  }
  if (!read->columns.empty()) {
    std::vector<bool> seen(spec.k);
    require(read->columns.size() == seen.size(), "the wrong number of columns");
    for (int32_t column : read->columns) {
      require(column >= 0 && column < spec.k && !seen[column], "an order that is no permutation");
      seen[column] = true;
    }
  }
  return read;
}

uint32_t hash32(uint32_t x) {  // src/model/weights.ts
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

void readFloats(const Source& source, size_t first, int count, float* out) {
  const TensorPart& part = *source.part;
  if (source.quantized) {
    for (int row = 0; row < count / source.k; row++) {
      dequantize(source, first / source.k + row, out + size_t(row) * source.k);
    }
    return;
  }
  if (part.dummy) {
    for (int i = 0; i < count; i++) {
      const uint32_t h = hash32(part.seed ^ static_cast<uint32_t>(first + i));
      out[i] = part.mean + part.scale * (static_cast<float>(h >> 8) * 0x1p-23f - 1.0f);
    }
    return;
  }
  const uint8_t* from = source.data + first * bytesOf(part.dtype);
  if (part.dtype == DType::F32) {
    std::memcpy(out, from, static_cast<size_t>(count) * 4);
    return;
  }
  for (int i = 0; i < count; i++) {
    uint16_t half;
    std::memcpy(&half, from + 2 * static_cast<size_t>(i), 2);
    out[i] = part.dtype == DType::BF16 ? fromBf16(half) : fromF16(half);
  }
}

// Rows of k elements of a weight, in its storage type.
class RowReader {
 public:
  RowReader(const WeightSpec& spec, std::vector<Source> sources, DType dtype)
      : k_(spec.k), dtype_(dtype), sources_(std::move(sources)) {}

  // The row's elements; in `scratch` [k floats and as many halves] where they must be converted.
  const uint8_t* row(size_t row, float* scratch) const {
    const Source& source = sourceOf(row);
    const size_t first = (row - source.firstRow) * k_;
    if (source.data && source.part->dtype == dtype_) {
      return source.data + first * bytesOf(dtype_);
    }
    readFloats(source, first, k_, scratch);
    if (dtype_ == DType::F32) return reinterpret_cast<const uint8_t*>(scratch);
    uint16_t* halves = reinterpret_cast<uint16_t*>(scratch + k_);
    for (int i = 0; i < k_; i++) {
      halves[i] = dtype_ == DType::BF16 ? toBf16(scratch[i]) : toF16(scratch[i]);
    }
    return reinterpret_cast<const uint8_t*>(halves);
  }

  // The row's integers: those of a quantized part, or floats rounded in the scratch. No codes if a
  // float is not finite.
  IntegerRow integers(size_t row, const IntegerFormat& format, float* scratch,
                      IntegerScratch& rounded) const {
    const Source& source = sourceOf(row);
    if (source.quantized) return integerRow(source, row - source.firstRow);
    readFloats(source, (row - source.firstRow) * k_, k_, scratch);
    if (!roundRow(scratch, k_, format, rounded)) return {};
    return {rounded.codes.data(), rounded.scales.data(), rounded.offsets.data()};
  }

  // The order of the row's columns, empty for that of the input.
  const std::vector<int32_t>& columns(size_t row) const {
    static const std::vector<int32_t> none;
    const Source& source = sourceOf(row);
    return source.quantized ? source.quantized->columns : none;
  }

 private:
  const Source& sourceOf(size_t row) const {
    const auto starts = [](size_t row, const Source& source) { return row < source.firstRow; };
    return *(std::upper_bound(sources_.begin(), sources_.end(), row, starts) - 1);
  }

  int k_;
  DType dtype_;
  std::vector<Source> sources_;  // by ascending firstRow
};

// Writes 16 rows into panel `half` of a pair. Unit: what of a row goes to consecutive bytes of the
// panel (a pair of bf16 numbers, or one number).
template <class Unit>
void interleave(const uint8_t* const* rows, int units, int half, uint8_t* pair) {
  Unit* to = reinterpret_cast<Unit*>(pair) + half * kPanel;
  // In blocks, so that the lines of the panel are written while the rows' lines are at hand.
  for (int begin = 0; begin < units; begin += 16) {
    const int end = begin + 16 < units ? begin + 16 : units;
    for (int c = 0; c < kPanel; c++) {
      if (!rows[c]) continue;
      for (int u = begin; u < end; u++) {
        std::memcpy(to + u * 2 * kPanel + c, rows[c] + u * sizeof(Unit), sizeof(Unit));
      }
    }
  }
}

void packPanel(const uint8_t* const* rows, int k, DType dtype, int half, uint8_t* pair) {
  if (dtype == DType::F32) return interleave<uint32_t>(rows, k, half, pair);
  if (dtype == DType::F16) return interleave<uint16_t>(rows, k, half, pair);
  interleave<uint32_t>(rows, k / 2, half, pair);
  if (k % 2 == 0) return;
  uint8_t* last = pair + ((k / 2 * 2 + half) * kPanel) * 4;
  for (int c = 0; c < kPanel; c++) {
    if (rows[c]) std::memcpy(last + c * 4, rows[c] + (k - 1) * 2, 2);
  }
}

size_t pairBytesOf(const WeightSpec& spec, DType dtype) {
  if (spec.integer.bits > 0) return integerPairBytes(spec.integer, spec.k);
  const size_t padded = dtype == DType::BF16 ? (spec.k + 1) / 2 * 2 : spec.k;
  return padded * 2 * kPanel * bytesOf(dtype);
}

int pairsOf(const WeightSpec& spec) {
  const int columns = spec.layout == WeightLayout::GateUp ? spec.n / 2 : (spec.n + 1) / 2;
  return (columns + kPanel - 1) / kPanel;
}

// Row of the weight that is column `c` of a panel, or -1 for padding.
int rowOf(const WeightSpec& spec, int pair, int half, int c) {
  if (spec.layout == WeightLayout::GateUp) {
    const int row = pair * kPanel + c;
    return row < spec.n / 2 ? row + half * (spec.n / 2) : -1;
  }
  const int row = (2 * pair + half) * kPanel + c;
  return row < spec.n ? row : -1;
}

// Of the order of columns of one expert, for which there is room where a checkpoint may have one.
size_t columnBytes(const WeightSpec& spec) {
  const auto quantized = [](const TensorPart& part) { return bool(part.quantized); };
  const bool any = std::any_of(spec.parts.begin(), spec.parts.end(), quantized);
  return spec.integer.bits > 0 && any ? alignUp(static_cast<size_t>(spec.k) * 4, 64) : 0;
}

size_t storedBytes(const WeightSpec& spec, DType dtype) {
  if (spec.layout == WeightLayout::Vector) return alignUp(static_cast<size_t>(spec.n) * 4, 64);
  return pairBytesOf(spec, dtype) * pairsOf(spec) * spec.experts + columnBytes(spec) * spec.experts;
}

void pack(const WeightSpec& spec, const RowReader& reader, DType dtype, ThreadPool& pool,
          std::vector<std::vector<float>>& scratch, uint8_t* out) {
  const int pairs = pairsOf(spec);
  const size_t pairBytes = pairBytesOf(spec, dtype);
  for (auto& each : scratch) {
    const size_t floats = static_cast<size_t>(spec.k) * 2 * kPanel;
    if (each.size() < floats) each.resize(floats);
  }
  pool.parallel(pairs * spec.experts, [&](int item, int thread) {
    const size_t firstRow = static_cast<size_t>(item / pairs) * spec.n;
    for (int half = 0; half < 2; half++) {
      const uint8_t* rows[kPanel];
      for (int c = 0; c < kPanel; c++) {
        const int row = rowOf(spec, item % pairs, half, c);
        float* space = scratch[thread].data() + static_cast<size_t>(c) * spec.k * 2;
        rows[c] = row < 0 ? nullptr : reader.row(firstRow + row, space);
      }
      packPanel(rows, spec.k, dtype, half, out + item * pairBytes);
    }
  });
}

void packIntegers(const WeightSpec& spec, const RowReader& reader, ThreadPool& pool,
                  std::vector<std::vector<float>>& scratch, uint8_t* out) {
  const int pairs = pairsOf(spec);
  const size_t pairBytes = pairBytesOf(spec, DType::F32);
  for (auto& each : scratch) each.resize(std::max<size_t>(each.size(), spec.k));
  std::vector<IntegerScratch> rounded(pool.size());
  std::atomic<bool> finite{true};
  pool.parallel(pairs * spec.experts, [&](int item, int thread) {
    const size_t firstRow = static_cast<size_t>(item / pairs) * spec.n;
    for (int column = 0; column < 2 * kPanel; column++) {
      const int half = column / kPanel, row = rowOf(spec, item % pairs, half, column % kPanel);
      if (row < 0) continue;
      const IntegerRow integers = reader.integers(firstRow + row, spec.integer,
                                                  scratch[thread].data(), rounded[thread]);
      if (integers.codes) {
        packRow(integers, spec.k, spec.integer, half, column % kPanel, out + item * pairBytes);
      } else {
        finite = false;
      }
    }
  });
  if (!finite) {
    throw std::runtime_error(spec.name + " has numbers that are not finite, which cannot be quantized");
  }
}

// Writes the order of columns of each expert. False if it is that of the input for all.
bool packColumns(const WeightSpec& spec, const RowReader& reader, uint8_t* out) {
  bool reordered = false;
  for (int expert = 0; expert < spec.experts; expert++) {
    const size_t first = static_cast<size_t>(expert) * spec.n;
    const std::vector<int32_t>& columns = reader.columns(first);
    for (int row = 1; row < spec.n; row++) {
      const std::vector<int32_t>& others = reader.columns(first + row);
      if (&others != &columns && others != columns) {
        throw std::runtime_error(spec.name + ": its parts have their columns in different orders");
      }
    }
    auto* to = reinterpret_cast<int32_t*>(out + columnBytes(spec) * expert);
    for (int i = 0; i < spec.k; i++) to[i] = columns.empty() ? i : columns[i];
    reordered = reordered || !columns.empty();
  }
  return reordered;
}

}  // namespace

WeightStore::WeightStore(const std::vector<WeightSpec>& specs, DType dtype, ThreadPool& pool,
                         const std::function<void(double)>& progress)
    : specs_(specs), dtype_(dtype) {
  size_t total = 0;
  for (const WeightSpec& spec : specs) {
    offsets_.push_back(total);
    total += storedBytes(spec, dtype);
  }
  memory_ = Memory(total);
  reordered_.resize(specs.size());

  std::map<std::string, std::unique_ptr<FileMapping>> files;
  std::vector<std::vector<float>> scratch(pool.size());
  for (size_t w = 0; w < specs.size(); w++) {
    const WeightSpec& spec = specs[w];
    std::vector<Source> sources;
    size_t elements = 0;
    if (spec.integer.bits == 8 && spec.k > 1 << 17) {
      throw std::runtime_error(spec.name + ": 32-bit sums hold no more than 131072 columns of int8");
    }
    for (const TensorPart& part : spec.parts) {
      const uint8_t* data = nullptr;
      std::shared_ptr<const std::vector<float>> computed;
      if (part.computed) {
        computed = std::make_shared<const std::vector<float>>(part.computed());
        if (computed->size() != part.elements) {
          throw std::runtime_error(spec.name + ": a computed part has the wrong length");
        }
        data = reinterpret_cast<const uint8_t*>(computed->data());
      } else if (!part.dummy && !part.quantized) {
        auto& file = files[part.path];
        if (!file) file = std::make_unique<FileMapping>(part.path);
        data = file->range(part.offset, part.elements * bytesOf(part.dtype));
      }
      if (part.elements % spec.k != 0) {
        throw std::runtime_error(spec.name + ": a part does not hold whole rows");
      }
      sources.push_back({&part, data, elements / spec.k, nullptr, spec.k, computed});
      if (part.quantized) {
        if (spec.integer.bits > 0 && !sameFormat(part.integer, spec.integer)) {
          throw std::runtime_error(spec.name + ": its parts are quantized in different ways");
        }
        sources.back().quantized = readQuantized(spec, part);
      }
      elements += part.elements;
    }
    if (elements != static_cast<size_t>(spec.n) * spec.k * spec.experts) {
      throw std::runtime_error(spec.name + ": its parts have " + std::to_string(elements) +
                               " elements, not those of its shape");
    }
    uint8_t* out = memory_.data() + offsets_[w];
    if (spec.layout == WeightLayout::Vector) {
      for (const Source& source : sources) {
        readFloats(source, 0, static_cast<int>(source.part->elements),
                   reinterpret_cast<float*>(out) + source.firstRow);
      }
    } else {
      const RowReader reader(spec, std::move(sources), dtype);
      if (spec.integer.bits == 0) {
        pack(spec, reader, dtype, pool, scratch, out);
      } else {
        packIntegers(spec, reader, pool, scratch, out);
        const size_t columns = columnBytes(spec) * spec.experts;
        if (columns > 0) {
          reordered_[w] = packColumns(spec, reader, out + storedBytes(spec, dtype) - columns);
        }
      }
    }
    progress(total == 0 ? 1 : static_cast<double>(offsets_[w] + storedBytes(spec, dtype)) / total);
  }
}

PackedMatrix WeightStore::matrix(int weight, int expert) const {
  const WeightSpec& spec = specs_[weight];
  const size_t pairBytes = pairBytesOf(spec, dtype_);
  const int pairs = pairsOf(spec);
  const uint8_t* base = memory_.data() + offsets_[weight];
  const uint8_t* data = base + pairBytes * pairs * expert;
  const int32_t* columns = nullptr;
  if (reordered_[weight]) {
    const uint8_t* all = base + pairBytes * pairs * spec.experts;
    columns = reinterpret_cast<const int32_t*>(all + columnBytes(spec) * expert);
  }
  return {data, dtype_, spec.n, spec.k, pairs, pairBytes, spec.layout == WeightLayout::GateUp,
          spec.integer, columns};
}

}  // namespace millrace
