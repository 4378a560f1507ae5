// The product of few rows with 4-bit weights, by mma.sync; on Hopper of very few. Weights are the A
// operand of mma.m16n8k16 (M = outputs) and rows of activations the B operand, so that 8 rows waste
// nothing; codes are exact in 16 bits and scales are applied to the float32 sums of a group. Blocks
// share the steps of all tiles evenly (stream-K, Osama et al. 2023, arXiv 2301.03598); codes become
// floats by writing them into the mantissa of a power of two, as in Kim et al. 2022 (arXiv 2211.10017).
#include <algorithm>

#include "elements.h"
#include "hopper.h"
#include "hopper_int4.h"
#include "int4_codes.cuh"
#include "int4_gemm.h"
#include "launch.h"
#include "tensor_core.cuh"

namespace millrace::cuda {
namespace {

constexpr int kTileRows = kInt4Rows, kStepColumns = kInt4Columns;
constexpr int kMTiles = kTileRows / 16;
constexpr int kCodeBytes = kInt4BlockBytes;  // of a step
constexpr int kWarps = 4, kThreads = kWarps * 32;
constexpr int kFewRows = 4;  // that this kernel multiplies faster than hopper_int4.cu
constexpr int kSumStride = kTileRows + 4;  // of the sums of a row: conflict-free for the C operand

struct Args {
  const uint8_t* codes;
  const uint8_t* scales;
  const void* x;
  void* out;
  const void* residual;
  const float* bias;
  float* partials;  // [chunks of rows][blocks][2][rows of a chunk][64]
  int* counters;    // [chunks of rows][tiles]
  int64_t xStride, outStride, residualStride;
  int n, k, rows, steps, tiles;
  int groups, stepsOfGroup;  // stepsOfGroup is 1 where a step has several groups
  bool floatOut;
};

// What one warp holds of a step. Lanes read back only what they copied themselves, but for scales.
template <int kNTiles, int kStages, int kGroups, bool kOffsets>
struct Plan {
  static constexpr int kRows = kNTiles * 8;
  static constexpr int kXBytes = kRows * kStepColumns * 2;
  static constexpr int kScaleBytes = kGroups * kTileRows * (kOffsets ? 8 : 4);
  static constexpr int kStageBytes = kCodeBytes + kXBytes + kScaleBytes;
  static constexpr int kRingBytes = kStages * kStageBytes;
  static constexpr int kSumBytes = kRows * kSumStride * 4;
  static constexpr int kSharedBytes = kWarps * (kRingBytes + kSumBytes);
};

template <int kBytes>
__device__ __forceinline__ void copyOnce(unsigned to, const void* from) {
  if constexpr (kBytes == 16) {
    copyAsync16(to, from);
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(from) : "memory");
  }
}
__device__ __forceinline__ void copyOrZero(unsigned to, const void* from, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}

// Sums of one block's part of a tile, over its warps, to the output or, if other blocks have parts
// too, by way of partial results that the last one to arrive adds up in the order of blocks.
template <class T, class P>
__device__ void finishTile(const Args& p, const float* sums, int tile, int block, int blocks) {
  const int64_t total = int64_t(p.tiles) * p.steps, first = int64_t(tile) * p.steps;
  const auto blockOf = [&](int64_t step) {
    return static_cast<int>(((step + 1) * blocks + total - 1) / total) - 1;
  };
  const int firstBlock = blockOf(first), lastBlock = blockOf(first + p.steps - 1);
  const int chunk = blockIdx.x, firstRow = chunk * P::kRows;
  const int rows = min(P::kRows, p.rows - firstRow);
  const auto partial = [&](int of) {
    const int second = of == firstBlock && total * of / blocks != first;
    return p.partials + ((int64_t(chunk) * blocks + of) * 2 + second) * P::kRows * kTileRows;
  };
  const auto sumOfWarps = [&](int i) {
    const float* at = sums + i / kTileRows * kSumStride + i % kTileRows;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; w++) sum += at[w * P::kSumBytes / 4];
    return sum;
  };
  const bool alone = firstBlock == lastBlock;
  if (!alone) {
    float* mine = partial(block);
    for (int i = threadIdx.x; i < rows * kTileRows; i += kThreads) __stcg(mine + i, sumOfWarps(i));
    __threadfence();
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
      int* counter = p.counters + chunk * p.tiles + tile;
      last = atomicAdd(counter, 1) == lastBlock - firstBlock;
      if (last) *counter = 0;
      __threadfence();
    }
    __syncthreads();
    if (!last) return;
  }
  for (int i = threadIdx.x; i < rows * kTileRows; i += kThreads) {
    const int column = tile * kTileRows + i % kTileRows;
    const int64_t row = firstRow + i / kTileRows;
    if (column >= p.n) continue;
    float sum = 0;
    if (alone) {
      sum = sumOfWarps(i);
    } else {
#pragma unroll 4
      for (int b = firstBlock; b <= lastBlock; b++) sum += __ldcg(partial(b) + i);
    }
    if (p.bias) sum += p.bias[column];
    if (p.residual) {
      sum += toFloat(static_cast<const T*>(p.residual)[row * p.residualStride + column]);
    }
    if (p.floatOut) {
      static_cast<float*>(p.out)[row * p.outStride + column] = sum;
    } else {
      static_cast<T*>(p.out)[row * p.outStride + column] = fromFloat<T>(sum);
    }
  }
}

