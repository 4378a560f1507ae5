// Checks the kernels of one instruction set. `check ISA SEED ROUNDS` prints what differed; the exit
// status says whether anything did. `check list` prints the instruction sets of this machine; with
// PROBE_ONLY that is all there is.
#include "check.h"

#include <cstring>

#include "../../native/cpu/cpu_features.h"

long checks = 0, failures = 0;

#if !defined(PROBE_ONLY)
static bool has(const std::string& isa) {
  for (const std::string& each : millrace::availableIsas()) {
    if (each == isa) return true;
  }
  return false;
}
#endif

int main(int argc, char** argv) {
  if (argc == 2 && !strcmp(argv[1], "list")) {
    for (const std::string& isa : millrace::availableIsas()) printf("%s\n", isa.c_str());
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
