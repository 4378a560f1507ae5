// The contract between the step interpreter and the kernels. Every instruction set compiles the
// same kernel sources (*.inl) with its own flags and namespace and fills one table of pointers.
#pragma once
#include <cstddef>
#include <cstdint>

namespace millrace {

// I8 is of the KV cache alone.
enum class DType : uint8_t { F32, F16, BF16, I8 };

// One step: the arrays of StepBatch in src/backend/backend.ts, checked before they come here.
// T tokens, S sequences, R rows of wanted logits.
struct Step {
  int numTokens, numSeqs, numRows;
  const int32_t* tokens;           // [T]
  const int32_t* positions;        // [T]
  const int32_t* slots;            // [T] block * blockSize + offset
  const int32_t* queryStart;       // [S + 1]
  const int32_t* contextLens;      // [S]
  const int32_t* blockTables;      // [blockTableStart[S]]
  const int32_t* blockTableStart;  // [S + 1]
  const int32_t* rows;             // [R]
};

// Columns of a row-major float matrix: row t starts at data + t * stride (in floats).
struct View {
  float* data;
  size_t stride;
};

}  // namespace millrace
