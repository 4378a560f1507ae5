// Large zeroed memory, in huge pages where the system has them: with 4 KiB pages a pass over the
// weights misses the TLB on every page.
#pragma once
#include <cstddef>
#include <cstdint>
#include <new>
#include <sys/mman.h>

namespace millrace {

constexpr size_t kHugePage = size_t(2) << 20;

inline size_t alignUp(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Makes the system find pages for `bytes` at `data` now instead of at their first use; their content
// stays. Where it cannot (Linux before 5.14), they come with first use.
inline void populate(void* data, size_t bytes) {
#if defined(__linux__)
  constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, which older headers lack
  const size_t page = 4096, address = reinterpret_cast<size_t>(data), begin = address / page * page;
  madvise(reinterpret_cast<void*>(begin), alignUp(address + bytes - begin, page), kPopulateWrite);
#endif
}

class Memory {
 public:
  Memory() = default;
  // Throws std::bad_alloc if the system refuses.
  explicit Memory(size_t bytes) : bytes_(bytes) {
    if (bytes == 0) return;
    // Huge pages start at multiples of their size; a mapping does only if it is made larger.
    mappedBytes_ = bytes < kHugePage ? bytes : alignUp(bytes, kHugePage) + kHugePage;
    mapping_ = mmap(nullptr, mappedBytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping_ == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<uint8_t*>(mapping_);
    if (bytes < kHugePage) return;
    data_ = reinterpret_cast<uint8_t*>(alignUp(reinterpret_cast<size_t>(data_), kHugePage));
#if defined(MADV_HUGEPAGE)
    madvise(data_, alignUp(bytes, kHugePage), MADV_HUGEPAGE);
#endif
  }
  ~Memory() {
    if (mapping_) munmap(mapping_, mappedBytes_);
  }
  Memory(Memory&& other) noexcept { *this = static_cast<Memory&&>(other); }
  Memory& operator=(Memory&& other) noexcept {
    swap(data_, other.data_);
    swap(mapping_, other.mapping_);
    swap(bytes_, other.bytes_);
    swap(mappedBytes_, other.mappedBytes_);
    return *this;
  }

  uint8_t* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  template <class T>
  static void swap(T& a, T& b) {
    T c = a;
    a = b;
    b = c;
  }

  uint8_t* data_ = nullptr;
  void* mapping_ = nullptr;
  size_t bytes_ = 0, mappedBytes_ = 0;
};

}  // namespace millrace
