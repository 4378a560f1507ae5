// The attention of a step: which kernels, their configuration on this device, memory, launches.
#include <algorithm>
#include <mutex>
#include <stdexcept>
#include <string>

#include "attention_decode.cuh"
#include "attention_plan.h"
#include "attention_prefill.cuh"
#include "attention_variants.h"
#include "elements.h"
#include "hopper.h"
#include "launch.h"

namespace millrace::cuda {

namespace {

constexpr float kLog2E = 1.4426950408889634f;

int paddedDim(int headStride) { return headStride <= 64 ? 64 : headStride <= 128 ? 128 : 256; }

void checkShape(const AttentionShape& s) {
  auto fail = [](const std::string& what) { throw std::invalid_argument("attention: " + what); };
  if (s.headDim < 2 || s.headDim > 256 || s.headDim % 2 != 0) {
    fail("headDim is " + std::to_string(s.headDim) + ", expected an even number up to 256");
  }
  if (s.headStride != (s.headDim + 15) / 16 * 16) {
    fail("headStride is " + std::to_string(s.headStride) +
         ", expected headDim rounded up to a multiple of 16");
  }
  if (s.kvHeads < 1 || s.heads < s.kvHeads || s.heads % s.kvHeads != 0) {
    fail("heads is " + std::to_string(s.heads) + ", expected a multiple of kvHeads " +
         std::to_string(s.kvHeads));
  }
  if (s.blockSize < 16 || s.blockSize % 16 != 0) {
    fail("blockSize is " + std::to_string(s.blockSize) + ", expected a multiple of 16");
  }
}

// `allowed`: bytes of dynamic shared memory that it may be launched with.
template <class Function>
int residentBlocks(Function function, int threads, size_t sharedBytes, size_t allowed, int sms,
                   const char* name) {
  check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             static_cast<int>(allowed)),
        name);
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, threads, sharedBytes),
        name);
  if (blocks < 1) throw CudaError(std::string(name) + ": a block does not fit on this GPU");
  return blocks * sms;
}

// Hopper's kernel comes first where there is one.
PrefillKernel choosePrefill(const AttentionShape& shape, int variant) {
  const int dim = paddedDim(shape.headStride);
  if (dim <= 128 && hopperAvailable()) {
    if (variant == 0) return hopperPrefillKernel(shape.elem, shape.fp8, dim);
    variant--;
  }
  return prefillKernel(shape.elem, shape.fp8, dim, variant);
}

struct Configuration {
  bool made = false;
  DecodeKernel decode;
  PrefillKernel prefill;
  PlanGeometry geometry;
};

// Heads that a pass of a decode serves, in powers of two.
constexpr int kRowClasses = 5;
int rowClassOf(const AttentionShape& shape) {
  int power = 0;
  while (1 << power < passRowsOf(shape)) power++;
  return power;
}

