#include "program.h"

#include <cmath>
#include <stdexcept>
#include <string>

namespace millrace::cuda {
namespace {

[[noreturn]] void fail(const std::string& what) {
  throw std::invalid_argument("lowered program: " + what);
}

void require(bool holds, const char* what) {
  if (!holds) fail(what);
}

class Decoder {
 public:
  Decoder(const std::vector<double>& code, bool perToken, const Program& program,
          const std::vector<WeightSpec>& weights)
      : at_(code.data()), end_(code.data() + code.size()), perToken_(perToken), program_(program),
        weights_(weights) {}

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

  Operand optional(bool perToken) {
    Operand operand;
    operand.buffer = integer();
    operand.column = integer();
    operand.width = integer();
    if (operand.buffer < 0) return operand;
    require(operand.buffer < static_cast<int>(program_.buffers.size()), "no such buffer");
    const BufferSpec& buffer = program_.buffers[operand.buffer];
    require(operand.column >= 0 && operand.width > 0, "an operand has no columns");
    require(int64_t(operand.column) + operand.width <= buffer.stride, "an operand leaves its buffer");
    require(buffer.perToken == perToken, "an operand has other rows");
    return operand;
  }
  Operand optional() { return optional(perToken_); }

  // In the storage type.
  Operand operand(bool perToken) {
    const Operand operand = optional(perToken);
    require(static_cast<bool>(operand), "an operand is missing");
    require(!floats(operand), "the logits are an operand");
    return operand;
  }
  Operand operand() { return operand(perToken_); }

  bool floats(const Operand& operand) const { return program_.buffers[operand.buffer].floats; }

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

  int layer() {
    const int layer = integer();
    require(layer >= 0 && layer < static_cast<int>(program_.kvLayers.size()), "no such layer");
    return layer;
  }

  const WeightSpec& spec(int weight) const { return weights_[weight]; }

