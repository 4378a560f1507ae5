// The edge between JavaScript and the CUDA executor: arguments in, checked; results out.
#include <algorithm>

#include "batch_args.h"
#include "cuda/runner.h"

namespace millrace {
namespace {

using js::Arguments;
using js::Object;
using js::Value;

constexpr napi_type_tag kRunnerTag = {0x6d696c6c72616365, 0x6375646172756e6e};
using Handle = js::Handle<cuda::Runner, kRunnerTag>;

cuda::Elem toElem(const Value& value) {
  const std::string name = value.string();
  if (name == "float32") return cuda::Elem::F32;
  if (name == "float16") return cuda::Elem::F16;
  if (name == "bfloat16") return cuda::Elem::BF16;
  value.fail("float32, float16 or bfloat16");
}

cuda::TensorPart toPart(const Value& value) {
  using Kind = cuda::TensorPart::Kind;
  cuda::TensorPart part{};
  const std::string kind = value.get("kind").string();
  part.elements = static_cast<size_t>(value.get("elements").integer(0, 1e15));
  // Called before createRunner returns, while `value` is alive.
  const auto readFloats = [value] {
    std::vector<float> floats;
    value.scope([&] { floats = copyOf<float>(value.get("read").result()); });
    return floats;
  };
  if (kind == "computed") {
    part.kind = Kind::Computed;
    part.computed = readFloats;
  } else if (kind == "fp8") {
    part.kind = Kind::Fp8;
    part.path = value.get("path").string();
    part.offset = static_cast<size_t>(value.get("offset").integer(0, 1e15));
    part.computed = readFloats;
  } else if (kind == "codes") {
    part.kind = Kind::Codes;
    part.codes = [value] {
      cuda::CodesPart read;
      value.scope([&] {
        const Value matrix = value.get("read").result();
        read.codes = copyOf<int8_t>(matrix.get("codes"));
        read.scales = copyOf<float>(matrix.get("scales"));
        read.offsets = copyOf<float>(matrix.get("offsets"));
      });
      return read;
    };
  } else if (kind == "dummy") {
    part.kind = Kind::Dummy;
    part.seed = static_cast<uint32_t>(value.get("seed").integer(0, 4294967295.0));
    part.mean = static_cast<float>(value.get("mean").number());
    part.scale = static_cast<float>(value.get("scale").number());
  } else if (kind == "file") {
    part.kind = Kind::File;
    part.path = value.get("path").string();
    part.offset = static_cast<size_t>(value.get("offset").integer(0, 1e15));
    part.dtype = toElem(value.get("dtype"));
  } else {
    value.get("kind").fail("file, dummy, computed, fp8 or codes");
  }
  return part;
}

void readInt4(const Value& value, cuda::WeightSpec& spec) {
  if (spec.layout != cuda::WeightLayout::Matrix || spec.experts != 1 || spec.k % 8 != 0) {
    value.fail("absent but for one matrix of a multiple of 8 columns");
  }
  spec.group = value.get("group").int32(32, 128);
  if (spec.group != 32 && spec.group != 64 && spec.group != 128) {
    value.get("group").fail("32, 64 or 128");
  }
  spec.offsets = value.get("offsets").boolean();
  spec.columns = copyOf<int>(value.get("columns"));
  const auto outside = [&](int column) { return column < 0 || column >= spec.k; };
  const bool all = spec.columns.empty() || spec.columns.size() == size_t(spec.k);
  if (!all || std::any_of(spec.columns.begin(), spec.columns.end(), outside)) {
    value.get("columns").fail("an order of the columns");
  }
}

cuda::WeightSpec toWeight(const Value& value) {
  cuda::WeightSpec spec{};
  spec.name = value.get("name").string();
  const std::string layout = value.get("layout").string();
  if (layout == "vector") {
    spec.layout = cuda::WeightLayout::Vector;
  } else if (layout == "bias") {
    spec.layout = cuda::WeightLayout::Bias;
  } else if (layout == "matrix") {
    spec.layout = cuda::WeightLayout::Matrix;
  } else {
    value.get("layout").fail("vector, bias or matrix");
  }
  spec.n = value.get("n").int32(1);
  spec.k = value.get("k").int32(1);
  spec.experts = value.get("experts").int32(1);
  if (spec.layout != cuda::WeightLayout::Matrix && (spec.k != 1 || spec.experts != 1)) {
    value.fail("a vector");
  }
  for (const Value& part : value.get("parts").array()) spec.parts.push_back(toPart(part));
  if (value.get("int4").present()) readInt4(value.get("int4"), spec);
  spec.fp8 = value.get("fp8").boolean();
  if (spec.fp8 && spec.group > 0) value.get("fp8").fail("false of a weight in 4 bits");
  return spec;
}

cuda::Program toProgram(const Value& value) {
  cuda::Program program{};
  for (const Value& each : value.get("buffers").array()) {
    cuda::BufferSpec buffer{};
    buffer.perToken = each.get("perToken").boolean();
    buffer.floats = each.get("floats").boolean();
    buffer.stride = each.get("stride").int32(1);
    buffer.offset = static_cast<size_t>(each.get("offset").integer(0, 1e15));
    program.buffers.push_back(buffer);
  }
  for (const Value& each : value.get("ropeTables").array()) {
    program.ropeTables.push_back({copyOf<double>(each.get("invFreq")), each.get("scale").number()});
  }
  for (const Value& each : value.get("kvLayers").array()) {
    const int headDim = each.get("headDim").int32(2, 256);
    if (headDim % 2 != 0) each.get("headDim").fail("an even number");
    program.kvLayers.push_back({each.get("kvHeads").int32(1, 1 << 16), headDim,
                                each.get("fp8").boolean()});
  }
  const Value logits = value.get("logits");
  program.logits.buffer = logits.get("buffer").int32();
  program.logits.column = logits.get("column").int32();
  program.logits.width = logits.get("width").int32(1);
  program.activationBytes = static_cast<size_t>(value.get("activationBytes").integer(0, 1e15));
  return program;
}

cuda::RunnerConfig toConfig(const Value& value) {
  cuda::RunnerConfig config{};
  config.device = value.get("device").int32(0, 1024);
  config.elem = toElem(value.get("dtype"));
  const Value limits = value.get("limits");
  static_cast<BatchLimits&>(config.limits) = toBatchLimits(limits);
  config.limits.rowTile = limits.get("rowTile").int32(1, config.limits.maxTokens);
  config.limits.keepLogits = limits.get("keepLogits").boolean();
  const Value program = value.get("program");
  config.program = toProgram(program);
  config.tokenCode = copyOf<double>(program.get("tokenCode"));
  config.rowCode = copyOf<double>(program.get("rowCode"));
  for (const Value& each : value.get("weights").array()) config.weights.push_back(toWeight(each));
  config.eager = value.get("enforceEager").boolean();
  config.profiling = value.get("profiling").boolean();
  config.overlap = value.get("overlap").boolean();
  for (const Value& each : value.get("libraries").array()) config.libraries.push_back(each.string());
  return config;
}

napi_value memoryObject(napi_env env, const cuda::MemoryMap& map) {
  Object memory(env);
  memory.set("weights", static_cast<double>(map.weights));
  memory.set("workspace", static_cast<double>(map.workspace));
  memory.set("kvCache", static_cast<double>(map.kvCache));
  return memory.raw();
}

napi_value devices(napi_env env, const Arguments&) {
  napi_value list;
  js::check(env, napi_create_array(env, &list));
  uint32_t count = 0;
  for (const cuda::DeviceInfo& info : cuda::devices()) {
    Object entry(env);
    entry.set("name", info.name);
    entry.set("major", info.major);
    entry.set("minor", info.minor);
    entry.set("sms", info.sms);
    entry.set("total", static_cast<double>(info.total));
    entry.set("driver", info.driver);
    entry.set("runtime", info.runtime);
    js::check(env, napi_set_element(env, list, count++, entry.raw()));
  }
  return list;
}

napi_value freeMemory(napi_env env, const Arguments& arguments) {
  napi_value bytes;
  const size_t free = cuda::freeMemory(arguments[0].int32(0, 1024));
  js::check(env, napi_create_double(env, static_cast<double>(free), &bytes));
  return bytes;
}

// What createRunner would allocate with this config.
napi_value plan(napi_env env, const Arguments& arguments) {
  const cuda::RunnerConfig config = toConfig(arguments[0]);
  std::vector<cuda::AttentionShape> shapes;
  const cuda::Program program = cuda::decodeProgram(config, shapes);
  cuda::useDevice(config.device);  // whose size decides how much attention needs
  return memoryObject(env, cuda::mapMemory(config, program, shapes));
}

// Errors of the GPU and its libraries have a code of their own; others are the model's files'.
napi_value createRunner(napi_env env, const Arguments& arguments) {
  const Value& progress = arguments[1];
  const cuda::RunnerConfig config = toConfig(arguments[0]);
  try {
    return Handle::make(env, std::make_unique<cuda::Runner>(config, [&](double share) {
                          if (progress.present()) progress.call(share);
                        }));
  } catch (const cuda::CudaError& error) {
    js::check(env, napi_throw_error(env, "ERR_NATIVE_DEVICE", error.what()));
    throw js::Pending{};
  }
}

napi_value submit(napi_env env, const Arguments& arguments) {
  Handle::get(env, arguments[0]).submit(toBatch(arguments[1]));
  return nullptr;
}

napi_value collect(napi_env env, const Arguments& arguments) {
  cuda::Runner& runner = Handle::get(env, arguments[0]);
  const Value& result = arguments[1];
  const size_t rows = static_cast<size_t>(std::max(0, runner.pendingRows()));
  cuda::StepOutput out{};
  out.tokens = output<int32_t>(result, "tokens", rows);
  out.logprobs = output<float>(result, "logprobs", rows);
  out.ranks = output<int32_t>(result, "ranks", rows);
  out.topTokens = output<int32_t>(result, "topTokens", rows * kMaxLogprobs);
  out.topLogprobs = output<float>(result, "topLogprobs", rows * kMaxLogprobs);
  if (runner.keepsLogits()) out.logits = output<float>(result, "logits", rows * runner.vocab());
  runner.collect(out);
  return nullptr;
}

napi_value memoryOf(napi_env env, const Arguments& arguments) {
  return memoryObject(env, Handle::get(env, arguments[0]).memory());
}

napi_value aboutRunner(napi_env env, const Arguments& arguments) {
  const cuda::Runner& runner = Handle::get(env, arguments[0]);
  Object about(env);
  about.set("graphs", runner.graphs());
  about.set("library", runner.library());
  about.set("overhead", static_cast<double>(runner.overheadBytes()));
  about.set("tuning", runner.tuningSeconds());
  napi_value products;
  js::check(env, napi_create_array(env, &products));
  uint32_t count = 0;
  for (const int rows : {64, 256}) {
    const cuda::Runner::ProductTimes times = runner.productTimes(rows);
    Object entry(env);
    entry.set("rows", rows);
    entry.set("seconds", times.seconds);
    entry.set("chains", times.chains);
    js::check(env, napi_set_element(env, products, count++, entry.raw()));
  }
  about.set("products", products);
  return about.raw();
}

// Fills a Float64Array with seconds and calls of each entry of Profile, alternating.
napi_value profileOf(napi_env env, const Arguments& arguments) {
  const cuda::Profile& profile = Handle::get(env, arguments[0]).profile();
  const auto array = arguments[1].typedArray<double>();
  if (array.size < 2 * cuda::Profile::kEntries) arguments[1].fail("a longer array");
  for (int i = 0; i < cuda::Profile::kEntries; i++) {
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
    js::define<devices, 0>(env, exports, "devices");
    js::define<freeMemory, 1>(env, exports, "freeMemory");
    js::define<plan, 1>(env, exports, "plan");
    js::define<createRunner, 2>(env, exports, "createRunner");
    js::define<submit, 2>(env, exports, "submit");
    js::define<collect, 2>(env, exports, "collect");
    js::define<memoryOf, 1>(env, exports, "memory");
    js::define<aboutRunner, 1>(env, exports, "about");
    js::define<profileOf, 2>(env, exports, "profile");
    js::define<closeRunner, 1>(env, exports, "close");
  } catch (...) {
    napi_throw_error(env, "ERR_NATIVE", "the addon cannot be initialised");
  }
  return exports;
}

}  // namespace
}  // namespace millrace

NAPI_MODULE(millrace_cuda, millrace::init)
