#include "cpu_features.h"

namespace millrace {

std::vector<std::string> availableIsas() {
  std::vector<std::string> list = {"portable"};
#if defined(__x86_64__)
  __builtin_cpu_init();
  // The builtins also ask whether the operating system saves the registers (XGETBV).
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx2) list.push_back("avx2");
  if (avx512) list.push_back("avx512");
  // Every machine with BF16 has VNNI as well so far, and the kernels count on both.
  if (avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) {
    list.push_back("avx512bf16");
  }
#endif
  return list;
}

}  // namespace millrace
