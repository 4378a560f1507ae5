// Checks the kernels of one instruction set. `check ISA SEED ROUNDS` prints what differed; the exit
// status says whether anything did. `check list` prints the instruction sets of this machine; with
// PROBE_ONLY that is all there is.
#include "check.h"

#include <cstring>

long checks = 0, failures = 0;

static bool has(const char* isa) {
  if (!strcmp(isa, "portable")) return true;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (!strcmp(isa, "avx2")) return avx2;
  if (!strcmp(isa, "avx512")) return avx512;
  if (!strcmp(isa, "avx512bf16")) {
    return avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  }
#endif
  return false;
}

int main(int argc, char** argv) {
  if (argc == 2 && !strcmp(argv[1], "list")) {
    for (const char* isa : {"portable", "avx2", "avx512", "avx512bf16"}) {
      if (has(isa)) printf("%s\n", isa);
    }
    return 0;
  }
#if !defined(PROBE_ONLY)
  if (argc == 4 && has(argv[1])) {
    Random random(strtoull(argv[2], nullptr, 10));
    const int rounds = atoi(argv[3]);
    checkVec();
    checkAttention(random, rounds);
    checkSample(random, rounds);
    printf("%ld checks, %ld failures\n", checks, failures);
    return failures ? 1 : 0;
  }
#endif
  fprintf(stderr, "usage: check ISA SEED ROUNDS, ISA of this machine, or: check list\n");
  return 2;
}
