// The lowered program as the interpreter runs it. src/backend/cpu/lower.ts makes it (fusion),
// encode.ts writes it as one list of numbers, `decodeProgram` reads and checks that list, so that
// nothing an instruction names can lie outside of its buffer or weight.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "../batch.h"
#include "weights.h"

namespace millrace {

// In the order of OP_CODES in encode.ts.
enum class OpKind : int {
  Embed,      // out = rows of weight
  RmsNorm,    // out, outBf16 = norm of x in runs of `group`
  Linear,     // out, outBf16 = x . weight^T (+ bias) (silu(gate) * up) (+ residual)
  Add,        // out = x + residual
  Rope,       // out = rotated x
  Attention,  // out = attention of x (queries), key, value
  SiluMul,    // out, outBf16 = silu(first half of x) * second half
  Moe,        // out = mixture of experts of x
  Gather,     // out = wanted rows of x
  ToBf16,     // outBf16 = x rounded
  Count
};

// Rows of activations in the workspace: maxTokens of them, or a tile of wanted rows.
struct BufferSpec {
  bool perToken;
  bool bf16;
  size_t stride;  // elements between rows
  size_t offset;  // bytes from the start of the workspace, a multiple of 64
};

// Columns of a buffer; buffer -1 is no operand.
struct Operand {
  int buffer = -1, column = 0, width = 0;
  explicit operator bool() const { return buffer >= 0; }
};

struct Instruction {
  OpKind kind;
  Operand x, residual, key, value, router, out, outBf16;
  int weight = -1, bias = -1, down = -1;
  int group = 0;                                  // RmsNorm
  int headDim = 0, table = 0;                     // Rope
  int layer = 0, heads = 0, kvHeads = 0, window = 0;  // Attention
  int topK = 0;                                   // Moe
  bool normalize = false;
  float eps = 0, scale = 0;
  const uint8_t* nextWeight = nullptr;  // Linear: packed weight of the next one, set by the runner
};

struct RopeTable {
  std::vector<double> invFreq;
  double scale;
};

struct KvLayer {
  int kvHeads, headDim;
};

struct Limits : BatchLimits {
  int rowTile;  // wanted rows whose logits are computed together
  bool keepLogits;
};

struct Program {
  std::vector<BufferSpec> buffers;
  std::vector<Instruction> tokenOps;  // on the step's tokens
  std::vector<Instruction> rowOps;    // on tiles of the wanted rows; the first ones gather
  std::vector<RopeTable> ropeTables;
  std::vector<KvLayer> kvLayers;
  Operand logits;
  size_t workspaceBytes;
};

// Reads one instruction list. Throws std::invalid_argument on anything out of bounds.
std::vector<Instruction> decodeInstructions(const double* code, size_t length, bool perToken,
                                            const Program& program,
                                            const std::vector<WeightSpec>& weights,
                                            bool bf16Inputs);
// Checks buffers, logits and tables.
void checkProgram(const Program& program, const Limits& limits);

}  // namespace millrace