 private:
  const double *at_, *end_;
  bool perToken_;
  const Program& program_;
  const std::vector<WeightSpec>& weights_;
};

void decodeLinear(Decoder& in, Instruction& op) {
  op.weight = in.weight(WeightLayout::Matrix);
  op.bias = in.optionalWeight(WeightLayout::Bias);
  op.x = in.operand();
  op.residual = in.optional();
  op.out = in.optional();
  require(static_cast<bool>(op.out), "a linear has no output");
  const WeightSpec& weight = in.spec(op.weight);
  require(weight.experts == 1 && weight.k == op.x.width, "a linear's input has the wrong width");
  require(weight.n == op.out.width, "a linear's output has the wrong width");
  require(op.bias < 0 || in.spec(op.bias).n == weight.n, "a bias has the wrong width");
  require(!op.residual || op.residual.width == weight.n, "a residual has the wrong width");
  require(!op.residual || (!in.floats(op.residual) && !in.floats(op.out)),
          "a residual is added to logits");
}

void decodeQkvStore(Decoder& in, Instruction& op, const Program& program) {
  op.layer = in.layer();
  op.x = in.operand();
  op.key = in.operand();
  op.value = in.operand();
  op.qNorm = in.optionalWeight(WeightLayout::Vector);
  op.kNorm = in.optionalWeight(WeightLayout::Vector);
  op.eps = static_cast<float>(in.number());
  op.table = in.integer();
  op.heads = in.integer();
  op.out = in.operand();
  const KvShape& layer = program.kvLayers[op.layer];
  require(op.heads > 0 && op.heads % layer.kvHeads == 0,
          "heads are not a multiple of key-value heads");
  require(op.x.width == op.heads * layer.headDim && op.out.width == op.x.width &&
              op.key.width == layer.kvHeads * layer.headDim && op.value.width == op.key.width,
          "queries, keys and values have the wrong widths");
  require(op.table < static_cast<int>(program.ropeTables.size()), "no such rope table");
  require(op.table < 0 ||
              static_cast<int>(program.ropeTables[op.table].invFreq.size()) == layer.headDim / 2,
          "a rope table has the wrong length");
  for (int norm : {op.qNorm, op.kNorm}) {
    require(norm < 0 || in.spec(norm).n == layer.headDim, "a norm of heads has the wrong width");
  }
}

void decodeAttention(Decoder& in, Instruction& op, const Program& program) {
  op.layer = in.layer();
  op.x = in.operand();
  op.heads = in.integer();
  op.window = in.integer();
  op.scale = static_cast<float>(in.number());
  op.out = in.operand();
  const KvShape& layer = program.kvLayers[op.layer];
  require(op.heads > 0 && op.heads % layer.kvHeads == 0,
          "heads are not a multiple of key-value heads");
  require(op.window >= 0, "a window is negative");
  require(op.x.width == op.heads * layer.headDim && op.out.width == op.x.width,
          "attention's operands have the wrong widths");
}

void decodeMoe(Decoder& in, Instruction& op) {
  op.weight = in.weight(WeightLayout::Matrix);
  op.down = in.weight(WeightLayout::Matrix);
  op.topK = in.integer();
  op.normalize = in.integer() != 0;
  op.x = in.operand();
  op.router = in.operand();
  op.out = in.operand();
  const WeightSpec &gateUp = in.spec(op.weight), &down = in.spec(op.down);
  require(gateUp.group == 0 && down.group == 0, "experts are in 4 bits");
  require(gateUp.experts == op.router.width && down.experts == gateUp.experts,
          "the experts of a mixture differ in number");
  require(op.topK > 0 && op.topK <= gateUp.experts, "more experts a token than there are");
  require(gateUp.n % 2 == 0 && gateUp.k == op.x.width && down.k == gateUp.n / 2 &&
              down.n == op.out.width,
          "a mixture's weights have the wrong shape");
}

Instruction decode(Decoder& in, const Program& program) {
  Instruction op{};
  op.kind = static_cast<OpKind>(in.integer());
  switch (op.kind) {
    case OpKind::Embed:
      op.weight = in.weight(WeightLayout::Matrix);
      op.out = in.operand();
      require(op.out.width == in.spec(op.weight).k && in.spec(op.weight).experts == 1,
              "an embedding has the wrong width");
      require(in.spec(op.weight).group == 0, "an embedding is in 4 bits");
      require(in.spec(op.weight).n >= program.logits.width,
              "an embedding has fewer rows than the vocabulary");
      return op;
    case OpKind::RmsNorm:
      op.x = in.operand();
      op.weight = in.weight(WeightLayout::Vector);
      op.eps = static_cast<float>(in.number());
      op.out = in.operand();
      require(op.x.width % in.spec(op.weight).n == 0, "a norm's width is not a multiple of its group");
      require(op.x.width == op.out.width, "a norm's output has the wrong width");
      return op;
    case OpKind::Linear:
      decodeLinear(in, op);
      return op;
    case OpKind::Add:
      op.x = in.operand();
      op.residual = in.operand();
      op.out = in.operand();
      require(op.x.width == op.out.width && op.residual.width == op.out.width,
              "an addition's operands have the wrong widths");
      return op;
    case OpKind::QkvStore:
      decodeQkvStore(in, op, program);
      return op;
    case OpKind::Attention:
      decodeAttention(in, op, program);
      return op;
    case OpKind::SiluMul:
      op.x = in.operand();
      op.out = in.operand();
      require(op.x.width == 2 * op.out.width, "silu_mul's operands have the wrong widths");
      return op;
    case OpKind::Moe:
      decodeMoe(in, op);
      return op;
    case OpKind::Gather:
      op.x = in.operand(true);
      op.out = in.operand();
      require(op.x.width == op.out.width, "gather's operands have the wrong widths");
      return op;
    default:
      fail("no such operation");
  }
}

}  // namespace

std::vector<Instruction> decodeInstructions(const std::vector<double>& code, bool perToken,
                                            const Program& program,
                                            const std::vector<WeightSpec>& weights) {
  Decoder in(code, perToken, program, weights);
  std::vector<Instruction> list;
  while (!in.done()) {
    list.push_back(decode(in, program));
    const OpKind kind = list.back().kind;
    const bool onTokens =
        kind == OpKind::Embed || kind == OpKind::QkvStore || kind == OpKind::Attention;
    require(!onTokens || perToken, "an operation on tokens among those on wanted rows");
    require(kind != OpKind::Gather || !perToken, "gather among the operations on tokens");
  }
  return list;
}

std::vector<int> readersOf(const Program& program) {
  std::vector<int> readers(program.buffers.size());
  for (const auto* list : {&program.tokenOps, &program.rowOps}) {
    for (const Instruction& op : *list) {
      for (const Operand& each : {op.x, op.residual, op.key, op.value, op.router}) {
        if (each) readers[each.buffer]++;
      }
    }
  }
  return readers;
}

void checkProgram(const Program& program, const Limits& limits, Elem elem) {
  for (const BufferSpec& buffer : program.buffers) {
    const size_t rows = buffer.perToken ? limits.maxTokens : limits.rowTile;
    const size_t bytes = rows * buffer.stride * (buffer.floats ? 4 : bytesOf(elem));
    require(buffer.offset % kDeviceAlignment == 0 && buffer.offset <= program.activationBytes &&
                bytes <= program.activationBytes - buffer.offset,
            "a buffer leaves the workspace");
  }
  const Operand& logits = program.logits;
  require(logits.buffer >= 0 && logits.buffer < static_cast<int>(program.buffers.size()) &&
              logits.width > 0 && logits.column >= 0,
          "no logits");
  const BufferSpec& buffer = program.buffers[logits.buffer];
  require(buffer.floats && !buffer.perToken &&
              int64_t(logits.column) + logits.width <= buffer.stride,
          "the logits are not floats of wanted rows");
}

}  // namespace millrace::cuda
