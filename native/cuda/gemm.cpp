#include "gemm.h"

#include <cublasLt.h>
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <map>
#include <optional>
#include <stdexcept>

#include "hopper.h"
#include "hopper_gemm.h"
#include "launch.h"
#include "launch_times.h"

namespace millrace::cuda {
namespace {

// Candidates for each limit of the workspace, which decides how the sum over k may be split.
constexpr int kCandidates = 64;
constexpr size_t kWorkspaceLimits[] = {Gemm::kWorkspaceBytes, size_t(4) << 20, 0};
// From kLargeRows on, where each takes long, and when tuning has taken this many seconds.
constexpr int kFewCandidates = 12;
constexpr int kLargeRows = 1024;
constexpr double kTuningBudget = 8;
// A product with a smaller matrix takes as long as its launch, whichever algorithm it has.
constexpr size_t kTunedElements = size_t(1) << 18;
// The best of the library's and of ours, by two launches each, are timed again, in turns.
constexpr size_t kFinalists = 4;

// Of CUDA 12.9's cublasLt.h, which the toolkit that compiles this may be older than.
constexpr auto kScaleModeA = static_cast<cublasLtMatmulDescAttributes_t>(31);
constexpr auto kScaleModeB = static_cast<cublasLtMatmulDescAttributes_t>(32);
constexpr int32_t kScaleOfEachRow = 3;  // CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F

cudaDataType_t dataType(Elem elem) {
  return elem == Elem::F32 ? CUDA_R_32F : elem == Elem::F16 ? CUDA_R_16F : CUDA_R_16BF;
}

}  // namespace

struct Gemm::Library {
  void* handle = nullptr;
  cublasLtHandle_t context = nullptr;

  decltype(&cublasLtCreate) create;
  decltype(&cublasLtDestroy) destroy;
  decltype(&cublasLtGetVersion) getVersion;
  decltype(&cublasLtGetStatusString) statusString;
  decltype(&cublasLtMatmul) matmul;
  decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
  decltype(&cublasLtMatmulAlgoCheck) algoCheck;
  decltype(&cublasLtMatmulDescCreate) descCreate;
  decltype(&cublasLtMatmulDescDestroy) descDestroy;
  decltype(&cublasLtMatmulDescSetAttribute) descSet;
  decltype(&cublasLtMatrixLayoutCreate) layoutCreate;
  decltype(&cublasLtMatrixLayoutDestroy) layoutDestroy;
  decltype(&cublasLtMatrixLayoutSetAttribute) layoutSet;
  decltype(&cublasLtMatmulPreferenceCreate) preferenceCreate;
  decltype(&cublasLtMatmulPreferenceDestroy) preferenceDestroy;
  decltype(&cublasLtMatmulPreferenceSetAttribute) preferenceSet;

  explicit Library(const std::vector<std::string>& names) {
    std::string tried;
    for (const std::string& name : names) {
      handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
      if (handle) break;
      tried += (tried.empty() ? "" : ", ") + name;
    }
    if (!handle) {
      throw CudaError(
          "cuBLASLt was not found (tried " + tried +
          "). Install the CUDA toolkit's cuBLAS or `pip install nvidia-cublas`, and set "
          "LD_LIBRARY_PATH or CUDA_HOME to where it is");
    }
    load(create, "cublasLtCreate");
    load(destroy, "cublasLtDestroy");
    load(getVersion, "cublasLtGetVersion");
    load(statusString, "cublasLtGetStatusString");
    load(matmul, "cublasLtMatmul");
    load(heuristic, "cublasLtMatmulAlgoGetHeuristic");
    load(algoCheck, "cublasLtMatmulAlgoCheck");
    load(descCreate, "cublasLtMatmulDescCreate");
    load(descDestroy, "cublasLtMatmulDescDestroy");
    load(descSet, "cublasLtMatmulDescSetAttribute");
    load(layoutCreate, "cublasLtMatrixLayoutCreate");
    load(layoutDestroy, "cublasLtMatrixLayoutDestroy");
    load(layoutSet, "cublasLtMatrixLayoutSetAttribute");
    load(preferenceCreate, "cublasLtMatmulPreferenceCreate");
    load(preferenceDestroy, "cublasLtMatmulPreferenceDestroy");
    load(preferenceSet, "cublasLtMatmulPreferenceSetAttribute");
    require(create(&context), "cublasLtCreate");
  }
  // The library itself stays: others in this process may have opened it, and opening is slow.
  ~Library() {
    if (context) destroy(context);
  }

