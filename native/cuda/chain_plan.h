// Where instructions of a program follow one another as the products of hopper_chain.h do.
#pragma once
#include "program.h"

namespace millrace::cuda {

// Instructions of chains of three products and of four.
constexpr int kShortChain = 5, kLongChain = 7;

// Sets Instruction::chained of the first of each such run: a product, a norm of its results, the product
// of gates, silu, a product; and a norm of that and one more product where these are there and suit.
// Nothing else reads what lies between, so that it need not be written where the program says. Products
// are of bfloat16.
void planChains(Program& program, const std::vector<WeightSpec>& weights, Elem elem);

// Widths of what lies between products of chains, the largest; 0 without chains.
struct ChainWidths {
  int sums = 0;   // that are normed
  int gates = 0;
};
ChainWidths chainWidths(const Program& program);

}  // namespace millrace::cuda
