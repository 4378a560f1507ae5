// What only Hopper has (PTX ISA, sm_90a): barriers in shared memory that count bytes, copies of tiles
// by the tensor memory accelerator, clusters of blocks, and the asynchronous products of a warpgroup.
#pragma once
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>
#include <type_traits>

namespace millrace::cuda {

// Where the code of sm_90a is compiled. Other architectures get kernels without a body.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MILLRACE_HOPPER 1
#elif defined(__CUDA_ARCH__)
#pragma nv_diag_suppress 177  // "declared but never referenced": what the missing bodies would use
#endif

// ---------------------------------------------------------------- barriers (mbarrier)

__device__ __forceinline__ void barrierInit(uint32_t barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// After all inits: other blocks of the cluster and the copy engine see them.
__device__ __forceinline__ void barrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
// Arrives, and lets the phase wait for so many bytes besides.
__device__ __forceinline__ void barrierExpect(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void barrierArrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrierWait(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n\t.reg .pred p;\n\tmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
        "selp.u32 %0, 1, 0, p;\n\t}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (!done);
}

// ---------------------------------------------------------------- clusters

// All threads of the cluster are here; nothing is said of what they have written.
__device__ __forceinline__ void clusterMeet() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
}
// The address of what lies at `address` here in another block of the cluster.
__device__ __forceinline__ uint32_t blockAddress(uint32_t address, uint32_t block) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(block));
  return there;
}
// Four floats to a block of the cluster, where `barrier` counts their bytes.
__device__ __forceinline__ void storeThere(uint32_t address, const float (&v)[4], uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
          address),
      "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3]), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void storeThere(uint32_t address, float x, float y, uint32_t barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(address),
      "f"(x), "f"(y), "r"(barrier)
      : "memory");
}

// ---------------------------------------------------------------- copies of tiles (TMA)

// The tile at column x, row y of the map to `target`; its bytes arrive at `barrier`.
__device__ __forceinline__ void copyTile(uint32_t target, const CUtensorMap* map, int x, int y,
                                         uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, "
      "%3}], [%4];" ::"r"(target),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}
// Of a map of pairs: from column x and the group-th eight pairs on.
__device__ __forceinline__ void copyPairedTile(uint32_t target, const CUtensorMap* map, int x, int group,
                                               uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, 0, 0, "
      "%3}], [%4];" ::"r"(target),
      "l"(map), "r"(x), "r"(group), "r"(barrier)
      : "memory");
}
// So many bytes, a multiple of 16, as they lie.
__device__ __forceinline__ void copyBytes(uint32_t target, const void* from, uint32_t bytes,
                                          uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          target),
      "l"(from), "r"(bytes), "r"(barrier)
      : "memory");
}
__device__ __forceinline__ void prefetchMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// What this thread has written to shared memory comes before what copies and products do with it from
// here on.
__device__ __forceinline__ void fenceForAsync() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Two 8 x 8 matrices of 16 bits to shared memory, of which a thread has columns 2 t and 2 t + 1 of row g, as
// columns: eight lanes a matrix say where each of its columns goes.
__device__ __forceinline__ void storeTurned(uint32_t address, const uint32_t (&r)[2]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(r[0]),
               "r"(r[1])
               : "memory");
}

// ---------------------------------------------------------------- products (wgmma)

