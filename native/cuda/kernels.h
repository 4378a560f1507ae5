// What the CUDA executor launches: one function a kernel family, host side. All pointers are device
// pointers unless said otherwise; every launch is asynchronous on the given stream, allocates
// nothing and is legal while the stream is captured into a graph. Strides are in elements.
// A launch that fails throws CudaError (check.h).
#pragma once
#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace millrace::cuda {

// Storage type of activations, matrices and the KV cache. Sums are float32 everywhere. F32 is the
// path that is compared with the reference executor; it need not be fast.
enum class Elem : int { F32, F16, BF16 };
constexpr size_t bytesOf(Elem elem) { return elem == Elem::F32 ? 4 : 2; }

// Rows of activations: `rows` is given beside it, row r starts at data + r * stride.
struct Matrix {
  void* data = nullptr;
  int64_t stride = 0;
  int width = 0;
};

// ---------------------------------------------------------------- elementwise.cu

// out[t] = table[tokens[t]], table [vocab, out.width] without gaps. tokens[t] >= 0 is a token id; -1 - r stands
// for the token drawn in row r of the previous step, previous[r], or 0 where that is -1 (a row that failed).
void embed(Elem elem, const void* table, const int* tokens, const int* previous, int rows, Matrix out,
           cudaStream_t stream);

// Over each run of `group` columns: x / sqrt(mean(x^2) + eps) * weight[group] (float32 weight).
// With `residual` (same rows and width): residual = residual + x, rounded to the storage type, and
// the norm is of the new residual.
void rmsNorm(Elem elem, Matrix x, const Matrix* residual, const float* weight, float eps, int group,
             int rows, Matrix out, cudaStream_t stream);

void add(Elem elem, Matrix a, Matrix b, int rows, Matrix out, cudaStream_t stream);

// out = silu(x[:, :w]) * x[:, w:], w = out.width.
void siluMul(Elem elem, Matrix x, int rows, Matrix out, cudaStream_t stream);

// out[r] = x[rows[r]].
void gatherRows(Elem elem, Matrix x, const int* rows, int count, Matrix out, cudaStream_t stream);

// x[r][c] += bias[c] (float32), for products whose library epilogue cannot.
void addBias(Elem elem, Matrix x, const float* bias, int rows, cudaStream_t stream);

// Float32 to storage type or back, `count` elements without gaps (weights at load).
void convertFloats(Elem from, const void* source, Elem to, void* target, size_t count,
                   cudaStream_t stream);

// Deterministic values for `--load-format dummy`: the same numbers as dummyValue of
// src/model (native/cpu/weights.cpp has the C++ form), elements `first .. first + count`.
void fillDummy(Elem elem, void* target, size_t first, size_t count, uint32_t seed, float mean,
               float scale, cudaStream_t stream);

// ---------------------------------------------------------------- the KV cache

// One layer. Keys and values are apart, each [numBlocks, kvHeads, blockSize, headStride]: the tokens
// of one head and block lie together. headStride is headDim rounded up to a multiple of 16; the
// columns from headDim on are zero (the cache is zeroed at start and nothing else is ever stored).
struct KvLayer {
  void* keys;
  void* values;
  int kvHeads;
  int headDim;
  int headStride;
  int blockSize;  // a multiple of 16
  bool fp8 = false;  // e4m3 instead of the storage type (e4m3.cuh)
};

// ---------------------------------------------------------------- qkv.cu

// One pass over the fused projection of a step: optional norm of each head of q and k (QK-norm,
// float32 weight [headDim]; null: none), rotary embedding (rotate_half; null cosSin: none), rotated
// q to `q`, rotated k and v to the cache at `slots[t]` (block * blockSize + offset; negative: a
// padding row, stored nowhere). cosSin is [positions, headDim / 2] pairs (cos, sin) in float32, the
// table's scale applied, made at load from the program's frequencies in float64.
struct QkvStore {
  Matrix qIn, kIn, vIn;  // columns of one projection; T rows
  Matrix q;              // may be qIn itself
  const float* qNorm;
  const float* kNorm;
  float eps;
  const float2* cosSin;
  const int* positions;
  const int* slots;
  int heads;
  KvLayer kv;
};
void qkvStore(Elem elem, const QkvStore& step, int rows, cudaStream_t stream);

// cosSin for positions 0 .. count - 1; invFreq is a host pointer [headDim / 2].
void ropeTable(float2* cosSin, const double* invFreq, int pairs, double scale, int count,
               cudaStream_t stream);

// Copies whole blocks in order: pairs (source, target) on the device, `count` of them, over the
// given layers (host pointer). Done before anything else of a step; pairs never chain.
void copyBlocks(Elem elem, const KvLayer* layers, int numLayers, const int* pairs, int count,
                cudaStream_t stream);

// ---------------------------------------------------------------- attention_*.cu

// A step's attention, split into work at the start of the step (once for all layers of one shape
// and window). Sequences with one query token go to the decode kernel, the others to prefill.
struct AttentionShape {
  Elem elem;
  int heads, kvHeads, headDim, headStride, blockSize;
  int window;  // 0: none. A query at position p sees keys p - window + 1 .. p.
  float scale;
  bool fp8 = false;  // of the KvLayers
  friend bool operator==(const AttentionShape& a, const AttentionShape& b) {
    return a.elem == b.elem && a.heads == b.heads && a.kvHeads == b.kvHeads &&
           a.headDim == b.headDim && a.blockSize == b.blockSize && a.window == b.window &&
           a.scale == b.scale && a.fp8 == b.fp8;
  }
};

// Of the step, on the host: the planner reads these.
struct AttentionBatch {
  int numSeqs;             // real ones
  const int* queryStart;   // [numSeqs + 1]
  const int* contextLens;  // [numSeqs] keys after the step's are stored
};

