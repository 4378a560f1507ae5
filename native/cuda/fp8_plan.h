// Where activations of a program become fp8: by the operation that makes them where everything that
// reads them is a product of fp8, else by a pass of its own.
#pragma once
#include "program.h"

namespace millrace::cuda {

// Sets Instruction::toFp8 and fromFp8. There is one place for fp8 rows, so that what is written there
// is read by the products right behind it. Throws std::invalid_argument where fp8 weights have no use
// or sizes without kernels.
void planFp8(Program& program, const std::vector<WeightSpec>& weights, Elem elem);

}  // namespace millrace::cuda
