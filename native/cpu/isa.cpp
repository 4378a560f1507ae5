#include "isa.h"

#include "cpu_features.h"

namespace millrace {

static const Kernels* const allKernels[] = {
    &portableKernels,
#if defined(__x86_64__)
    &avx2Kernels,
    &avx512Kernels,
    &avx512bf16Kernels,
#endif
};

std::vector<const Kernels*> availableKernels() {
  std::vector<const Kernels*> list;
  for (const std::string& name : availableIsas()) {
    for (const Kernels* each : allKernels) {
      if (name == each->name) list.push_back(each);
    }
  }
  return list;
}

}  // namespace millrace