// Grid: chunks of rows, blocks; chunks of the same part of the weight run side by side. Steps (64
// columns of a tile) are numbered through; a block has an equal share of them one after the other,
// whose steps its warps take in turn.
template <class T, int kNTiles, int kStages, int kGroups, bool kOffsets, bool kInOrder>
__global__ void __launch_bounds__(kThreads) int4Product(Args p) {
  using P = Plan<kNTiles, kStages, kGroups, kOffsets>;
  extern __shared__ __align__(128) unsigned char shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int block = blockIdx.y, blocks = gridDim.y;
  const int64_t total = int64_t(p.tiles) * p.steps;
  const int begin = static_cast<int>(total * block / blocks);
  const int end = static_cast<int>(total * (block + 1) / blocks);
  unsigned char* ring = shared + warp * P::kRingBytes;
  const unsigned ringAt = static_cast<unsigned>(__cvta_generic_to_shared(ring));
  float* sums = reinterpret_cast<float*>(shared + kWarps * P::kRingBytes);

  // Lane (g, t) has columns 8 t .. 8 t + 7 of each half of a step, of rows g, g + 8, ... Codes in order
  // need two of each eight: it copies the same, but reads from what its row's lanes have copied.
  const int g = lane / 4, t = lane % 4;
  const auto chunkAt = [&](int chunk) { return g * 64 + (kInOrder ? chunk ^ g / 2 : chunk) * 16; };
  const int firstRow = blockIdx.x * P::kRows;

  const auto copyCodes = [&](int step, int stage) {
    const uint8_t* from = p.codes + int64_t(step) * kCodeBytes + lane * 16;
    const unsigned to = ringAt + stage * P::kStageBytes + lane * 16;
#pragma unroll
    for (int m = 0; m < kMTiles; m++) copyOnce<16>(to + m * 512, from + m * 512);
    const int tile = step / p.steps, group = (step - tile * p.steps) / p.stepsOfGroup * kGroups;
    constexpr int kOnce = P::kScaleBytes / 32 < 16 ? 8 : 16;
    constexpr int kOfGroup = P::kScaleBytes / kGroups;
    const uint8_t* scales = p.scales + (int64_t(tile) * p.groups + group) * kOfGroup;
#pragma unroll
    for (int at = 0; at < P::kScaleBytes; at += 32 * kOnce) {
      copyOnce<kOnce>(ringAt + stage * P::kStageBytes + kCodeBytes + P::kXBytes + at + lane * kOnce,
                      scales + at + lane * kOnce);
    }
  };
  const auto copyX = [&](int step, int stage) {
    const int column = step % p.steps * kStepColumns + t * 8;
    const unsigned to = ringAt + stage * P::kStageBytes + kCodeBytes + chunkAt(t);
#pragma unroll
    for (int j = 0; j < kNTiles; j++) {
      const int row = firstRow + j * 8 + g;
      const T* from = static_cast<const T*>(p.x) + row * p.xStride + column;
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const bool valid = row < p.rows && column + half * 32 < p.k;
        copyOrZero(to + (2 * j + half) * 512, valid ? from + half * 32 : p.x, valid);
      }
    }
  };

  // Weights are nobody's output: they are on their way before the previous kernel has ended.
  const int mine = begin + warp;
