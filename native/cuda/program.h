// The lowered program as the CUDA executor runs it. src/backend/cuda/lower.ts makes it, encode.ts
// writes it as one list of numbers, `decodeInstructions` reads and checks that list, so that nothing
// an instruction names can lie outside of its buffer or weight.
#pragma once
#include <vector>

#include "../batch.h"
#include "weights.h"

namespace millrace::cuda {

// In the order of OP_CODES in encode.ts.
enum class OpKind : int {
  Embed,      // out = rows of weight
  RmsNorm,    // out = norm of x in runs of the weight's width
  Linear,     // out = x . weight^T (+ bias) (+ residual)
  Add,        // out = x + residual
  QkvStore,   // out = queries, rotated; keys and values go to the cache
  Attention,  // out = attention of x (queries) over the cache
  SiluMul,    // out = silu(first half of x) * second half
  Moe,        // out = mixture of experts of x
  Gather,     // out = wanted rows of x
  Count
};

// Rows of activations in the workspace: of tokens, or of a tile of wanted rows.
struct BufferSpec {
  bool perToken;
  bool floats;    // float32 whatever the storage type: the logits
  int64_t stride;  // elements between rows
  size_t offset;  // bytes from the start of the activations
};

// Columns of a buffer; buffer -1 is no operand.
struct Operand {
  int buffer = -1, column = 0, width = 0;
  explicit operator bool() const { return buffer >= 0; }
};

inline bool operator==(const Operand& a, const Operand& b) {
  return a.buffer == b.buffer && a.column == b.column && a.width == b.width;
}

struct Instruction {
  OpKind kind;
  Operand x, residual, key, value, router, out;
  int weight = -1, bias = -1, down = -1;
  int qNorm = -1, kNorm = -1, table = -1;      // QkvStore
  int layer = 0, heads = 0, window = 0;        // QkvStore, Attention
  int topK = 0;                                // Moe
  bool normalize = false;
  float eps = 0, scale = 0;
  int product = -1;  // Linear: id in Gemm, set by the runner
  int best = -1;     // of the product that leaves the best logits only, likewise
  bool toFp8 = false;    // RmsNorm, SiluMul: `out` is the fp8 rows instead; see fp8_plan.h
  bool fromFp8 = false;  // Linear: the fp8 rows are x already
  int chained = 0;       // instructions from this one on that one kernel may do; see chain_plan.h
  int chain = -1;        // how it would: id in Chains, set by the runner where there is such a kernel
  int shape = -1;    // Attention: index of its AttentionShape, set by the runner
};

struct RopeTable {
  std::vector<double> invFreq;
  double scale;
};

struct KvShape {
  int kvHeads, headDim;
  bool fp8;  // e4m3 instead of the storage type
};

struct Limits : BatchLimits {
  int rowTile;    // wanted rows whose logits are computed together
  bool keepLogits;
};

struct Program {
  std::vector<BufferSpec> buffers;
  std::vector<Instruction> tokenOps;  // on the step's tokens
  std::vector<Instruction> rowOps;    // on tiles of the wanted rows
  std::vector<RopeTable> ropeTables;
  std::vector<KvShape> kvLayers;
  Operand logits;
  size_t activationBytes;
};

// Reads one instruction list. Throws std::invalid_argument on anything out of bounds.
std::vector<Instruction> decodeInstructions(const std::vector<double>& code, bool perToken,
                                            const Program& program,
                                            const std::vector<WeightSpec>& weights);
// How many operands of all instructions read each buffer.
std::vector<int> readersOf(const Program& program);
// Checks buffers and logits.
void checkProgram(const Program& program, const Limits& limits, Elem elem);

}  // namespace millrace::cuda