  template <class Function>
  void load(Function& function, const char* name) {
    function = reinterpret_cast<Function>(dlsym(handle, name));
    if (!function) throw CudaError(std::string("cuBLASLt lacks ") + name);
  }

  void require(cublasStatus_t status, const char* what) const {
    if (status == CUBLAS_STATUS_SUCCESS) return;
    throw CudaError(std::string(what) + ": " + statusString(status));
  }
};

// Ours if it has tiles, else the library's.
struct Gemm::Algorithm {
  std::optional<HopperTiles> tiles;
  cublasLtMatmulAlgo_t library;
};

// A kind of product with the library's descriptions of it.
struct Gemm::Kind {
  // `scales` is any aligned pointer of the device: the library looks at it before a product is.
  Kind(const Library& library, const Product& product, const void* scales)
      : lib(library), product(product), residualInside(product.residual) {
    const Elem outElem = product.floatOut ? Elem::F32 : product.elem;
    lib.require(lib.descCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "cublasLtMatmulDescCreate");
    // Column-major, as the library sees it: out^T [n, rows] = weight^T^T [n, k] . x^T [k, rows].
    const cublasOperation_t transposed = CUBLAS_OP_T;
    set(CUBLASLT_MATMUL_DESC_TRANSA, transposed);
    const auto layout = [&](cublasLtMatrixLayout_t& to, cudaDataType_t type, int height,
                            int64_t stride) {
      lib.require(lib.layoutCreate(&to, type, height, 1, stride), "cublasLtMatrixLayoutCreate");
    };
    const cudaDataType_t factor = product.fp8 ? CUDA_R_8F_E4M3 : dataType(product.elem);
    layout(weight, factor, product.k, product.k);
    const uint64_t columns = product.n;
    lib.require(lib.layoutSet(weight, CUBLASLT_MATRIX_LAYOUT_COLS, &columns, sizeof(columns)),
                "the layout of a weight");
    layout(x, factor, product.k, product.xStride);
    layout(out, dataType(outElem), product.n, product.outStride);
    layout(residual, dataType(outElem), product.n,
           product.residual ? product.residualStride : product.outStride);
    if (product.fp8) useScales(scales);
    if (!product.bias || product.floatOut) return;
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
    biasInside = !candidates(kTunedRows[0], kWorkspaceBytes, 1).empty();
    if (biasInside) return;
    const cublasLtEpilogue_t none = CUBLASLT_EPILOGUE_DEFAULT;
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, none);
  }
  ~Kind() {
    if (desc) lib.descDestroy(desc);
    for (cublasLtMatrixLayout_t each : {weight, x, residual, out}) {
      if (each) lib.layoutDestroy(each);
    }
  }

  template <class T>
  void set(cublasLtMatmulDescAttributes_t attribute, const T& value) {
    lib.require(lib.descSet(desc, attribute, &value, sizeof(value)), "the description of a product");
  }