#pragma unroll
  for (int s = 0; s < kStages - 1; s++) {
    if (mine + s * kWarps < end) copyCodes(mine + s * kWarps, s);
  }
  waitForPrevious();
#pragma unroll
  for (int s = 0; s < kStages - 1; s++) {
    if (mine + s * kWarps < end) copyX(mine + s * kWarps, s);
    copyAsyncCommit();
  }

  int step = mine, stage = 0;
  for (int tile = begin / p.steps; int64_t(tile) * p.steps < end; tile++) {
    const int tileEnd = min(end, (tile + 1) * p.steps);
    float sum[kMTiles][kNTiles][4] = {};
    for (; step < tileEnd; step += kWarps) {
      copyAsyncWait<kStages - 2>();
      __syncwarp();  // what others have copied has arrived, and the stage filled next has been read
      const int ahead = step + (kStages - 1) * kWarps;
      if (ahead < end) {
        const int to = stage == 0 ? kStages - 1 : stage - 1;
        copyCodes(ahead, to);
        copyX(ahead, to);
      }
      copyAsyncCommit();

      const unsigned char* at = ring + stage * P::kStageBytes;
      stage = stage + 1 == kStages ? 0 : stage + 1;
      uint4 x[kNTiles][2];
#pragma unroll
      for (int j = 0; j < kNTiles; j++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const unsigned char* from = at + kCodeBytes + (2 * j + half) * 512;
          if constexpr (kInOrder) {
            unsigned(&words)[4] = reinterpret_cast<unsigned(&)[4]>(x[j][half]);
#pragma unroll
            for (int i = 0; i < 4; i++) {
              words[i] = *reinterpret_cast<const unsigned*>(from + chunkAt(i) + 4 * t);
            }
          } else {
            x[j][half] = *reinterpret_cast<const uint4*>(from + lane * 16);
          }
        }
      }
      // Sums of activations, which offsets multiply: as a product with ones, in the layout of sums.
      float ones[kOffsets ? kGroups : 1][kNTiles][4] = {};
      if constexpr (kOffsets) {
        constexpr unsigned a[4] = {kOnes<T>, kOnes<T>, kOnes<T>, kOnes<T>};
#pragma unroll
        for (int j = 0; j < kNTiles; j++) {
#pragma unroll
          for (int half = 0; half < 2; half++) {
            float(&to)[4] = ones[half * kGroups / 2][j];
            Half2<T>::mma(to, a, x[j][half].x, x[j][half].y);
            Half2<T>::mma(to, a, x[j][half].z, x[j][half].w);
          }
        }
      }
      const float* scales = reinterpret_cast<const float*>(at + kCodeBytes + P::kXBytes);
#pragma unroll
      for (int m = 0; m < kMTiles; m++) {
        const uint4 words = *reinterpret_cast<const uint4*>(at + m * 512 + lane * 16);
        float part[kNTiles][4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const int inStep = half * kGroups / 2;
          if (half == 0 || kGroups == 2) {
#pragma unroll
            for (int j = 0; j < kNTiles; j++) {
#pragma unroll
              for (int c = 0; c < 4; c++) part[j][c] = 0;
            }
          }
          unsigned a[4];
          codesOf<T>(half == 0 ? words.x : words.z, a);
#pragma unroll
          for (int j = 0; j < kNTiles; j++) Half2<T>::mma(part[j], a, x[j][half].x, x[j][half].y);
          codesOf<T>(half == 0 ? words.y : words.w, a);
#pragma unroll
          for (int j = 0; j < kNTiles; j++) Half2<T>::mma(part[j], a, x[j][half].z, x[j][half].w);
          if (half == 0 && kGroups == 1) continue;
#pragma unroll
          for (int upper = 0; upper < 2; upper++) {
            const int row = inStep * kTileRows + m * 16 + upper * 8 + g;
            const float scale = kOffsets ? scales[2 * row] : scales[row];
#pragma unroll
            for (int j = 0; j < kNTiles; j++) {
              float* to = sum[m][j] + 2 * upper;
              to[0] += scale * part[j][2 * upper];
              to[1] += scale * part[j][2 * upper + 1];
              if constexpr (kOffsets) {
                const float offset = scales[2 * row + 1];
                to[0] += offset * ones[inStep][j][0];
                to[1] += offset * ones[inStep][j][1];
              }
            }
          }
        }
      }
    }
    float* own = sums + warp * P::kSumBytes / 4;
