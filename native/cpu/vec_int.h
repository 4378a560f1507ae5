// Sixteen sums of products of bytes, the same names on every instruction set: vpdpbusd where there
// is VNNI; elsewhere 16-bit products summed in pairs (pmaddwd), which cannot overflow: bytes of a
// weight are spread to 16 bits first, even and odd ones apart. pmaddubsw, which takes bytes, would
// saturate.
#pragma once
#include "vec.h"

namespace millrace {
namespace MILLRACE_ISA {

#if defined(__AVX512F__)

typedef __m512i Ints;
MR_INLINE Ints splatInt(int32_t x) { return _mm512_set1_epi32(x); }
MR_INLINE Ints loadInts(const void* p) { return _mm512_loadu_si512(p); }
MR_INLINE Ints lowNibbles(Ints v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
MR_INLINE Ints highNibbles(Ints v) { return lowNibbles(_mm512_srli_epi16(v, 4)); }
MR_INLINE Vec toFloat(Ints v) { return _mm512_cvtepi32_ps(v); }
// Sixteen signed bytes.
MR_INLINE Vec loadBytes(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
}

#else

typedef int32_t PartInts __attribute__((vector_size(kPartLanes * 4)));
struct Ints {
  PartInts p[kParts];
};
MR_INLINE Ints splatInt(int32_t x) {
  Ints r;
  MR_EACH_PART r.p[i] = x - (PartInts){};
  return r;
}
MR_INLINE Ints loadInts(const void* from) {
  Ints r;
  MR_EACH_PART memcpy(&r.p[i], (const char*)from + i * kPartLanes * 4, sizeof(PartInts));
  return r;
}
MR_INLINE Ints lowNibbles(Ints v) {
  MR_EACH_PART v.p[i] = v.p[i] & 0x0f0f0f0f;
  return v;
}
MR_INLINE Ints highNibbles(Ints v) {
  MR_EACH_PART v.p[i] = (v.p[i] >> 4) & 0x0f0f0f0f;
  return v;
}
MR_INLINE Vec toFloat(Ints v) {
  Vec r;
  MR_EACH_PART r.p[i] = __builtin_convertvector(v.p[i], Part);
  return r;
}
MR_INLINE Vec loadBytes(const int8_t* from) {
  typedef int8_t PartBytes __attribute__((vector_size(kPartLanes)));
  Vec r;
  MR_EACH_PART {
    PartBytes bytes;
    memcpy(&bytes, from + i * kPartLanes, sizeof(bytes));
    r.p[i] = __builtin_convertvector(bytes, Part);
  }
  return r;
}

#endif

#if defined(__AVX512VNNI__)

// Four bytes of a weight in each lane, ready to be multiplied, and four signed bytes of a row.
typedef Ints Quads;
constexpr int kQuadBytes = 4;
MR_INLINE Quads quads(Ints bytes) { return bytes; }
MR_INLINE Ints dotQuads(Ints acc, Quads w, const uint8_t* x) {
  int32_t quad;
  memcpy(&quad, x, 4);
  // Not the intrinsic: GCC 12 copies its sums from register to register, and to memory.
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(_mm512_set1_epi32(quad)));
  return acc;
}
// Four codes of a row, whole numbers in -127 .. 127, as dotQuads takes them.
MR_INLINE void storeQuads(uint8_t* to, Vec codes) {
  _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(codes)));
}

#else

struct Quads {
  Ints even, odd;  // bytes 0 and 2, bytes 1 and 3, as pairs of 16 bits
};
// A row's numbers 0 and 2, then 1 and 3, of 16 bits each.
constexpr int kQuadBytes = 8;

MR_INLINE Quads quads(Ints bytes) {
  Quads q;
#if defined(__AVX512F__)
  const Ints mask = _mm512_set1_epi32(0x00ff00ff);
  q.even = _mm512_and_si512(bytes, mask);
  q.odd = _mm512_and_si512(_mm512_srli_epi16(bytes, 8), mask);
#else
  MR_EACH_PART {
    q.even.p[i] = bytes.p[i] & 0x00ff00ff;
    q.odd.p[i] = (bytes.p[i] >> 8) & 0x00ff00ff;
  }
#endif
  return q;
}

// acc + the products of 16-bit pairs of a (from 0 to 255) and x.
MR_INLINE Ints dotPairs16(Ints acc, Ints a, int32_t x) {
#if defined(__AVX512F__)
  return _mm512_add_epi32(acc, _mm512_madd_epi16(a, _mm512_set1_epi32(x)));
#else
  MR_EACH_PART {
#if defined(__AVX2__)
    acc.p[i] += (PartInts)_mm256_madd_epi16((__m256i)a.p[i], _mm256_set1_epi32(x));
#elif defined(__SSE2__)
    acc.p[i] += (PartInts)_mm_madd_epi16((__m128i)a.p[i], _mm_set1_epi32(x));
#else
    acc.p[i] += (a.p[i] & 0xffff) * int32_t(int16_t(x)) + (a.p[i] >> 16) * (x >> 16);
#endif
  }
  return acc;
#endif
}

MR_INLINE Ints dotQuads(Ints acc, const Quads& w, const uint8_t* x) {
  int32_t pairs[2];
  memcpy(pairs, x, 8);
  return dotPairs16(dotPairs16(acc, w.even, pairs[0]), w.odd, pairs[1]);
}

MR_INLINE void storeQuads(uint8_t* to, Vec codes) {
  int32_t lane[kLanes];
  storeInt(lane, codes);
  int16_t wide[kLanes];
  for (int i = 0; i < kLanes; i += 4) {
    wide[i] = int16_t(lane[i]);
    wide[i + 1] = int16_t(lane[i + 2]);
    wide[i + 2] = int16_t(lane[i + 1]);
    wide[i + 3] = int16_t(lane[i + 3]);
  }
  memcpy(to, wide, sizeof(wide));
}

#endif

}  // namespace MILLRACE_ISA
}  // namespace millrace
