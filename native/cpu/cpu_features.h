// What this machine's processor can run, told without any kernel: the checks of the kernels link this
// alone, before they compile one instruction set.
#pragma once
#include <string>
#include <vector>

namespace millrace {

// Names of the instruction sets the kernels are compiled for and this machine has, slowest first;
// `portable` is always among them.
std::vector<std::string> availableIsas();

}  // namespace millrace