#pragma unroll
    for (int m = 0; m < kMTiles; m++) {
#pragma unroll
      for (int j = 0; j < kNTiles; j++) {
#pragma unroll
        for (int c = 0; c < 4; c++) {
          own[(j * 8 + 2 * t + c % 2) * kSumStride + m * 16 + c / 2 * 8 + g] = sum[m][j][c];
        }
      }
    }
    __syncthreads();
    finishTile<T, P>(p, sums, tile, block, blocks);
    __syncthreads();  // sums have been read
  }
  copyAsyncWait<0>();
}

// Blocks of a variant that run at the same time; 0 if its shared memory does not fit.
template <class Kernel>
int residentBlocks(Kernel kernel, int sharedBytes) {
  int device = 0, most = 0, blocks = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  if (sharedBytes > most) return 0;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, sharedBytes),
        "int4Product: shared memory");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, kThreads, sharedBytes),
        "int4Product: occupancy");
  return std::max(1, blocks) * multiprocessors();
}

// Of partial results: 2 a block, of at most this many blocks, 32 rows each.
constexpr int kMaxBlocks = 1024;
constexpr size_t kPartialBytes = size_t(kMaxBlocks) * 2 * 32 * kTileRows * 4;

// False if the variant does not fit on this GPU.
template <class T, int kNTiles, int kStages, int kGroups, bool kOffsets, bool kInOrder = false>
bool launchProduct(const Args& p, cudaStream_t stream) {
  using P = Plan<kNTiles, kStages, kGroups, kOffsets>;
  const auto kernel = int4Product<T, kNTiles, kStages, kGroups, kOffsets, kInOrder>;
  static const int resident = std::min(residentBlocks(kernel, P::kSharedBytes), kMaxBlocks);
  if (resident == 0) return false;
  const int chunks = static_cast<int>(divideUp(p.rows, P::kRows));
  // Each warp has a step, where there are enough.
  const int64_t most = divideUp(int64_t(p.tiles) * p.steps, kWarps);
  const int blocks = static_cast<int>(std::min<int64_t>(std::max(1, resident / chunks), most));
  launch("int4Product", kernel, dim3(chunks, blocks), kThreads, P::kSharedBytes, stream, p);
  return true;
}

template <class T, int kGroups, bool kOffsets>
void launchRows(const Args& p, bool inOrder, cudaStream_t stream) {
  const bool launched =
      inOrder       ? launchProduct<T, 1, 4, kGroups, kOffsets, true>(p, stream)
      : p.rows <= 8 ? launchProduct<T, 1, 4, kGroups, kOffsets>(p, stream)
                    : (p.rows > 16 && launchProduct<T, 4, 3, kGroups, kOffsets>(p, stream)) ||
                          launchProduct<T, 2, 4, kGroups, kOffsets>(p, stream);
  if (!launched) throw CudaError("int4Product: too little shared memory on this GPU");
}