// Describes rows of 128 bytes in shared memory, eight of them swizzled together as the copy engine's
// 128-byte swizzle lays them (PTX ISA, "Matrix-descriptor"); `address` within the first such row.
__device__ __forceinline__ uint64_t rowsOf128Bytes(uint32_t address) {
  constexpr uint64_t kEightRows = 1024 >> 4, kSwizzle128 = 1;
  return uint64_t((address & 0x3FFFF) >> 4) | uint64_t(1) << 16 | kEightRows << 32 |
         kSwizzle128 << 62;
}
// Describes rows of k with N along them, as B of a product that turns it (kTurned): panels of 64
// elements of N, `panelBytes` apart, each with a row of 128 bytes for every k, swizzled likewise. Eight
// rows of a panel are the stride here, and panels the leading one (PTX ISA, "Strides").
__device__ __forceinline__ uint64_t panelsOf128Bytes(uint32_t address, uint32_t panelBytes) {
  constexpr uint64_t kEightRows = 1024 >> 4, kSwizzle128 = 1;
  return uint64_t((address & 0x3FFFF) >> 4) | uint64_t(panelBytes >> 4) << 16 | kEightRows << 32 |
         kSwizzle128 << 62;
}
// What lies `bytes` further on. The address does not leave its half of the descriptor.
__device__ __forceinline__ uint64_t advanced(uint64_t descriptor, uint32_t bytes) {
  const uint32_t low = static_cast<uint32_t>(descriptor) + (bytes >> 4);
  return (descriptor >> 32) << 32 | low;
}
__device__ __forceinline__ void productsBegin() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void productsCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void productsWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Registers of the threads of a warpgroup from here on; all of its warps do it. The kernel's launch
// bounds must have given it a limit.
template <int kRegisters>
__device__ __forceinline__ void giveRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void takeRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// The compiler knows of no tie between a wait and the registers it is for: whatever reads or writes
// them stays behind this.
template <int N>
__device__ __forceinline__ void holdRegisters(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// Registers 0 .. 127 by eights, in the text and as operands; H: half of the last eight.
#define MR_T0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define MR_T1 MR_T0 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define MR_T2H MR_T1 ", %16, %17, %18, %19"
#define MR_T2 MR_T2H ", %20, %21, %22, %23"
#define MR_T3H MR_T2 ", %24, %25, %26, %27"
#define MR_T3 MR_T3H ", %28, %29, %30, %31"
#define MR_T4 MR_T3 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define MR_T5 MR_T4 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define MR_T6 MR_T5 ", %48, %49, %50, %51, %52, %53, %54, %55"
#define MR_T7 MR_T6 ", %56, %57, %58, %59, %60, %61, %62, %63"
#define MR_T11 \
  MR_T7        \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, " \
  "%83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define MR_T15 \
  MR_T11       \
  ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "    \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define MR_O(i)                                                                             \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define MR_OH(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define MR_O1 MR_O(0), MR_O(8)
#define MR_O2 MR_O1, MR_O(16)
#define MR_O3 MR_O2, MR_O(24)
#define MR_O4 MR_O3, MR_O(32)
#define MR_O5 MR_O4, MR_O(40)
#define MR_O6 MR_O5, MR_O(48)
#define MR_O7 MR_O6, MR_O(56)
#define MR_O11 MR_O7, MR_O(64), MR_O(72), MR_O(80), MR_O(88)
#define MR_O15 MR_O11, MR_O(96), MR_O(104), MR_O(112), MR_O(120)

// A, B, P: the numbers of the operands behind the registers.
#define MR_WGMMA(SHAPE, TYPES, REGISTERS, A, B, P, TAIL, ...)                              \
  asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" P ", 0;\n\t"                       \
               "wgmma.mma_async.sync.aligned." SHAPE ".f32." TYPES " {" REGISTERS "}, %" A \
               ", %" B ", p, 1, 1" TAIL ";\n\t}"                                           \
               : __VA_ARGS__                                                               \
               : "l"(a), "l"(b), "r"(int(accumulate)))

// d [64, N] (+)= A [64, k] . B [N, k]^T, both in shared memory, k 32 bytes of either.
template <class T, int N>
struct Products;

