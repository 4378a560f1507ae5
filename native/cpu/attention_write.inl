// Writes keys and values to the cache: the layout is told in attention.h. For one instruction set,
// see vec.h; attention.inl includes it.
#include "attention.h"
#include "vec.h"

namespace millrace {
namespace MILLRACE_ISA {
namespace attention {

// Writes token `lane` of a tile. Elements of 2 or 4 bytes, already converted.
template <class Element, int DEPTH>
MR_INLINE void writeToken(const KvLayout& kv, uint8_t* tile, int lane, const Element* k,
                          const Element* v) {
  Element* keys = (Element*)tile;
  for (int d = 0; d < kv.headDim; d++) {
    keys[(d / DEPTH * kTileTokens + lane) * DEPTH + d % DEPTH] = k[d];
  }
  // Single elements, not pairs: the other of a pair may be another thread's.
  Element* values = (Element*)(tile + kv.valueOffset) +
                    (lane / DEPTH * kv.paddedDim) * DEPTH + lane % DEPTH;
  for (int d = 0; d < kv.headDim; d++) values[d * DEPTH] = v[d];
}

// Asks for the lines of a tile that writing token `lane` touches: one for each 64 bytes of keys,
// and the token's values.
MR_INLINE void prefetchToken(const KvLayout& kv, const uint8_t* tile, int lane) {
  for (size_t line = 0; line < kv.valueOffset; line += 64) prefetch(tile + line);
  const int depth = kv.dtype == DType::BF16 ? 2 : 1;
  const size_t bytes = (kv.valueScales - kv.valueOffset) / kTileTokens * depth;
  const uint8_t* values = tile + kv.valueOffset + lane / depth * bytes;
  if (kv.dtype == DType::I8) prefetch(tile + kv.valueScales);
  for (size_t line = 0; line < bytes; line += 64) prefetch(values + line);
}

// Rounds the numbers of a head to nearest int8, ties to even, and returns their scale: NaN where one
// is not finite. `codes` has room for whole vectors.
MR_INLINE float roundHead(const float* x, int headDim, int8_t* codes) {
  Vec top = zero(), poison = zero();
  for (int c = 0; c < headDim; c += kLanes) {
    const Vec v = loadFirst(x + c, headDim - c);
    top = max(max(v, zero() - v), top);
    poison = poison + (v - v);
  }
  const float largest = reduceMax(top), bad = reduceSum(poison);
  // Smaller ones have no reciprocal, and a share in no sum.
  const bool none = !(largest >= 1e-30f) || bad != 0;
  const Vec inverse = splat(none ? 0 : 127.0f / largest);
  for (int c = 0; c < headDim; c += kLanes) {
    int32_t lane[kLanes] = {};
    if (!none) storeInt(lane, roundNearest(rounded(loadFirst(x + c, headDim - c) * inverse)));
    for (int i = 0; i < kLanes; i++) codes[c + i] = int8_t(lane[i]);
  }
  return bad != 0 ? bad : none ? 0 : largest / 127.0f;
}

MR_INLINE void writeHead(const KvLayout& kv, uint8_t* tile, int lane, const float* k,
                         const float* v) {
  if (kv.dtype == DType::F32) return writeToken<float, 1>(kv, tile, lane, k, v);
  if (kv.dtype == DType::I8) {
    int8_t k8[kMaxHeadDim], v8[kMaxHeadDim];
    ((float*)(tile + kv.keyScales))[lane] = roundHead(k, kv.headDim, k8);
    ((float*)(tile + kv.valueScales))[lane] = roundHead(v, kv.headDim, v8);
    for (int d = 0; d < kv.headDim; d++) tile[d * kTileTokens + lane] = uint8_t(k8[d]);
    memcpy(tile + kv.valueOffset + lane * kv.paddedDim, v8, kv.headDim);
    return;
  }
  uint16_t k16[kMaxHeadDim], v16[kMaxHeadDim];
  const bool bf16 = kv.dtype == DType::BF16;
  for (int c = 0; c < kv.headDim; c += kLanes) {
    const Vec kc = loadFirst(k + c, kv.headDim - c), vc = loadFirst(v + c, kv.headDim - c);
    if (bf16) {
      storeBf16(k16 + c, kc);
      storeBf16(v16 + c, vc);
    } else {
      storeF16(k16 + c, kc);
      storeF16(v16 + c, vc);
    }
  }
  if (bf16) return writeToken<uint16_t, 2>(kv, tile, lane, k16, v16);
  writeToken<uint16_t, 1>(kv, tile, lane, k16, v16);
}

static void writeKv(const KvWrite& w, int thread, int threads) {
  const KvLayout& kv = w.kv;
  const int64_t tokens = w.step->numTokens;
  // A unit is one kv head of one token. The lines of the next one are fetched while one is written,
  // unless the token before had the same: those of decodes are far apart and not in the cache.
  const int begin = int(tokens * thread / threads) * kv.kvHeads;
  const int end = int(tokens * (thread + 1) / threads) * kv.kvHeads;
  const auto tileOf = [&](int unit) {
    const int slot = w.step->slots[unit / kv.kvHeads], offset = slot % kv.blockSize;
    return w.cache + size_t(slot / kv.blockSize) * kv.blockBytes +
           size_t(unit % kv.kvHeads) * kv.headBytes + size_t(offset / kTileTokens) * kv.tileBytes;
  };
  const auto laneOf = [&](int unit) { return w.step->slots[unit / kv.kvHeads] % kTileTokens; };
  const auto continues = [&](int unit) {
    const int32_t* slot = w.step->slots + unit / kv.kvHeads;
    return unit >= kv.kvHeads && slot[0] == slot[-1] + 1 && slot[0] % kTileTokens != 0;
  };
  for (int unit = begin; unit < end; unit++) {
    if (unit + 1 < end && !continues(unit + 1)) {
      prefetchToken(kv, tileOf(unit + 1), laneOf(unit + 1));
    }
    const int t = unit / kv.kvHeads, column = unit % kv.kvHeads * kv.headDim;
    writeHead(kv, tileOf(unit), laneOf(unit), w.k.data + t * w.k.stride + column,
              w.v.data + t * w.v.stride + column);
  }
}

}  // namespace attention
}  // namespace MILLRACE_ISA
}  // namespace millrace