template <class T>
__global__ void __launch_bounds__(256) permuteColumns(const T* x, int64_t stride, const int* columns,
                                                      int k, T* out) {
  waitForPrevious();
  const int column = blockIdx.x * 256 + threadIdx.x;
  if (column < k) out[int64_t(blockIdx.y) * k + column] = x[blockIdx.y * stride + columns[column]];
}

// A word has 4 columns of a row and of that 8 further on. In order, as wgmma wants it, these are 2 t and
// 2 t + 1 of 16 and the same of the next 8, t being the lane's; else four that follow each other.
// The number of a word counts those of a row.
struct WordOfRow {
  int column;    // the first
  int lane, word;  // of a block: t, and which of the lane's
  bool inOrder;
  __device__ WordOfRow(int number, bool inOrder) : inOrder(inOrder) {
    column = inOrder ? number / 4 * 16 + number % 4 * 2 : number * 4;
    const int c = column % kStepColumns;
    lane = inOrder ? c % 8 / 2 : c % 32 / 8;
    word = inOrder ? c / 16 : c / 32 * 2 + c % 8 / 4;
  }
  // Of the code i, 0 to 3; in the word of a row that is `upper` (or not) the nibble.
  __device__ int columnOf(int i) const { return column + (inOrder ? i / 2 * 8 + i % 2 : i); }
  static __device__ int nibbleOf(int i, bool upper) { return (upper ? 0 : 1) + i / 2 * 2 + i % 2 * 4; }
  // `row` is one of the upper 8 of 16.
  __device__ int64_t at(int row, int steps) const {
    const int inTile = row % kTileRows;
    const int64_t step = int64_t(row / kTileRows) * steps + column / kStepColumns;
    return ((step * kMTiles + inTile / 16) * 32 + inTile % 8 * 4 + lane) * 4 + word;
  }
};

// A thread has the 8 codes of one word: 4 columns of row r and of row r + 8.
__global__ void __launch_bounds__(256) packCodes(unsigned* data, int k, int steps, bool inOrder, int first,
                                                 int count, const int8_t* codes) {
  const WordOfRow place(blockIdx.y * 256 + threadIdx.x, inOrder);
  if (place.column >= k) return;
  const int upper = first / 16 * 16 + blockIdx.x / 8 * 16 + blockIdx.x % 8;
  unsigned* word = data + place.at(upper, steps);
  unsigned bits = *word;
  for (int i = 0; i < 8; i++) {
    const int row = upper + i / 4 * 8, at = place.columnOf(i % 4);
    if (row < first || row >= first + count || at >= k) continue;
    const unsigned code = codes[int64_t(row - first) * k + at] & 15;
    const int shift = 4 * WordOfRow::nibbleOf(i % 4, i < 4);
    bits = (bits & ~(15u << shift)) | code << shift;
  }
  *word = bits;
}

__global__ void __launch_bounds__(256) packScales(float* data, int groups, int kept, int first,
                                                  int count, const float* scales,
                                                  const float* offsets, bool pairs) {
  const int64_t index = blockIdx.x * int64_t(256) + threadIdx.x;
  if (index >= int64_t(count) * groups) return;
  const int row = first + static_cast<int>(index / groups), group = static_cast<int>(index % groups);
  const int64_t at = (int64_t(row / kTileRows) * kept + group) * kTileRows + row % kTileRows;
  const float scale = scales[index];
  if (pairs) {
    data[2 * at] = scale;
    data[2 * at + 1] = offsets ? offsets[index] + 8 * scale : 0;
  } else {
    data[at] = scale;
  }
}

