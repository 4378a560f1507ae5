// Which decode kernels are compiled, and which of them a GPU gets. Times: dev/attention.md.
#pragma once
#include <iterator>
#include <string>

#include "attention_decode_kernel.cuh"

namespace millrace::cuda {

// GPUs by the shared memory that a block may have: 227 KB on Hopper and Blackwell of data centers, 99 KB on
// others but for Ampere's A100, which has 163 KB and is taken for both.
enum class Room { Any, Much, Little };
constexpr size_t kMuchShared = 200 << 10, kLittleShared = 110 << 10;

// Warps of a block and stages of their rings. An SM has room for one block.
template <int kWarps_, int kStages_, Room kRoom_ = Room::Any>
struct Division {
  static constexpr int kWarps = kWarps_, kStages = kStages_;
  static constexpr Room kRoom = kRoom_;
};

// Whether GPUs of the architecture that is compiled for have a use for it.
constexpr bool usedHere(Room room) {
#ifdef __CUDA_ARCH__
  constexpr bool kMuch = __CUDA_ARCH__ == 900 || __CUDA_ARCH__ == 1000;
  constexpr bool kLittle = __CUDA_ARCH__ == 890 || __CUDA_ARCH__ == 1200;
  return room == Room::Any || (room == Room::Much ? !kLittle : !kMuch);
#else
  return true;
#endif
}

template <typename T, bool kFp8, int kDim, int kHeadTiles, class D, bool kFresh>
__global__ __launch_bounds__(D::kWarps * 32, 1) void decodeKernelOf(DecodeArgs a) {
  if constexpr (usedHere(D::kRoom)) decode<T, kFp8, kDim, kHeadTiles, D::kWarps, D::kStages, kFresh>(a);
  else __trap();
}

template <typename T, bool kFp8, int kDim, int kHeadTiles, class D>
DecodeKernel kernelOf(int rows) {
  static const std::string name =
      std::to_string(D::kWarps) + " warps, " + std::to_string(D::kStages) + " stages";
  constexpr int kElemBytes = kFp8 ? 1 : 2;
  constexpr size_t ring = ringBytes<kDim, D::kStages>(kElemBytes);
  const size_t part = partialFloats(rows, kDim) * sizeof(float);
  return {decodeKernelOf<T, kFp8, kDim, kHeadTiles, D, false>,
          decodeKernelOf<T, kFp8, kDim, kHeadTiles, D, true>,
          D::kWarps,
          D::kWarps * (ring + part + freshBytes<kDim>(kElemBytes)) + (D::kWarps + 1) * sizeof(Cut),
          name.c_str()};
}

// The first that a block may have the shared memory for; with `variant`, that one of the others.
template <typename T, bool kFp8, int kDim, int kHeadTiles, class... Divisions>
DecodeKernel pickOf(int rows, size_t mostShared, int variant) {
  const DecodeKernel all[] = {kernelOf<T, kFp8, kDim, kHeadTiles, Divisions>(rows)...};
  const Room rooms[] = {Divisions::kRoom...};
  for (size_t i = 0; i < std::size(all); i++) {
    if (rooms[i] == Room::Much && mostShared < kLittleShared) continue;
    if (rooms[i] == Room::Little && mostShared > kMuchShared) continue;
    if (all[i].sharedBytes <= mostShared && variant-- <= 0) return all[i];
  }
  return {};
}

// Few bytes on their way keep memory busy, and more are no gain: some SMs then get theirs earlier than others,
// and the step waits for the last. Times: dev/attention.md.
template <typename T, int kHeadTiles>
DecodeKernel pick(bool fp8, int dim, int rows, size_t most, int variant) {
  constexpr Room kMuch = Room::Much, kLittle = Room::Little;
  constexpr bool kOne = kHeadTiles == 1;
  if (fp8 && dim == 64) {
    if constexpr (kOne) return pickOf<T, true, 64, 1, Division<8, 4>>(rows, most, variant);
    else return pickOf<T, true, 64, 2, Division<8, 4>, Division<4, 4, kLittle>>(rows, most, variant);
  }
  if (fp8 && dim == 128) {
    if constexpr (kOne) {
      return pickOf<T, true, 128, 1, Division<16, 2, kMuch>, Division<8, 2, kLittle>, Division<4, 4, kLittle>>(
          rows, most, variant);
    } else {
      return pickOf<T, true, 128, 2, Division<8, 4, kMuch>, Division<4, 3, kLittle>>(rows, most, variant);
    }
  }
  if (fp8) {
    return pickOf<T, true, 256, kHeadTiles, Division<kOne ? 8 : 4, kOne ? 2 : 3, kMuch>,
                  Division<2, 3, kLittle>>(rows, most, variant);
  }
  if (dim == 64) {
    return pickOf<T, false, 64, kHeadTiles, Division<8, 4, kMuch>, Division<4, 4, kLittle>>(rows, most,
                                                                                           variant);
  }
  if (dim == 128) {
    if constexpr (kOne) {
      return pickOf<T, false, 128, 1, Division<8, 3, kMuch>, Division<8, 2, kMuch>, Division<4, 2, kLittle>>(
          rows, most, variant);
    } else {
      return pickOf<T, false, 128, 2, Division<8, 2, kMuch>, Division<2, 3, kLittle>>(rows, most, variant);
    }
  }
  if constexpr (kOne) {
    return pickOf<T, false, 256, 1, Division<4, 3, kMuch>, Division<4, 2, kMuch>, Division<2, 2, kLittle>>(
        rows, most, variant);
  } else {
    return pickOf<T, false, 256, 2, Division<4, 2, kMuch>, Division<1, 3, kLittle>>(rows, most, variant);
  }
}

template <typename T>
DecodeKernel decodeKernelFor(const AttentionShape& shape, int dim, size_t mostShared, int variant) {
  static_assert(kPassRows == 2 * kTileHeads, "passes have one or two tiles of heads");
  const int rows = passRowsOf(shape);
  return rows <= kTileHeads ? pick<T, 1>(shape.fp8, dim, rows, mostShared, variant)
                            : pick<T, 2>(shape.fp8, dim, rows, mostShared, variant);
}

}  // namespace millrace::cuda
