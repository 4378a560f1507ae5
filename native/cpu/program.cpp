#include "program.h"

#include <cmath>
#include <stdexcept>
#include <string>

#include "attention.h"

namespace millrace {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw std::invalid_argument("lowered program: " + what);
}

void require(bool holds, const char* what) {
  if (!holds) fail(what);
}

class Decoder {
 public:
  Decoder(const double* code, size_t length, bool perToken, const Program& program,
          const std::vector<WeightSpec>& weights, bool bf16Inputs)
      : at_(code), end_(code + length), perToken_(perToken), program_(program), weights_(weights),
        bf16Inputs_(bf16Inputs) {}

  bool done() const { return at_ == end_; }

  double number() {
    require(at_ < end_, "ends within an instruction");
    return *at_++;
  }

  int integer() {
    const double x = number();
    require(x >= -1 && x <= 2147483647 && x == std::floor(x), "a field is not an integer");
    return static_cast<int>(x);
  }

  Operand optional(bool bf16) {
    Operand operand;
    operand.buffer = integer();
    operand.column = integer();
    operand.width = integer();
    if (operand.buffer < 0) return operand;
    require(operand.buffer < static_cast<int>(program_.buffers.size()), "no such buffer");
    const BufferSpec& buffer = program_.buffers[operand.buffer];
    require(operand.column >= 0 && operand.width > 0, "an operand has no columns");
    // A row of bf16 numbers is read and written in pairs.
    const size_t width = bf16 ? (operand.width + 1) / 2 * 2 : operand.width;
    require(operand.column + width <= buffer.stride, "an operand leaves its buffer");
    require(buffer.bf16 == bf16, "an operand has the wrong type");
    require(anyRows_ || buffer.perToken == perToken_, "an operand has other rows");
    return operand;
  }

  Operand floats() { return present(optional(false)); }

  // Of a product with this weight: bf16 where the kernels want that; rows that meet integers are
  // quantized by the product itself.
  Operand input(const WeightSpec& weight) {
    return present(optional(bf16Inputs_ && weight.integer.bits == 0));
  }

  // Gather reads rows of tokens and writes wanted rows.
  Operand tokenFloats() {
    anyRows_ = true;
    const Operand operand = floats();
    anyRows_ = false;
    require(program_.buffers[operand.buffer].perToken, "gather reads rows of tokens");
    return operand;
  }

  int weight(WeightLayout layout) {
    const int id = optionalWeight(layout);
    require(id >= 0, "a weight is missing");
    return id;
  }

  int optionalWeight(WeightLayout layout) {
    const int id = integer();
    require(id < static_cast<int>(weights_.size()), "no such weight");
    require(id < 0 || weights_[id].layout == layout, "a weight has the wrong layout");
    return id;
  }

  const WeightSpec& spec(int weight) const { return weights_[weight]; }

 private:
  static Operand present(const Operand& operand) {
    require(static_cast<bool>(operand), "an operand is missing");
    return operand;
  }

  const double *at_, *end_;
  bool perToken_, anyRows_ = false;
  const Program& program_;
  const std::vector<WeightSpec>& weights_;
  bool bf16Inputs_;
};

void decodeOutputs(Decoder& in, Instruction& op, int width) {
  op.out = in.optional(false);
  op.outBf16 = in.optional(true);
  require(op.out || op.outBf16, "an operation has no output");
  require(!op.out || op.out.width == width, "an output has the wrong width");
  require(!op.outBf16 || op.outBf16.width == width, "an output has the wrong width");
}

Instruction decodeLinear(Decoder& in) {
  Instruction op{};
  op.kind = OpKind::Linear;
  const bool gateUp = in.integer() != 0;
  op.weight = in.weight(gateUp ? WeightLayout::GateUp : WeightLayout::Matrix);
  op.bias = in.optionalWeight(WeightLayout::Vector);
  op.x = in.input(in.spec(op.weight));
  op.residual = in.optional(false);
  const WeightSpec& weight = in.spec(op.weight);
  const int width = gateUp ? weight.n / 2 : weight.n;
  require(!gateUp || weight.n % 2 == 0, "gate and up differ in width");
  require(weight.experts == 1 && weight.k == op.x.width, "a linear's input has the wrong width");
  require(op.bias < 0 || in.spec(op.bias).n == weight.n, "a bias has the wrong width");
  require(!op.residual || op.residual.width == width, "a residual has the wrong width");
  decodeOutputs(in, op, width);
  return op;
}

Instruction decodeAttention(Decoder& in, const Program& program) {
  Instruction op{};
  op.kind = OpKind::Attention;
  op.layer = in.integer();
  require(op.layer >= 0 && op.layer < static_cast<int>(program.kvLayers.size()), "no such layer");
  op.x = in.floats();
  op.key = in.floats();
  op.value = in.floats();
  op.heads = in.integer();
  op.kvHeads = in.integer();
  op.headDim = in.integer();
  op.window = in.integer();
  op.scale = static_cast<float>(in.number());
  op.out = in.floats();
  const KvLayer& layer = program.kvLayers[op.layer];
  require(layer.kvHeads == op.kvHeads && layer.headDim == op.headDim, "attention differs from its cache");
  require(op.headDim >= kMinHeadDim && op.headDim <= kMaxHeadDim && op.headDim % 2 == 0,
          "the head size is not an even number from 8 to 256");
  require(op.kvHeads > 0 && op.heads > 0 && op.heads % op.kvHeads == 0,
          "heads are not a multiple of key-value heads");
  require(op.window >= 0, "a window is negative");
  require(op.x.width == op.heads * op.headDim && op.out.width == op.x.width &&
              op.key.width == op.kvHeads * op.headDim && op.value.width == op.key.width,
          "attention's operands have the wrong widths");
  return op;
}

