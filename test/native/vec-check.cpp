// The vector layer against the same thing done to one number at a time.
#include <cmath>
#include <cstring>

#include "../../native/cpu/vec.h"
#include "check.h"

namespace isa = millrace::MILLRACE_ISA;

namespace {

bool same(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

void checkConversions() {
  // Every number of 16 bits comes back; in between, the nearest, or the even one of two.
  for (uint32_t h = 0; h < 65536; h++) {
    const float f = isa::fromF16(uint16_t(h)), b = isa::fromBf16(uint16_t(h));
    const uint16_t f16 = isa::toF16(f), bf16 = isa::toBf16(b);
    EXPECT(std::isnan(f) ? std::isnan(isa::fromF16(f16)) : f16 == h, "f16 %x", h);
    EXPECT(std::isnan(b) ? std::isnan(isa::fromBf16(bf16)) : bf16 == h, "bf16 %x", h);
    if ((h & 0x7fff) >= 0x7bff) continue;
    const float middle = (f + isa::fromF16(uint16_t(h + 1))) / 2;
    EXPECT(isa::toF16(middle) == h + (h & 1), "middle of f16 %x and the next", h);
  }
  EXPECT(isa::fromF16(0x3555) == 0.333251953125f && isa::toF16(65520) == 0x7c00, "f16 by hand");
  EXPECT(isa::fromF16(1) == 0x1p-24f && isa::toBf16(1.00390625f) == 0x3f80, "by hand");

  Random random(3);
  for (int i = 0; i < 5000; i++) {
    float x[16], wide[16];
    uint16_t half[16];
    for (float& v : x) v = isa::floatOf(uint32_t(random.engine()));
    if (i % 2) for (float& v : x) v = random.normal() * 30;
    isa::storeF16(half, isa::load(x));
    isa::store(wide, isa::loadF16(half));
    for (int j = 0; j < 16; j++) {
      EXPECT(same(isa::fromF16(half[j]), isa::fromF16(isa::toF16(x[j]))), "f16 of %g", x[j]);
      EXPECT(same(wide[j], isa::fromF16(half[j])), "f16 %x", half[j]);
    }
    isa::storeBf16(half, isa::load(x));
    isa::store(wide, isa::loadBf16(half));
    for (int j = 0; j < 16; j++) {
      // The instruction takes denormals for zero.
      const bool denormal = std::fabs(x[j]) < 0x1p-126f;
      const float expected = isa::fromBf16(isa::toBf16(x[j]));
      EXPECT(denormal || same(isa::fromBf16(half[j]), expected), "bf16 of %g", x[j]);
      EXPECT(same(wide[j], isa::fromBf16(half[j])), "bf16 %x", half[j]);
    }
  }
}

void checkExp() {
  double worst = 0;
  for (float x = -87.3f; x < 88.7f; x += 0.0137f) {
    float y[16];
    isa::store(y, isa::exp(isa::splat(x)));
    const double exact = std::exp(double(x));
    worst = std::max(worst, std::fabs(y[5] - exact) / std::ldexp(1.0, std::ilogb(exact) - 23));
  }
  EXPECT(worst < 2, "%g ulp", worst);
  const float x[16] = {-INFINITY, INFINITY, NAN, 0, 89, -104, -3e38f, 3e38f};
  const float expected[8] = {0, INFINITY, NAN, 1, INFINITY, 0, 0, INFINITY};
  float y[16];
  isa::store(y, isa::exp(isa::load(x)));
  for (int i = 0; i < 8; i++) EXPECT(same(y[i], expected[i]), "exp(%g) is %g", x[i], y[i]);
  isa::store(y, isa::silu(isa::splat(-3)));
  EXPECT(std::fabs(y[0] + 3 / (1 + std::exp(3.0))) < 1e-7, "silu(-3) is %g", y[0]);
}

void checkLanes() {
  float x[16], y[16], z[16];
  for (int i = 0; i < 16; i++) {
    x[i] = float(i * 7 % 16);
    y[i] = float(i);
  }
  const isa::Vec a = isa::load(x), b = isa::load(y);
  EXPECT(isa::reduceSum(a) == 120 && isa::reduceMax(a) == 15, "reductions");
  for (int n = 0; n <= 16; n++) {
    memset(z, 0xff, sizeof(z));
    isa::storeFirst(z, isa::select(isa::firstLanes(n), a, b), 15);
    for (int i = 0; i < 15; i++) EXPECT(z[i] == (i < n ? x[i] : y[i]), "lane %d of %d", i, n);
    EXPECT(std::isnan(z[15]), "wrote past the last lane");
    isa::store(z, isa::loadFirst(x, n));
    for (int i = 0; i < 16; i++) EXPECT(z[i] == (i < n ? x[i] : 0), "lane %d of %d", i, n);
  }
  uint32_t below = 0;
  for (int i = 0; i < 16; i++) below |= uint32_t(x[i] < y[i]) << i;
  EXPECT(isa::bits(isa::less(a, b)) == below, "mask %x", isa::bits(isa::less(a, b)));
  int32_t at[16];
  EXPECT(isa::compress(isa::less(a, b), a, z, 100, at) == __builtin_popcount(below), "compress");
  for (int i = 0, n = 0; i < 16; i++) {
    if (!(below >> i & 1)) continue;
    EXPECT(z[n] == x[i] && at[n] == 100 + i, "compressed lane %d", i);
    n++;
  }
  isa::store(z, isa::max(isa::splat(NAN), a));
  EXPECT(z[3] == x[3], "max takes the second of NaN and a number");
  isa::store(z, isa::max(a, isa::splat(NAN)));
  EXPECT(std::isnan(z[3]), "max takes the second of a number and NaN");
}

}  // namespace

void checkVec() {
  checkConversions();
  checkExp();
  checkLanes();
}