// Made once for each device, types, head size and number of heads that a pass of a decode serves, before any
// capture: by the sizes or the plan.
const Configuration& configurationOf(const AttentionShape& shape) {
  constexpr int kDevices = 64;
  static std::mutex mutex;
  static Configuration all[kDevices][2][2][3][kRowClasses][kAttentionVariants][kAttentionVariants];
  const AttentionVariants variants = attentionVariants;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  const int dim = paddedDim(shape.headStride);
  std::lock_guard<std::mutex> lock(mutex);
  Configuration& made = all[device % kDevices][shape.elem == Elem::BF16][shape.fp8]
                           [dim / 128][rowClassOf(shape)]
                           [variants.decode][variants.prefill];
  if (made.made) return made;
  int sms = 0, mostShared = 0;
  check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  check(cudaDeviceGetAttribute(&mostShared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  // Of any shape of the class.
  AttentionShape largest = shape;
  largest.heads = shape.kvHeads << rowClassOf(shape);
  made.decode = decodeKernel(largest, dim, mostShared, variants.decode);
  made.prefill = choosePrefill(shape, variants.prefill);
  // Another shape may launch the same kernel with more.
  const auto resident = [&](auto function) {
    return residentBlocks(function, made.decode.warps * 32, made.decode.sharedBytes, mostShared, sms,
                          "attention decode");
  };
  made.geometry.decodeBlocks = std::min(resident(made.decode.function), resident(made.decode.ofFresh));
  made.geometry.decodeWarps = made.decode.warps;
  made.geometry.prefillResident = residentBlocks(made.prefill.function, made.prefill.threads,
                                                 made.prefill.sharedBytes, made.prefill.sharedBytes, sms,
                                                 "attention prefill");
  made.geometry.prefillRows = made.prefill.rows;
  made.geometry.prefillKeys = made.prefill.keys;
  made.made = true;
  return made;
}

}  // namespace

#ifdef MILLRACE_ATTENTION_EXPERIMENTS
const char* decodeVariantName(const AttentionShape& shape) {
  return decodeKernel(shape, paddedDim(shape.headStride), 227 << 10, attentionVariants.decode).name;
}
const char* prefillVariantName(const AttentionShape& shape) {
  return choosePrefill(shape, attentionVariants.prefill).name;
}
#endif

size_t attentionPlanBytes(const AttentionShape& shape, int maxTokens, int maxSeqs) {
  checkShape(shape);
  if (shape.elem == Elem::F32) return 0;
  return planBytes(shape, configurationOf(shape).geometry, maxTokens, maxSeqs);
}

size_t attentionScratchBytes(const AttentionShape& shape, int, int) {
  checkShape(shape);
  if (shape.elem == Elem::F32) return 0;
  const PlanGeometry& g = configurationOf(shape).geometry;
  const size_t width = shape.headStride + 2;
  const size_t decode =
      size_t{2} * g.decodeBlocks * partialFloats(passRowsOf(shape), shape.headStride);
  const size_t prefill = size_t(prefillPieces(shape, g)) * shape.kvHeads * g.prefillRows * width;
  const size_t counters =
      std::max(size_t{kPassRows} * g.decodeBlocks, size_t(prefillPieces(shape, g)) * shape.kvHeads);
  if (counters * sizeof(int) > kCounterBytes) {
    throw CudaError("attention: this GPU runs more blocks than there are counters for");
  }
  // The two kernels follow each other on a stream and share the memory.
  return kCounterBytes + std::max(decode, prefill) * sizeof(float);
}

AttentionPlan planAttention(const AttentionShape& shape, const AttentionBatch& batch,
                            int paddedSeqs, bool graph, void* plan) {
  if (shape.elem == Elem::F32) {
    AttentionPlan none;
    none.graph = graph;
    none.paddedSeqs = paddedSeqs;
    return none;
  }
  return makePlan(shape, batch, paddedSeqs, graph, configurationOf(shape).geometry, plan);
}

// Only heads that fill a tile's rows: two columns that are rotated together are then in one thread.
bool attentionStores(const AttentionShape& shape, const AttentionPlan& plan, const QkvStore& store) {
  return shape.elem != Elem::F32 && plan.prefillItems == 0 && shape.headDim == paddedDim(shape.headStride) &&
         packable(shape.elem,
                  {store.qIn.data, store.kIn.data, store.vIn.data, store.qNorm, store.kNorm, store.cosSin},
                  {store.qIn.stride, store.kIn.stride, store.vIn.stride});
}

void attention(const AttentionShape& shape, const AttentionPlan& plan, const AttentionInputs& in,
               const KvLayer& kv, Matrix q, Matrix out, cudaStream_t stream) {
  if (shape.elem == Elem::F32) {
    throw std::invalid_argument("attention: elem is F32, expected F16 or BF16 (attentionPlain)");
  }
  const Configuration& made = configurationOf(shape);
  const char* bytes = static_cast<const char*>(in.plan);
  int* counters = static_cast<int*>(in.scratch);
  float* partials =
      reinterpret_cast<float*>(static_cast<char*>(in.scratch) + kCounterBytes);
  const int group = shape.heads / shape.kvHeads;

  // A graph is replayed for other steps: its grid may depend on nothing but the device.
  if (plan.graph || plan.decodeItems > 0) {
    DecodeArgs a{};
    a.q = q.data;
    a.out = out.data;
    a.qStride = q.stride;
    a.outStride = out.stride;
    a.keys = kv.keys;
    a.values = kv.values;
    a.blockTables = in.blockTables;
    a.blockTableStart = in.blockTableStart;
    a.workers = reinterpret_cast<const DecodeWorker*>(bytes);
    a.entries = reinterpret_cast<const DecodeEntry*>(bytes + planEntriesAt(made.geometry));
    a.partials = partials;
    a.counters = counters;
    a.kvHeads = shape.kvHeads;
    a.group = group;
    a.passes = passesOf(shape);
    a.passRows = passRowsOf(shape);
    a.headDim = shape.headDim;
    a.headStride = shape.headStride;
    a.blockTiles = shape.blockSize / kTileTokens;
    a.window = shape.window;
    a.scaleLog2 = shape.scale * kLog2E;
    if (in.store) {
      const QkvStore& store = *in.store;
      a.q = store.qIn.data;
      a.qStride = store.qIn.stride;
      a.fresh = {store.kIn.data, store.vIn.data, store.kIn.stride, store.vIn.stride,
                 store.qNorm,    store.kNorm,    store.eps,        store.cosSin};
    }
    const int blocks = plan.graph ? made.geometry.decodeBlocks
                                  : (plan.decodeItems + made.decode.warps - 1) / made.decode.warps;
    launch("attention decode", in.store ? made.decode.ofFresh : made.decode.function, dim3(blocks),
           made.decode.warps * 32, made.decode.sharedBytes, stream, a);
  }

  if (plan.prefillItems > 0) {
    PrefillArgs a;
    a.q = q.data;
    a.out = out.data;
    a.qStride = q.stride;
    a.outStride = out.stride;
    a.keys = kv.keys;
    a.values = kv.values;
    a.blockTables = in.blockTables;
    a.blockTableStart = in.blockTableStart;
    a.queryStart = in.queryStart;
    a.contextLens = in.contextLens;
    a.items = reinterpret_cast<const PrefillItem*>(bytes +
                                                   planItemsAt(made.geometry, plan.decodeSeqs));
    a.partials = partials;
    a.counters = counters;
    a.kvHeads = shape.kvHeads;
    a.group = group;
    a.headDim = shape.headDim;
    a.headStride = shape.headStride;
    a.blockTiles = shape.blockSize / 16;
    a.window = shape.window;
    a.scaleLog2 = shape.scale * kLog2E;
    made.prefill.run(a, plan.prefillItems, made.geometry.prefillResident, stream);
  }
}

}  // namespace millrace::cuda
