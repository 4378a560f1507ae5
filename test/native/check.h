// Small helpers of the native checks: failures that name what differed, and repeatable randomness.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

// Conditions looked at, and those that did not hold.
extern long checks, failures;

#define EXPECT(condition, ...)                                 \
  do {                                                         \
    checks++;                                                  \
    if (!(condition)) {                                        \
      if (++failures <= 20) {                                  \
        printf("%s:%d: %s: ", __FILE__, __LINE__, #condition); \
        printf(__VA_ARGS__);                                   \
        printf("\n");                                          \
      }                                                        \
    }                                                          \
  } while (0)

struct Random {
  std::mt19937_64 engine;
  explicit Random(uint64_t seed) : engine(seed) {}
  // Uniform in low .. high, both included.
  int integer(int low, int high) {
    return low + int(engine() % uint64_t(high - low + 1));
  }
  float normal() { return std::normal_distribution<float>()(engine); }
  float uniform() { return float(engine() >> 40) * 0x1p-24f; }
  template <class T>
  T pick(std::initializer_list<T> of) {
    return of.begin()[integer(0, int(of.size()) - 1)];
  }
};

void checkVec();
void checkAttention(Random& random, int rounds);
void checkSample(Random& random, int rounds);