#define MR_PRODUCTS(N, REGISTERS, A, B, P, ...)                                                      \
  template <class T>                                                                                 \
  struct Products<T, N> {                                                                            \
    static __device__ __forceinline__ void add(float (&d)[N / 2], uint64_t a, uint64_t b,            \
                                               bool accumulate) {                                    \
      if constexpr (std::is_same_v<T, __nv_bfloat16>) {                                              \
        MR_WGMMA("m64n" #N "k16", "bf16.bf16", REGISTERS, A, B, P, ", 0, 0", __VA_ARGS__);           \
      } else if constexpr (std::is_same_v<T, __half>) {                                              \
        MR_WGMMA("m64n" #N "k16", "f16.f16", REGISTERS, A, B, P, ", 0, 0", __VA_ARGS__);             \
      } else {                                                                                       \
        MR_WGMMA("m64n" #N "k32", "e4m3.e4m3", REGISTERS, A, B, P, "", __VA_ARGS__);                 \
      }                                                                                              \
    }                                                                                                \
  };
MR_PRODUCTS(16, MR_T0, "8", "9", "10", MR_O(0))
MR_PRODUCTS(32, MR_T1, "16", "17", "18", MR_O1)
MR_PRODUCTS(40, MR_T2H, "20", "21", "22", MR_O1, MR_OH(16))
MR_PRODUCTS(48, MR_T2, "24", "25", "26", MR_O2)
MR_PRODUCTS(56, MR_T3H, "28", "29", "30", MR_O2, MR_OH(24))
MR_PRODUCTS(64, MR_T3, "32", "33", "34", MR_O3)
MR_PRODUCTS(80, MR_T4, "40", "41", "42", MR_O4)
MR_PRODUCTS(96, MR_T5, "48", "49", "50", MR_O5)
MR_PRODUCTS(112, MR_T6, "56", "57", "58", MR_O6)
MR_PRODUCTS(128, MR_T7, "64", "65", "66", MR_O7)
MR_PRODUCTS(192, MR_T11, "96", "97", "98", MR_O11)
MR_PRODUCTS(256, MR_T15, "128", "129", "130", MR_O15)

// d [64, N] (+)= A [64, 16] . B [N, 16]^T with A in registers, 16 rows a warp as in a fragment of
// mma.m16n8k16; they stay as they are until the wait. kTurned: B is stored [16, N].
template <class T, int N, bool kTurned>
struct FragmentProducts;

#define MR_FRAGMENT_WGMMA(SHAPE, TYPES, REGISTERS, A, B, P, TURNED, ...)                                \
  asm volatile("{\n\t.reg .pred p;\n\tsetp.ne.b32 p, %" P ", 0;\n\t"                                  \
               "wgmma.mma_async.sync.aligned." SHAPE ".f32." TYPES " {" REGISTERS "}, {" A "}, %" B     \
               ", p, 1, 1, " TURNED ";\n\t}"                                                           \
               : __VA_ARGS__                                                                            \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(accumulate)))
#define MR_FRAGMENT_PRODUCTS(N, TURNED, DIGIT, REGISTERS, A, B, P, ...)                                 \
  template <class T>                                                                                    \
  struct FragmentProducts<T, N, TURNED> {                                                               \
    static __device__ __forceinline__ void add(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b,   \
                                               bool accumulate) {                                       \
      if constexpr (std::is_same_v<T, __nv_bfloat16>) {                                                 \
        MR_FRAGMENT_WGMMA("m64n" #N "k16", "bf16.bf16", REGISTERS, A, B, P, DIGIT, __VA_ARGS__);        \
      } else {                                                                                          \
        MR_FRAGMENT_WGMMA("m64n" #N "k16", "f16.f16", REGISTERS, A, B, P, DIGIT, __VA_ARGS__);          \
      }                                                                                                 \
    }                                                                                                   \
  };
MR_FRAGMENT_PRODUCTS(16, false, "0", MR_T0, "%8, %9, %10, %11", "12", "13", MR_O(0))
MR_FRAGMENT_PRODUCTS(32, false, "0", MR_T1, "%16, %17, %18, %19", "20", "21", MR_O1)
MR_FRAGMENT_PRODUCTS(64, false, "0", MR_T3, "%32, %33, %34, %35", "36", "37", MR_O3)
MR_FRAGMENT_PRODUCTS(64, true, "1", MR_T3, "%32, %33, %34, %35", "36", "37", MR_O3)
MR_FRAGMENT_PRODUCTS(128, false, "0", MR_T7, "%64, %65, %66, %67", "68", "69", MR_O7)
MR_FRAGMENT_PRODUCTS(128, true, "1", MR_T7, "%64, %65, %66, %67", "68", "69", MR_O7)

}  // namespace millrace::cuda