  void useScales(const void* scales) {
    const char* missing = "";
    for (const auto mode : {kScaleModeA, kScaleModeB}) {
      const auto status = lib.descSet(desc, mode, &kScaleOfEachRow, sizeof(kScaleOfEachRow));
      if (status != CUBLAS_STATUS_SUCCESS) missing = " (12.9 was the first)";
    }
    set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, scales);
    set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, scales);
    if (*missing == 0 && !candidates(kTunedRows[4], kWorkspaceBytes, 1).empty()) return;
    throw CudaError("this version of cuBLASLt has no products of fp8 with a scale for each row" +
                    std::string(missing) +
                    " and results of this type on this GPU: leave quantization fp8 out, or take a newer one");
  }

  void setRows(int count) {
    if (count == rows) return;
    const uint64_t columns = count;
    for (cublasLtMatrixLayout_t each : {x, residual, out}) {
      lib.require(lib.layoutSet(each, CUBLASLT_MATRIX_LAYOUT_COLS, &columns, sizeof(columns)),
                  "the layout of rows");
    }
    rows = count;
  }

  // What the library proposes for this number of rows.
  std::vector<cublasLtMatmulAlgo_t> candidates(int count, size_t workspace, int most) {
    setRows(count);
    cublasLtMatmulPreference_t preference = nullptr;
    lib.require(lib.preferenceCreate(&preference), "cublasLtMatmulPreferenceCreate");
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      lib.preferenceSet(preference, attribute, &value, sizeof(value));
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t(workspace));
    const uint32_t alignment = product.alignment;
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment);
    std::vector<cublasLtMatmulHeuristicResult_t> results(most);
    int found = 0;
    const cublasStatus_t status = lib.heuristic(lib.context, desc, weight, x, summand(), out,
                                                preference, most, results.data(), &found);
    lib.preferenceDestroy(preference);
    std::vector<cublasLtMatmulAlgo_t> list;
    if (status != CUBLAS_STATUS_SUCCESS) return list;
    for (int i = 0; i < found; i++) {
      if (results[i].state == CUBLAS_STATUS_SUCCESS) list.push_back(results[i].algo);
    }
    return list;
  }

  std::vector<Algorithm> proposals(int count, int most, bool hopper) {
    std::vector<Algorithm> list;
    for (const size_t limit : kWorkspaceLimits) {
      if (product.best) break;
      for (const auto& algo : candidates(count, limit, most)) {
        const auto same = [&](const Algorithm& other) {
          return std::memcmp(&other.library, &algo, sizeof(algo)) == 0;
        };
        if (std::none_of(list.begin(), list.end(), same)) list.push_back({std::nullopt, algo});
      }
    }
    if (!hopper) return list;
    for (const HopperTiles& tiles : hopperTiles(product, count)) list.push_back({tiles, {}});
    return list;
  }

  // All of the product with this many rows; false if the library refuses the algorithm.
  bool run(const ProductCall& call, const Algorithm& algorithm, int count, void* workspace,
           cudaStream_t stream) {
    if (algorithm.tiles) {
      hopperGemm(product, call, *algorithm.tiles, count, stream);
      return true;
    }
    setRows(count);
    if (launch(call, algorithm.library, workspace, stream) != CUBLAS_STATUS_SUCCESS) return false;
    launchedByLibrary = true;
    const Elem elem = product.floatOut ? Elem::F32 : product.elem;
    const Matrix result = {call.out, product.outStride, product.n};
    if (product.bias && !biasInside) addBias(elem, result, call.biasFloats, count, stream);
    if (product.residual && !residualInside) {
      const Matrix other = {const_cast<void*>(call.residual), product.residualStride, product.n};
      cuda::add(elem, result, other, count, result, stream);
    }
    return true;
  }

  cublasStatus_t launch(const ProductCall& call, const cublasLtMatmulAlgo_t& algo, void* workspace,
                        cudaStream_t stream) {
    if (biasInside) set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, call.bias);
    if (product.fp8) {
      set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, call.weightScales);
      set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, call.xScales);
    }
    const float one = 1, zero = 0;
    return lib.matmul(lib.context, desc, &one, call.weight, weight, call.x, x,
                      residualInside ? &one : &zero, residualInside ? call.residual : call.out,
                      summand(), call.out, out, &algo, workspace, kWorkspaceBytes, stream);
  }

  // The library tells only when it multiplies whether it adds to products of fp8.
  void tryResidual(const ProductCall& call, int count, void* workspace, cudaStream_t stream) {
    if (!product.fp8 || !residualInside) return;
    const auto list = candidates(count, kWorkspaceBytes, 1);
    residualInside = !list.empty() &&
                     launch(call, list[0], workspace, stream) == CUBLAS_STATUS_SUCCESS;
  }

  cublasLtMatrixLayout_t summand() const { return residualInside ? residual : out; }

  // Whether it does for the number of rows in the layouts.
  bool runs(const Algorithm& algorithm) {
    if (algorithm.tiles) return rows <= kHopperMaxRows;
    cublasLtMatmulHeuristicResult_t result{};
    return lib.algoCheck(lib.context, desc, weight, x, summand(), out, &algorithm.library, &result) ==
               CUBLAS_STATUS_SUCCESS &&
           result.workspaceSize <= kWorkspaceBytes;
  }

  // The algorithm for this number of rows, decided when it first comes.
  const Algorithm& choose(int count) {
    const auto known = chosen.find(count);
    if (known != chosen.end()) return known->second;
    setRows(count);
    for (auto near = tuned.lower_bound(count); near != tuned.end(); ++near) {
      if (runs(near->second)) return chosen[count] = near->second;
    }
    for (auto near = tuned.rbegin(); near != tuned.rend(); ++near) {
      if (runs(near->second)) return chosen[count] = near->second;
    }
    const auto list = candidates(count, kWorkspaceBytes, 1);
    if (list.empty()) {
      throw CudaError("cuBLASLt has no algorithm for a product of " + std::to_string(count) + " x " +
                      std::to_string(product.k) + " x " + std::to_string(product.n));
    }
    return chosen[count] = {std::nullopt, list[0]};
  }

  const Library& lib;
  Product product;
  cublasLtMatmulDesc_t desc = nullptr;
  cublasLtMatrixLayout_t weight = nullptr, x = nullptr, residual = nullptr, out = nullptr;
  int rows = 1;  // in the layouts
  bool biasInside = false, residualInside;
  std::map<int, Algorithm> tuned, chosen;
  std::map<int, double> seconds;  // of the tuned
};