__global__ void __launch_bounds__(128) quantizeGroups(const float* values, int64_t count, int k,
                                                      int group, int groups, int8_t* codes,
                                                      float* scales, float* offsets) {
  const int64_t index = blockIdx.x * int64_t(128) + threadIdx.x;
  if (index >= count * groups) return;
  const int64_t from = index / groups * k + index % groups * group;
  const int width = min(group, k - static_cast<int>(index % groups) * group);
  float low = 0, high = 0;
  for (int i = 0; i < width; i++) {
    low = fminf(low, values[from + i]);
    high = fmaxf(high, values[from + i]);
  }
  // In float64, as the specification computes.
  const double range = offsets ? double(high) - low : fmax(-double(low), double(high));
  const float scale = static_cast<float>(range / (offsets ? 15 : 7));
  const double zero = offsets ? -rint(low / double(scale == 0 ? 1 : scale)) : 8;
  for (int i = 0; i < width; i++) {
    const double code = scale == 0 ? zero : rint(values[from + i] / double(scale)) + zero;
    codes[from + i] = static_cast<int8_t>(fmin(15.0, fmax(0.0, code)));
  }
  scales[index] = scale;
  if (offsets) offsets[index] = static_cast<float>(-double(scale) * zero);
}

// A thread has the 8 codes of a word, as in packCodes.
template <class T>
__global__ void __launch_bounds__(256) dequantize(const unsigned* data, const float* scales, int n,
                                                  int k, int steps, bool inOrder, int group,
                                                  int groups, bool pairs, const int* columns, T* out) {
  waitForPrevious();
  const WordOfRow place(blockIdx.y * 256 + threadIdx.x, inOrder);
  if (place.column >= k) return;
  const int upper = blockIdx.x / 8 * 16 + blockIdx.x % 8;
  const unsigned word = data[place.at(upper, steps)];
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int row = upper + i * 8;
    if (row >= n) return;
    const int64_t at =
        (int64_t(row / kTileRows) * groups + place.column / group) * kTileRows + row % kTileRows;
    const float scale = pairs ? scales[2 * at] : scales[at], offset = pairs ? scales[2 * at + 1] : 0;
    T* to = out + int64_t(row) * k;
#pragma unroll
    for (int c = 0; c < 4; c += 2) {
      float values[2];
#pragma unroll
      for (int j = 0; j < 2; j++) {
        const int code = static_cast<int>(word >> 4 * WordOfRow::nibbleOf(c + j, i == 0) & 15) - 8;
        values[j] = scale * static_cast<float>(code) + offset;
      }
      // k is a multiple of 8.
      const int column = place.columnOf(c);
      if (column >= k) continue;
      if (columns) {
        for (int j = 0; j < 2; j++) to[columns[column + j]] = fromFloat<T>(values[j]);
      } else {
        storeRaw<T, 2>(to + column, pack<T, 2>(values));
      }
    }
  }
}

// Calls f with the tag of a 16-bit type.
template <class F>
void with16Bits(Elem elem, F&& f) {
  if (elem == Elem::F16) return f(TypeTag<__half>{});
  if (elem == Elem::BF16) return f(TypeTag<__nv_bfloat16>{});
  throw CudaError("4-bit weights are for 16-bit activations, not for float32");
}

}  // namespace

size_t int4Bytes(int n, int k, int group, bool offsets) {
  const size_t scales = size_t(int4BlocksOfN(n)) * int4GroupsKept(k, group) * kTileRows;
  return int4CodeBytes(n, k) + scales * (offsets ? 8 : 4);
}

size_t int4ScratchBytes(int maxK) { return kPartialBytes + size_t(kInt4MaxRows) * maxK * 2; }

size_t int4Counters(int maxN) { return size_t(int4BlocksOfN(maxN)) * divideUp(kInt4MaxRows, 16); }

void int4Pack(const Int4Weight& weight, int first, int count, const int8_t* codes,
              const float* scales, const float* offsets, cudaStream_t stream) {
  if (count == 0) return;
  const int lines = static_cast<int>(divideUp(first % 16 + count, 16)) * 8;
  const dim3 grid(lines, static_cast<unsigned>(divideUp(weight.k, 4 * 256)));
  packCodes<<<grid, 256, 0, stream>>>(reinterpret_cast<unsigned*>(weight.data), weight.k,
                                      int4BlocksOfK(weight.k), weight.inOrder, first, count, codes);
  checkLaunch("packCodes");
  const int groups = static_cast<int>(divideUp(weight.k, weight.group));
  packScales<<<static_cast<unsigned>(divideUp(int64_t(count) * groups, 256)), 256, 0, stream>>>(
      int4Scales(weight), groups, int4GroupsKept(weight.k, weight.group), first, count, scales, offsets,
      weight.offsets);
  checkLaunch("packScales");
}