Instruction decodeMoe(Decoder& in) {
  Instruction op{};
  op.kind = OpKind::Moe;
  op.weight = in.weight(WeightLayout::GateUp);
  op.down = in.weight(WeightLayout::Matrix);
  op.topK = in.integer();
  op.normalize = in.integer() != 0;
  op.x = in.input(in.spec(op.weight));
  op.router = in.floats();
  op.out = in.floats();
  const WeightSpec &gateUp = in.spec(op.weight), &down = in.spec(op.down);
  require(gateUp.experts == op.router.width && down.experts == gateUp.experts,
          "the experts of a mixture differ in number");
  require(op.topK > 0 && op.topK <= gateUp.experts, "more experts a token than there are");
  require(gateUp.n % 2 == 0 && gateUp.k == op.x.width && down.k == gateUp.n / 2 &&
              down.n == op.out.width,
          "a mixture's weights have the wrong shape");
  return op;
}

Instruction decode(Decoder& in, const Program& program) {
  Instruction op{};
  op.kind = static_cast<OpKind>(in.integer());
  switch (op.kind) {
    case OpKind::Embed:
      op.weight = in.weight(WeightLayout::Matrix);
      op.out = in.floats();
      require(op.out.width == in.spec(op.weight).k && in.spec(op.weight).experts == 1,
              "an embedding has the wrong width");
      return op;
    case OpKind::RmsNorm:
      op.x = in.floats();
      op.weight = in.weight(WeightLayout::Vector);
      op.group = in.spec(op.weight).n;
      op.eps = static_cast<float>(in.number());
      require(op.x.width % op.group == 0, "a norm's width is not a multiple of its group");
      decodeOutputs(in, op, op.x.width);
      return op;
    case OpKind::Linear:
      return decodeLinear(in);
    case OpKind::Add:
      op.x = in.floats();
      op.residual = in.floats();
      op.out = in.floats();
      require(op.x.width == op.out.width && op.residual.width == op.out.width,
              "an addition's operands have the wrong widths");
      return op;
    case OpKind::Rope:
      op.x = in.floats();
      op.headDim = in.integer();
      op.table = in.integer();
      op.out = in.floats();
      require(op.table >= 0 && op.table < static_cast<int>(program.ropeTables.size()),
              "no such rope table");
      require(op.headDim > 0 && op.headDim % 2 == 0 && op.x.width % op.headDim == 0 &&
                  op.out.width == op.x.width,
              "rope's operands have the wrong widths");
      require(static_cast<int>(program.ropeTables[op.table].invFreq.size()) == op.headDim / 2,
              "a rope table has the wrong length");
      return op;
    case OpKind::Attention:
      return decodeAttention(in, program);
    case OpKind::SiluMul:
      op.x = in.floats();
      require(op.x.width % 2 == 0, "silu_mul's input has an odd width");
      decodeOutputs(in, op, op.x.width / 2);
      return op;
    case OpKind::Moe:
      return decodeMoe(in);
    case OpKind::Gather:
      op.x = in.tokenFloats();
      op.out = in.floats();
      require(op.x.width == op.out.width, "gather's operands have the wrong widths");
      return op;
    case OpKind::ToBf16:
      op.x = in.floats();
      op.outBf16 = in.optional(true);
      require(op.outBf16 && op.outBf16.width == op.x.width, "a conversion has the wrong width");
      return op;
    default:
      fail("no such operation");
  }
}

}  // namespace

std::vector<Instruction> decodeInstructions(const double* code, size_t length, bool perToken,
                                            const Program& program,
                                            const std::vector<WeightSpec>& weights,
                                            bool bf16Inputs) {
  Decoder in(code, length, perToken, program, weights, bf16Inputs);
  std::vector<Instruction> list;
  while (!in.done()) {
    list.push_back(decode(in, program));
    const OpKind kind = list.back().kind;
    const bool tokensOnly = kind == OpKind::Embed || kind == OpKind::Attention;
    require(!tokensOnly || perToken, "an operation on tokens among those on wanted rows");
    require(kind != OpKind::Gather || !perToken, "gather among the operations on tokens");
  }
  return list;
}

void checkProgram(const Program& program, const Limits& limits) {
  for (const BufferSpec& buffer : program.buffers) {
    const size_t rows = buffer.perToken ? limits.maxTokens : limits.rowTile;
    const size_t bytes = rows * buffer.stride * (buffer.bf16 ? 2 : 4);
    require(buffer.offset % 64 == 0 && buffer.offset <= program.workspaceBytes &&
                bytes <= program.workspaceBytes - buffer.offset,
            "a buffer leaves the workspace");
  }
  const Operand& logits = program.logits;
  require(logits.buffer >= 0 && logits.buffer < static_cast<int>(program.buffers.size()) &&
              logits.width > 0 && logits.column >= 0,
          "no logits");
  const BufferSpec& buffer = program.buffers[logits.buffer];
  require(!buffer.bf16 && !buffer.perToken &&
              static_cast<size_t>(logits.column) + logits.width <= buffer.stride,
          "the logits are not floats of wanted rows");
}

}  // namespace millrace