// Bytes that planAttention writes at most, for steps of at most these sizes.
size_t attentionPlanBytes(const AttentionShape& shape, int maxTokens, int maxSeqs);
// Bytes of device scratch for partial results (split KV), likewise. Shared by all layers and shapes
// on one stream; zeroed once by the caller, later every launch leaves its counters at zero.
size_t attentionScratchBytes(const AttentionShape& shape, int maxTokens, int maxSeqs);

// Writes the step's work lists to `plan` (host, pinned; copied to the device by the caller with the
// other inputs of the step, same offsets). `paddedSeqs` >= numSeqs is the number of rows of a
// graph's bucket in a step of decodes only, so that the launch depends on nothing but the bucket:
// with `graph` true, two calls with the same paddedSeqs must lead to identical launches.
struct AttentionPlan {
  int decodeItems = 0, prefillItems = 0;  // what the launches need on the host; the rest is in `plan`
  int decodeSeqs = 0;
  int splits = 0;
  bool graph = false;
  int paddedSeqs = 0;
};
AttentionPlan planAttention(const AttentionShape& shape, const AttentionBatch& batch,
                            int paddedSeqs, bool graph, void* plan);

// Device side of a step, the same for all layers.
struct AttentionInputs {
  const int* queryStart;       // [S + 1]
  const int* contextLens;      // [S]
  const int* blockTables;      // block ids of sequence s from blockTableStart[s] on
  const int* blockTableStart;  // [S + 1]
  const void* plan;            // what planAttention wrote
  void* scratch;
  // What qkvStore would have done with the step's tokens before; null: it has. See attentionStores.
  const QkvStore* store = nullptr;
};
// Whether attention can do `store` itself, which saves a launch: in a step of decodes only.
bool attentionStores(const AttentionShape& shape, const AttentionPlan& plan, const QkvStore& store);
// q, out [T, heads * headDim]. Rows of padding are written too (zeros) or left alone, never read.
void attention(const AttentionShape& shape, const AttentionPlan& plan, const AttentionInputs& in,
               const KvLayer& kv, Matrix q, Matrix out, cudaStream_t stream);

// The plain version for any type and head size: one warp a query row and head. The F32 path, and
// what the fast kernels are checked against. `rowSeq[t]` is the sequence of each token, -1 padding.
void attentionPlain(const AttentionShape& shape, const AttentionInputs& in, const int* rowSeq,
                    const int* positions, int rows, const KvLayer& kv, Matrix q, Matrix out,
                    cudaStream_t stream);

// ---------------------------------------------------------------- moe.cu

// The `moe` operation of docs/program.md over `rows` tokens; rows with rowSeq-like padding are
// computed like others. gateUp [experts, 2 * inner, width], down [experts, width, inner].
struct Moe {
  Matrix x;
  Matrix router;  // [rows, experts] logits, storage type
  const void* gateUp;
  const void* down;
  int experts, inner, topK;
  bool normalize;
  Matrix out;
  void* scratch;
};
size_t moeScratchBytes(Elem elem, int experts, int inner, int width, int topK, int maxTokens);
void moe(Elem elem, const Moe& step, int rows, cudaStream_t stream);

// ---------------------------------------------------------------- sampling.cu

// Device copy of SamplingBatch (src/backend/backend.ts; arithmetic: docs/sampling.md), `rows` rows.
struct SamplingInputs {
  const float* temperature;
  const int* topK;
  const float* topP;
  const float* minP;
  const uint32_t* seed;  // [2R]
  const uint32_t* draw;
  const float* repetitionPenalty;
  const float* presencePenalty;
  const float* frequencyPenalty;
  const int* historyStart;  // [R + 1]
  const int* historyTokens;
  const int* historyCounts;
  const int* biasStart;  // [R + 1]
  const int* biasTokens;
  const float* biasValues;
  const int* logprobs;
  const int* targets;
  float* saved;  // work space, used if needs.adjust and needs.logprobs: biasStart[R] + historyStart[R]
};
// What the step needs at all, known on the host, so that a greedy step pays for nothing else.
struct SamplingNeeds {
  bool adjust;     // any bias, penalty
  bool draw;       // any temperature > 0
  bool filter;     // any top_k, top_p, min_p
  bool logprobs;   // any logprobs >= 0 or targets >= 0
  bool onlyBest() const { return !adjust && !draw && !logprobs; }
};
struct SamplingOutputs {
  int* tokens;       // [R]
  float* logprobs;   // [R]
  int* ranks;        // [R]
  int* topTokens;    // [R, 20]
  float* topLogprobs;
};
// logits [rows, vocab <= 2^18] float32, row stride `stride`; they are changed in place by bias and
// penalties (keepLogits copies them before; with needs.logprobs the rows that want logprobs are put
// back). Rows are independent. The scratch needs no initial value.
size_t samplingScratchBytes(int vocab, int maxRows);
void sample(float* logits, int64_t stride, int vocab, int rows, const SamplingInputs& in,
            const SamplingNeeds& needs, const SamplingOutputs& out, void* scratch,
            cudaStream_t stream);

// The same for a step that needs none of this, whose product has left the best of every kBestWidth tokens
// instead of logits: bests [rows, bestsOf(vocab)], of best_key.cuh.
using BestKey = unsigned long long;
constexpr int kBestWidth = 64;
constexpr int bestsOf(int vocab) { return (vocab + kBestWidth - 1) / kBestWidth; }
void takeBest(const BestKey* bests, int vocab, int rows, const SamplingInputs& in, const SamplingOutputs& out,
              cudaStream_t stream);

}  // namespace millrace::cuda
