// The edge between JavaScript and the CPU executor: arguments in, checked; results out. No maths.
#include <memory>
#include <string>
#include <thread>

#include "batch_args.h"
#include "cpu/runner.h"

namespace millrace {
namespace {

using js::Arguments;
using js::Object;
using js::Value;

constexpr napi_type_tag kRunnerTag = {0x6d696c6c72616365, 0x63707572756e6e72};
using Handle = js::Handle<Runner, kRunnerTag>;

DType toDType(const Value& value) {
  const std::string name = value.string();
  if (name == "float32") return DType::F32;
  if (name == "float16") return DType::F16;
  if (name == "bfloat16") return DType::BF16;
  value.fail("float32, float16 or bfloat16");
}

IntegerFormat toInteger(const Value& value) {
  IntegerFormat format{};
  if (!value.present()) return format;
  format.bits = value.get("bits").int32(4, 8);
  if (format.bits != 4 && format.bits != 8) value.get("bits").fail("4 or 8");
  format.group = value.get("group").int32(0, 1 << 16);
  if (format.group % 32 != 0) value.get("group").fail("a multiple of 32");
  format.symmetric = value.get("symmetric").boolean();
  return format;
}

DType toKvDType(const Value& value) {
  return value.string() == "int8" ? DType::I8 : toDType(value);
}

TensorPart toPart(const Value& value) {
  TensorPart part{};
  const std::string kind = value.get("kind").string();
  part.dummy = kind == "dummy";
  part.elements = static_cast<size_t>(value.get("elements").integer(0, 1e15));
  if (kind == "quantized") {
    part.integer = toInteger(value.get("storage"));
    // Called before createRunner returns, while `value` is alive.
    part.quantized = [value] {
      QuantizedPart read;
      value.scope([&] {
        const Value matrix = value.get("read").result();
        read.codes = copyOf<int8_t>(matrix.get("codes"));
        read.scales = copyOf<float>(matrix.get("scales"));
        read.offsets = copyOf<float>(matrix.get("offsets"));
        read.columns = copyOf<int32_t>(matrix.get("columns"));
      });
      return read;
    };
  } else if (kind == "computed") {
    part.dtype = DType::F32;
    part.computed = [value] {
      std::vector<float> floats;
      value.scope([&] { floats = copyOf<float>(value.get("read").result()); });
      return floats;
    };
  } else if (part.dummy) {
    part.seed = static_cast<uint32_t>(value.get("seed").integer(0, 4294967295.0));
    part.mean = static_cast<float>(value.get("mean").number());
    part.scale = static_cast<float>(value.get("scale").number());
  } else {
    part.path = value.get("path").string();
    part.offset = static_cast<size_t>(value.get("offset").integer(0, 1e15));
    part.dtype = toDType(value.get("dtype"));
  }
  return part;
}

WeightSpec toWeight(const Value& value) {
  WeightSpec spec{};
  spec.name = value.get("name").string();
  const std::string layout = value.get("layout").string();
  spec.layout = layout == "vector"   ? WeightLayout::Vector
                : layout == "gateUp" ? WeightLayout::GateUp
                                     : WeightLayout::Matrix;
  spec.n = value.get("n").int32(1);
  spec.k = value.get("k").int32(1);
  spec.experts = value.get("experts").int32(1);
  if (spec.layout != WeightLayout::Vector) spec.integer = toInteger(value.get("integer"));
  for (const Value& part : value.get("parts").array()) spec.parts.push_back(toPart(part));
  if (spec.parts.empty()) value.fail("a weight with parts");
  return spec;
}

Limits toLimits(const Value& value) {
  Limits limits{};
  static_cast<BatchLimits&>(limits) = toBatchLimits(value);
  limits.rowTile = value.get("rowTile").int32(1, 1 << 16);
  limits.keepLogits = value.get("keepLogits").boolean();
  return limits;
}

Program toProgram(const Value& value) {
  Program program{};
  for (const Value& each : value.get("buffers").array()) {
    BufferSpec buffer{};
    buffer.perToken = each.get("perToken").boolean();
    buffer.bf16 = each.get("bf16").boolean();
    buffer.stride = static_cast<size_t>(each.get("stride").int32(1));
    buffer.offset = static_cast<size_t>(each.get("offset").integer(0, 1e15));
    program.buffers.push_back(buffer);
  }
  for (const Value& each : value.get("ropeTables").array()) {
    program.ropeTables.push_back({copyOf<double>(each.get("invFreq")), each.get("scale").number()});
  }
  for (const Value& each : value.get("kvLayers").array()) {
    const int headDim = each.get("headDim").int32(kMinHeadDim, kMaxHeadDim);
    if (headDim % 2 != 0) each.get("headDim").fail("an even number");
    program.kvLayers.push_back({each.get("kvHeads").int32(1, 1 << 16), headDim});
  }
  const Value logits = value.get("logits");
  program.logits.buffer = logits.get("buffer").int32();
  program.logits.column = logits.get("column").int32();
  program.logits.width = logits.get("width").int32(1);
  program.workspaceBytes = static_cast<size_t>(value.get("workspaceBytes").integer(0, 1e15));
  return program;
}

const Kernels* findKernels(const Value& value) {
  const std::string name = value.string();
  for (const Kernels* each : availableKernels()) {
    if (name == each->name) return each;
  }
  value.fail("an instruction set of this machine");
}

napi_value cpuFeatures(napi_env env, const Arguments&) {
  napi_value list;
  js::check(env, napi_create_array(env, &list));
  uint32_t count = 0;
  for (const Kernels* each : availableKernels()) {
    Object entry(env);
    entry.set("name", std::string(each->name));
    napi_value bf16;
    js::check(env, napi_get_boolean(env, each->gemm.wantsBf16, &bf16));
    entry.set("wantsBf16", bf16);
    js::check(env, napi_set_element(env, list, count++, entry.raw()));
  }
  return list;
}

napi_value kvBytesPerBlock(napi_env env, const Arguments& arguments) {
  const int blockSize = arguments[2].int32(16, 1 << 16);
  if (blockSize % 16 != 0) arguments[2].fail("a multiple of 16");
  const DType dtype = toKvDType(arguments[1]);
  double bytes = 0;
  for (const Value& each : arguments[0].array()) {
    const int headDim = each.get("headDim").int32(kMinHeadDim, kMaxHeadDim);
    if (headDim % 2 != 0) each.get("headDim").fail("an even number");
    const int kvHeads = each.get("kvHeads").int32(1, 1 << 16);
    bytes += static_cast<double>(kvLayout(dtype, kvHeads, headDim, blockSize).blockBytes);
  }
  napi_value result;
  js::check(env, napi_create_double(env, bytes, &result));
  return result;
}

napi_value createRunner(napi_env env, const Arguments& arguments) {
  const Value& value = arguments[0];
  RunnerConfig config{};
  config.kernels = findKernels(value.get("isa"));
  config.threads = value.get("threads").int32(1, 1024);
  config.dtype = toDType(value.get("dtype"));
  config.kvDtype = toKvDType(value.get("kvDtype"));
  config.limits = toLimits(value.get("limits"));
  config.program = toProgram(value.get("program"));
  config.tokenCode = copyOf<double>(value.get("program").get("tokenCode"));
  config.rowCode = copyOf<double>(value.get("program").get("rowCode"));
  for (const Value& each : value.get("weights").array()) config.weights.push_back(toWeight(each));
  const Value& progress = arguments[1];
  return Handle::make(env, std::make_unique<Runner>(config, [&](double share) {
                        if (progress.present()) progress.call(share);
                      }));
}

napi_value step(napi_env env, const Arguments& arguments) {
  Runner& runner = Handle::get(env, arguments[0]);
  const Batch batch = toBatch(arguments[1]);
  const Value& result = arguments[2];
  const size_t rows = static_cast<size_t>(batch.numRows);
  StepOutput out{};
  out.sampled = {output<int32_t>(result, "tokens", rows), output<float>(result, "logprobs", rows),
                 output<int32_t>(result, "ranks", rows),
                 output<int32_t>(result, "topTokens", rows * kMaxLogprobs),
                 output<float>(result, "topLogprobs", rows * kMaxLogprobs)};
  if (runner.keepsLogits()) out.logits = output<float>(result, "logits", rows * runner.vocab());
  runner.step(batch, out);
  return nullptr;
}

napi_value memoryOf(napi_env env, const Arguments& arguments) {
  const Runner& runner = Handle::get(env, arguments[0]);
  Object memory(env);
  memory.set("weights", static_cast<double>(runner.weightBytes()));
  memory.set("workspace", static_cast<double>(runner.workspaceBytes()));
  memory.set("kvCache", static_cast<double>(runner.kvCacheBytes()));
  return memory.raw();
}

// Fills a Float64Array with seconds and calls of each entry of Profile, alternating.
napi_value profileOf(napi_env env, const Arguments& arguments) {
  const Profile& profile = Handle::get(env, arguments[0]).profile();
  const auto array = arguments[1].typedArray<double>();
  if (array.size < 2 * Profile::kEntries) arguments[1].fail("a longer array");
  for (int i = 0; i < Profile::kEntries; i++) {
    array.data[2 * i] = profile.seconds[i];
    array.data[2 * i + 1] = profile.calls[i];
  }
  return nullptr;
}

napi_value closeRunner(napi_env env, const Arguments& arguments) {
  Handle::holder(env, arguments[0]).reset();
  return nullptr;
}

napi_value init(napi_env env, napi_value exports) {
  try {
    js::define<cpuFeatures, 0>(env, exports, "cpuFeatures");
    js::define<kvBytesPerBlock, 3>(env, exports, "kvBytesPerBlock");
    js::define<createRunner, 2>(env, exports, "createRunner");
    js::define<step, 3>(env, exports, "step");
    js::define<memoryOf, 1>(env, exports, "memory");
    js::define<profileOf, 2>(env, exports, "profile");
    js::define<closeRunner, 1>(env, exports, "close");
  } catch (...) {
    napi_throw_error(env, "ERR_NATIVE", "the addon cannot be initialised");
  }
  return exports;
}

}  // namespace
}  // namespace millrace

NAPI_MODULE(millrace, millrace::init)