Gemm::Gemm(const std::vector<std::string>& libraries, void* workspace, bool own)
    : library_(std::make_unique<Library>(libraries)),
      workspace_(workspace),
      hopper_(own && hopperAvailable()) {
  // 12.4.5 is 120405.
  const size_t version = library_->getVersion();
  description_ = "cuBLASLt " + std::to_string(version / 10000) + "." +
                 std::to_string(version / 100 % 100) + "." + std::to_string(version % 100);
}

Gemm::~Gemm() = default;

int Gemm::add(const Product& product) {
  for (size_t i = 0; i < kinds_.size(); i++) {
    if (kinds_[i]->product == product) return static_cast<int>(i);
  }
  kinds_.push_back(std::make_unique<Kind>(*library_, product, workspace_));
  return static_cast<int>(kinds_.size()) - 1;
}

void Gemm::tune(int id, const std::vector<ProductCall>& calls, int maxRows, cudaStream_t stream) {
  struct Candidate {
    Algorithm algorithm;
    double seconds;  // of two launches' mean, then of all launches' median
  };
  const auto began = std::chrono::steady_clock::now();
  const auto spent = [&] {
    const std::chrono::duration<double> now = std::chrono::steady_clock::now() - began;
    return tuningSeconds_ + now.count();
  };
  Kind& kind = *kinds_[id];
  LaunchTimer timer(stream);
  kind.tryResidual(calls[0], std::min(16, maxRows), workspace_, stream);
  if (size_t(kind.product.n) * kind.product.k < kTunedElements) return;
  size_t next = 0;
  // Where launches overlap a product gains by what is done of it before the small kernel ahead of it
  // has ended, so candidates are timed with one ahead of them, which moves what a norm would.
  const auto ahead = [&](int rows) {
    if (!overlapLaunches || rows > kHopperMaxRows) return false;
    launchSmall(kind.product.elem, workspace_, kWorkspaceBytes, kind.product.k, rows, stream);
    return true;
  };
  const auto launch = [&](const Algorithm& algorithm, int rows) {
    ahead(rows);
    return kind.run(calls[next++ % calls.size()], algorithm, rows, workspace_, stream);
  };
  for (int bucket : kTunedRows) {
    const int rows = std::min(bucket, maxRows);
    const bool few = rows >= kLargeRows || spent() > kTuningBudget;
    std::vector<Candidate> list;
    for (const auto& each : kind.proposals(rows, few ? kFewCandidates : kCandidates, hopper_)) {
      // Outside of a graph first: that loads its code.
      if (!kind.run(calls[0], each, rows, workspace_, stream)) continue;
      list.push_back({each, timer.seconds(2, [&] { return launch(each, rows); })});
    }
    const auto faster = [](const Candidate& a, const Candidate& b) { return a.seconds < b.seconds; };
    std::stable_sort(list.begin(), list.end(), faster);
    size_t kept[2] = {0, 0};  // of the library's, of ours
    const auto late = [&](const Candidate& each) {
      return kept[each.algorithm.tiles.has_value()]++ >= kFinalists;
    };
    list.erase(std::remove_if(list.begin(), list.end(), late), list.end());
    timer.inTurns(list, [&](const Candidate& each) { return launch(each.algorithm, rows); });
    const auto best = std::min_element(list.begin(), list.end(), faster);
    if (best != list.end() && best->seconds < kNever) {
      kind.tuned[rows] = best->algorithm;
      const double others = timer.seconds(16, [&] { return ahead(rows); });
      kind.seconds[rows] = best->seconds - (others < kNever ? others : 0);
    }
    if (rows == maxRows) break;
  }
  check(cudaStreamSynchronize(stream), "choosing algorithms for products");
  tuningSeconds_ = spent();
}

double Gemm::seconds(int id, int rows) const {
  const auto& known = kinds_[id]->seconds;
  const auto found = known.lower_bound(rows);
  return found == known.end() ? 0 : found->second;
}

void Gemm::run(int id, const ProductCall& call, int rows, cudaStream_t stream) {
  Kind& kind = *kinds_[id];
  if (kind.run(call, kind.choose(rows), rows, workspace_, stream)) return;
  throw CudaError("cublasLtMatmul refused a product of " + std::to_string(rows) + " x " +
                  std::to_string(kind.product.k) + " x " + std::to_string(kind.product.n));
}

}  // namespace millrace::cuda