void int4Quantize(const float* values, int count, int k, int group, int8_t* codes, float* scales,
                  float* offsets, cudaStream_t stream) {
  if (count == 0) return;
  const int groups = static_cast<int>(divideUp(k, group));
  quantizeGroups<<<static_cast<unsigned>(divideUp(int64_t(count) * groups, 128)), 128, 0, stream>>>(
      values, count, k, group, groups, codes, scales, offsets);
  checkLaunch("quantizeGroups");
}

void int4Dequantize(Elem elem, const Int4Weight& weight, void* out, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(divideUp(weight.n, 16) * 8),
                  static_cast<unsigned>(divideUp(weight.k, 4 * 256)));
  with16Bits(elem, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    launch("dequantize", dequantize<T>, grid, 256, 0, stream,
           reinterpret_cast<const unsigned*>(weight.data), int4Scales(weight), weight.n, weight.k,
           int4BlocksOfK(weight.k), weight.inOrder, weight.group, int4GroupsKept(weight.k, weight.group),
           weight.offsets, weight.columns, static_cast<T*>(out));
  });
}

bool int4Takes(const Int4Linear& step, int rows) {
  return rows <= kInt4MaxRows &&
         packable(Elem::BF16, {step.x.data}, {step.x.stride, step.weight.k}) &&
         (!step.weight.inOrder || rows <= kFewRows || hopperInt4Takes(step));
}

bool int4InOrder() { return hopperAvailable(); }

void int4Linear(Elem elem, const Int4Linear& step, int rows, cudaStream_t stream) {
  const Int4Weight& weight = step.weight;
  if (rows == 0) return;
  if (!int4Takes(step, rows)) {
    throw CudaError("int4Linear: more rows than " + std::to_string(kInt4MaxRows) +
                    ", or rows that are not aligned to 16 bytes");
  }
  with16Bits(elem, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    Matrix x = step.x;
    if (weight.columns) {
      T* permuted = reinterpret_cast<T*>(static_cast<uint8_t*>(step.scratch) + kPartialBytes);
      launch("permuteColumns", permuteColumns<T>,
             dim3(static_cast<unsigned>(divideUp(weight.k, 256)), rows), 256, 0, stream,
             static_cast<const T*>(x.data), x.stride, weight.columns, weight.k, permuted);
      x = {permuted, weight.k, weight.k};
    }
    if (weight.inOrder && rows > kFewRows) return hopperInt4(elem, step, x, rows, stream);
    Args p{};
    p.codes = weight.data;
    p.scales = reinterpret_cast<const uint8_t*>(int4Scales(weight));
    p.x = x.data;
    p.xStride = x.stride;
    p.out = step.out.data;
    p.outStride = step.out.stride;
    p.residual = step.residual;
    p.residualStride = step.residualStride;
    p.bias = step.bias;
    p.partials = static_cast<float*>(step.scratch);
    p.counters = step.counters;
    p.n = weight.n;
    p.k = weight.k;
    p.rows = rows;
    p.steps = int4BlocksOfK(weight.k);
    p.tiles = int4BlocksOfN(weight.n);
    p.groups = int4GroupsKept(weight.k, weight.group);
    p.stepsOfGroup = std::max(1, weight.group / kStepColumns);
    p.floatOut = step.floatOut;
    const auto launchGroups = [&](auto groups) {
      constexpr int kGroups = decltype(groups)::value;
      weight.offsets ? launchRows<T, kGroups, true>(p, weight.inOrder, stream)
                     : launchRows<T, kGroups, false>(p, weight.inOrder, stream);
    };
    if (weight.group == 32) return launchGroups(std::integral_constant<int, 2>{});
    launchGroups(std::integral_constant<int, 1>{});
  });
}

}  // namespace millrace::cuda
