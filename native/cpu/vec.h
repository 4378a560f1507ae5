// Sixteen floats at a time, the same names on every instruction set: AVX-512 (one register, masks
// in mask registers), AVX2 with FMA and F16C (two registers), and anything else (four registers of
// four floats through the compiler's vector extension: SSE2, NEON).
//
// Kernel sources are compiled once for each instruction set. A translation unit defines
// MILLRACE_ISA (portable, avx2, avx512, avx512bf16: match the machine flags), then includes the
// *.inl it wants; each opens the namespace millrace::MILLRACE_ISA for itself. Nothing with a body
// may be visible outside of that namespace, or the linker could hand one unit's AVX-512 code to
// another. So no std:: templates in kernels either, except what the compiler always expands.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#endif

#ifndef MILLRACE_ISA
#error "define MILLRACE_ISA as the namespace of this instruction set before including kernels"
#endif

// For functions that must vanish into their callers: registers of vectors cannot be passed cheaply.
#define MR_INLINE static inline __attribute__((always_inline))

namespace millrace {
namespace MILLRACE_ISA {

constexpr int kLanes = 16;

template <class T>
MR_INLINE T least(T a, T b) {
  return b < a ? b : a;
}
template <class T>
MR_INLINE T most(T a, T b) {
  return a < b ? b : a;
}
MR_INLINE int roundUp(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Asks for the cache line at p, to be read soon.
MR_INLINE void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

// --- single numbers -------------------------------------------------------------------------

MR_INLINE uint32_t bitsOf(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  return u;
}
MR_INLINE float floatOf(uint32_t u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}
// As of vectors, below.
MR_INLINE float rounded(float x) {
#if defined(__SSE2__)
  asm("" : "+x"(x));
#else
  asm("" : "+m"(x));
#endif
  return x;
}
MR_INLINE float fromBf16(uint16_t h) { return floatOf(uint32_t(h) << 16); }

// Rounds to nearest, ties to even; NaN stays NaN.
MR_INLINE uint16_t toBf16(float x) {
  const uint32_t u = bitsOf(x);
  if ((u & 0x7fffffff) > 0x7f800000) return uint16_t(u >> 16 | 0x40);
  return uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

MR_INLINE float fromF16(uint16_t h) {
  // As an exponent of binary32 the five bits are 112 too low; a product repairs normal and
  // denormal numbers alike.
  uint32_t u = bitsOf(floatOf(uint32_t(h & 0x7fff) << 13) * 0x1p112f);
  if ((h & 0x7c00) == 0x7c00) u |= 0x7f800000;
  return floatOf(u | uint32_t(h & 0x8000) << 16);
}

// Rounds to nearest, ties to even; beyond 65,520 infinity; NaN stays NaN.
MR_INLINE uint16_t toF16(float x) {
  const uint32_t u = bitsOf(x), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (a >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (a < 0x38800000) {  // denormal: adding 0.5 leaves multiples of 2^-24 in the low bits, rounded
    return uint16_t(sign | (bitsOf(floatOf(a) + 0.5f) - 0x3f000000));
  }
  return uint16_t(sign | ((a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13));
}

// --- vectors --------------------------------------------------------------------------------

#if defined(__AVX512F__)

typedef __m512 Vec;
typedef __mmask16 Mask;

MR_INLINE Vec zero() { return _mm512_setzero_ps(); }
MR_INLINE Vec splat(float x) { return _mm512_set1_ps(x); }
MR_INLINE Vec load(const float* p) { return _mm512_loadu_ps(p); }
MR_INLINE void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
MR_INLINE Mask firstLanes(int n) { return n >= 16 ? Mask(0xffff) : Mask((1u << n) - 1); }
MR_INLINE Vec loadFirst(const float* p, int n) { return _mm512_maskz_loadu_ps(firstLanes(n), p); }
MR_INLINE void storeFirst(float* p, Vec v, int n) { _mm512_mask_storeu_ps(p, firstLanes(n), v); }
MR_INLINE Vec loadF16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
MR_INLINE void storeF16(uint16_t* p, Vec v) {
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}
MR_INLINE Vec loadBf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
MR_INLINE void storeBf16(uint16_t* p, Vec v) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256((__m256i*)p, (__m256i)_mm512_cvtneps_pbh(v));
#else
  const __m512i u = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const Mask nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, u, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
#endif
}
// 16 pairs of bf16 numbers at p: the first of each pair, and the second.
MR_INLINE void loadPairs(const uint16_t* p, Vec& even, Vec& odd) {
  const __m512i u = _mm512_loadu_si512(p);
  even = _mm512_castsi512_ps(_mm512_slli_epi32(u, 16));
  odd = _mm512_castsi512_ps(_mm512_and_si512(u, _mm512_set1_epi32(int(0xffff0000))));
}
// a * b + c, rounded once.
MR_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
// The larger; b where one of them is NaN.
MR_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
MR_INLINE float reduceMax(Vec v) { return _mm512_reduce_max_ps(v); }
MR_INLINE float reduceSum(Vec v) { return _mm512_reduce_add_ps(v); }
MR_INLINE Mask less(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
MR_INLINE Mask equal(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
MR_INLINE Vec select(Mask m, Vec yes, Vec no) { return _mm512_mask_blend_ps(m, no, yes); }
// Bit i is lane i. Not a plain conversion: GCC 12 was seen to spill the mask as two bytes and to
// load it as four.
MR_INLINE uint32_t bits(Mask m) {
  uint32_t r;
  asm("kmovw %1, %0" : "=r"(r) : "k"(m));
  return r;
}
MR_INLINE Vec roundNearest(Vec v) {
  return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// v * 2^n for integral n, with gradual underflow.
MR_INLINE Vec scaleByPower(Vec v, Vec n) { return _mm512_scalef_ps(v, n); }
// Keeps the compiler from fusing the operation that made v with the one that takes it: for
// arithmetic that must come out the same on every machine.
MR_INLINE Vec rounded(Vec v) {
  asm("" : "+v"(v));
  return v;
}
// Integral values below 2^31 as 32-bit integers.
MR_INLINE void storeInt(int32_t* p, Vec v) { _mm512_storeu_si512(p, _mm512_cvttps_epi32(v)); }
// The lanes of v in the mask one after the other, beside `base` + the number of the lane. Returns
// how many; all 16 places may be written.
MR_INLINE int compress(Mask m, Vec v, float* values, int base, int32_t* indices) {
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const __m512i index = _mm512_add_epi32(lanes, _mm512_set1_epi32(base));
  // Through a register: compressing into memory is microcoded on some machines.
  _mm512_storeu_ps(values, _mm512_maskz_compress_ps(m, v));
  _mm512_storeu_si512(indices, _mm512_maskz_compress_epi32(m, index));
  return __builtin_popcount(bits(m));
}

#if defined(__AVX512BF16__)
constexpr bool kHasPairDot = true;
typedef __m512i Pairs;
MR_INLINE Pairs loadPairBits(const uint16_t* p) { return _mm512_loadu_si512(p); }
// The pairs with their second number replaced by zero, whatever it was.
MR_INLINE Pairs firstOfPairs(Pairs w) { return _mm512_and_si512(w, _mm512_set1_epi32(0xffff)); }
// acc + w[0] * x[0] + w[1] * x[1] for 16 pairs w of bf16 numbers and one pair x for all lanes.
MR_INLINE Vec dotPairs(Vec acc, Pairs w, uint32_t x) {
  return _mm512_dpbf16_ps(acc, (__m512bh)w, (__m512bh)_mm512_set1_epi32(int(x)));
}
#endif

#else  // two registers of eight, or four of four

#if defined(__AVX2__)
constexpr int kPartLanes = 8;
#else
constexpr int kPartLanes = 4;
#endif
constexpr int kParts = kLanes / kPartLanes;
typedef float Part __attribute__((vector_size(kPartLanes * 4)));
typedef int32_t PartBits __attribute__((vector_size(kPartLanes * 4)));

struct Vec {
  Part p[kParts];
};
struct Mask {
  PartBits p[kParts];
};

#define MR_EACH_PART _Pragma("GCC unroll 4") for (int i = 0; i < kParts; i++)

MR_INLINE Vec splat(float x) {
  Vec r;
  MR_EACH_PART r.p[i] = x - (Part){};
  return r;
}
MR_INLINE Vec zero() { return splat(0); }
MR_INLINE Vec load(const float* p) {
  Vec r;
  MR_EACH_PART memcpy(&r.p[i], p + i * kPartLanes, sizeof(Part));
  return r;
}
MR_INLINE void store(float* p, Vec v) {
  MR_EACH_PART memcpy(p + i * kPartLanes, &v.p[i], sizeof(Part));
}
MR_INLINE Mask firstLanes(int n) {
  int32_t lane[kLanes];
  for (int i = 0; i < kLanes; i++) lane[i] = i < n ? -1 : 0;
  Mask m;
  MR_EACH_PART memcpy(&m.p[i], lane + i * kPartLanes, sizeof(Part));
  return m;
}
MR_INLINE Vec loadFirst(const float* p, int n) {
  float lane[kLanes];
  for (int i = 0; i < kLanes; i++) lane[i] = i < n ? p[i] : 0;
  return load(lane);
}
MR_INLINE void storeFirst(float* p, Vec v, int n) {
  float lane[kLanes];
  store(lane, v);
  for (int i = 0; i < kLanes && i < n; i++) p[i] = lane[i];
}
#define MR_BINARY(op)                         \
  MR_INLINE Vec operator op(Vec a, Vec b) {   \
    MR_EACH_PART a.p[i] = a.p[i] op b.p[i];   \
    return a;                                 \
  }
MR_BINARY(+)
MR_BINARY(-)
MR_BINARY(*)
MR_BINARY(/)
#undef MR_BINARY
MR_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX2__)
  MR_EACH_PART c.p[i] = _mm256_fmadd_ps(a.p[i], b.p[i], c.p[i]);
#else
  MR_EACH_PART c.p[i] = a.p[i] * b.p[i] + c.p[i];
#endif
  return c;
}
MR_INLINE Vec max(Vec a, Vec b) {
  MR_EACH_PART a.p[i] = a.p[i] > b.p[i] ? a.p[i] : b.p[i];
  return a;
}
MR_INLINE float reduceMax(Vec v) {
  Part m = v.p[0];
  for (int i = 1; i < kParts; i++) m = m > v.p[i] ? m : v.p[i];
  float r = m[0];
  for (int i = 1; i < kPartLanes; i++) r = r > m[i] ? r : m[i];
  return r;
}
MR_INLINE float reduceSum(Vec v) {
  Part s = v.p[0];
  for (int i = 1; i < kParts; i++) s += v.p[i];
  float r = s[0];
  for (int i = 1; i < kPartLanes; i++) r += s[i];
  return r;
}
MR_INLINE Mask less(Vec a, Vec b) {
  Mask m;
  MR_EACH_PART m.p[i] = a.p[i] < b.p[i];
  return m;
}
MR_INLINE Mask equal(Vec a, Vec b) {
  Mask m;
  MR_EACH_PART m.p[i] = a.p[i] == b.p[i];
  return m;
}
MR_INLINE Vec select(Mask m, Vec yes, Vec no) {
  MR_EACH_PART no.p[i] = m.p[i] ? yes.p[i] : no.p[i];
  return no;
}
MR_INLINE uint32_t bits(Mask m) {
  uint32_t r = 0;
#if defined(__AVX2__)
  MR_EACH_PART r |= uint32_t(_mm256_movemask_ps((__m256)m.p[i])) << i * kPartLanes;
#elif defined(__SSE2__)
  MR_EACH_PART r |= uint32_t(_mm_movemask_ps((__m128)m.p[i])) << i * kPartLanes;
#else
  for (int i = 0; i < kLanes; i++) r |= (m.p[i / kPartLanes][i % kPartLanes] & 1u) << i;
#endif
  return r;
}
MR_INLINE Vec loadF16(const uint16_t* p) {
  Vec r;
#if defined(__AVX2__)
  MR_EACH_PART r.p[i] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + i * kPartLanes)));
#else
  for (int i = 0; i < kLanes; i++) r.p[i / kPartLanes][i % kPartLanes] = fromF16(p[i]);
#endif
  return r;
}
MR_INLINE void storeF16(uint16_t* p, Vec v) {
#if defined(__AVX2__)
  MR_EACH_PART _mm_storeu_si128((__m128i*)(p + i * kPartLanes),
                                _mm256_cvtps_ph(v.p[i], _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes; i++) p[i] = toF16(v.p[i / kPartLanes][i % kPartLanes]);
#endif
}
MR_INLINE Vec loadBf16(const uint16_t* p) {
  Vec r;
#if defined(__AVX2__)
  MR_EACH_PART r.p[i] = (Part)_mm256_slli_epi32(
      _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(p + i * kPartLanes))), 16);
#else
  for (int i = 0; i < kLanes; i++) r.p[i / kPartLanes][i % kPartLanes] = fromBf16(p[i]);
#endif
  return r;
}
MR_INLINE void storeBf16(uint16_t* p, Vec v) {
  for (int i = 0; i < kLanes; i++) p[i] = toBf16(v.p[i / kPartLanes][i % kPartLanes]);
}
MR_INLINE void loadPairs(const uint16_t* p, Vec& even, Vec& odd) {
  MR_EACH_PART {
    PartBits u;
    memcpy(&u, p + i * kPartLanes * 2, sizeof(u));
    even.p[i] = (Part)(u << 16);
    odd.p[i] = (Part)(u & int32_t(0xffff0000));
  }
}
MR_INLINE Vec roundNearest(Vec v) {
  // Adding 1.5 * 2^23 leaves no bits for a fraction. For |v| < 2^22.
  const Vec magic = splat(12582912.0f);
  return (v + magic) - magic;
}
MR_INLINE Vec scaleByPower(Vec v, Vec n) {
  // In two factors: 2^n itself may be out of range where the product is not.
  MR_EACH_PART {
    const PartBits k = __builtin_convertvector(n.p[i], PartBits), half = k >> 1;
    v.p[i] = v.p[i] * (Part)((half + 127) << 23) * (Part)((k - half + 127) << 23);
  }
  return v;
}
MR_INLINE Vec rounded(Vec v) {
#if defined(__SSE2__)
  MR_EACH_PART asm("" : "+x"(v.p[i]));
#else
  MR_EACH_PART asm("" : "+m"(v.p[i]));
#endif
  return v;
}
MR_INLINE void storeInt(int32_t* p, Vec v) {
  MR_EACH_PART {
    const PartBits k = __builtin_convertvector(v.p[i], PartBits);
    memcpy(p + i * kPartLanes, &k, sizeof(k));
  }
}
MR_INLINE int compress(Mask m, Vec v, float* values, int base, int32_t* indices) {
  float lane[kLanes];
  store(lane, v);
  int n = 0;
  for (uint32_t rest = bits(m); rest; rest &= rest - 1) {
    const int i = __builtin_ctz(rest);
    values[n] = lane[i];
    indices[n++] = base + i;
  }
  return n;
}

#endif

#if !defined(__AVX512BF16__)
constexpr bool kHasPairDot = false;
#endif

// --- functions on any of them ---------------------------------------------------------------

// e^x to 2 ulp. 0 for -infinity, infinity from 88.73 on, NaN for NaN. Cody and Waite's reduction by
// ln 2 in two parts; the polynomial is expf's of the Cephes library (Moshier).
MR_INLINE Vec exp(Vec x) {
  x = max(splat(-104.0f), x);
  x = select(less(splat(89.0f), x), splat(89.0f), x);
  const Vec n = roundNearest(x * splat(1.44269504f));
  Vec r = fma(n, splat(-0.693359375f), x);
  r = fma(n, splat(2.12194440e-4f), r);
  Vec y = splat(1.9875691500e-4f);
  y = fma(y, r, splat(1.3981999507e-3f));
  y = fma(y, r, splat(8.3334519073e-3f));
  y = fma(y, r, splat(4.1665795894e-2f));
  y = fma(y, r, splat(1.6666665459e-1f));
  y = fma(y, r, splat(5.0000001201e-1f));
  y = fma(y, r * r, r + splat(1.0f));
  return scaleByPower(y, n);
}

// x / (1 + e^-x)
MR_INLINE Vec silu(Vec x) { return x / (splat(1.0f) + exp(zero() - x)); }

}  // namespace MILLRACE_ISA
}  // namespace millrace
