// Bias and penalties (docs/sampling.md, section 3), in place.
#include "check.h"
#include "sampling_stages.h"

namespace millrace::cuda::sampling {
namespace {

constexpr int kSlots = 2048;
constexpr int kEntryThreads = 512;

struct Entries {
  int biasBegin, biases;
  int historyBegin, all;
  __device__ Entries(const SamplingInputs& in, int row)
      : biasBegin(in.biasStart[row]), biases(in.biasStart[row + 1] - biasBegin),
        historyBegin(in.historyStart[row]),
        all(biases + in.historyStart[row + 1] - historyBegin) {}
  __device__ int token(const SamplingInputs& in, int i) const {
    return i < biases ? in.biasTokens[biasBegin + i] : in.historyTokens[historyBegin + i - biases];
  }
  // Where the value that entry i replaced is kept.
  __device__ size_t savedAt(int i) const { return size_t(biasBegin) + historyBegin + i; }
};

// Entries of a row apply at once, except that those for one token keep their order: in each round
// the first of those that share a slot has its turn. Different tokens in a slot only cost a round.
template <bool REVERSE, class Apply>
__device__ void inOrder(const SamplingInputs& in, const Entries& entries, Apply apply) {
  __shared__ int turn[kSlots];
  for (int begin = 0; begin < entries.all; begin += kEntryThreads) {
    const int place = begin + int(threadIdx.x);
    bool waits = place < entries.all;
    const int entry = REVERSE ? entries.all - 1 - place : place;
    const int token = waits ? entries.token(in, entry) : 0;
    const int slot = token % kSlots;
    do {
      if (waits) turn[slot] = kEntryThreads;
      __syncthreads();
      if (waits) atomicMin(&turn[slot], int(threadIdx.x));
      __syncthreads();
      if (waits && turn[slot] == int(threadIdx.x)) {
        apply(entry, token);
        waits = false;
      }
    } while (__syncthreads_or(waits));  // also makes the stores visible to the block
  }
}

__global__ void __launch_bounds__(kEntryThreads) adjustKernel(Step step, bool save) {
  const SamplingInputs& in = step.in;
  const int row = blockIdx.x;
  if (in.targets[row] >= 0) return;
  const Entries entries(in, row);
  float* x = step.logits + row * step.stride;
  const float repetition = in.repetitionPenalty[row], frequency = in.frequencyPenalty[row],
              presence = in.presencePenalty[row];
  inOrder<false>(in, entries, [&](int i, int token) {
    float value = x[token];
    if (save) in.saved[entries.savedAt(i)] = value;
    if (i < entries.biases) {
      value = __fadd_rn(value, in.biasValues[entries.biasBegin + i]);
    } else {
      const int count = in.historyCounts[entries.historyBegin + i - entries.biases];
      if (repetition != 1.0f) {
        value = value > 0 ? __fdiv_rn(value, repetition) : __fmul_rn(value, repetition);
      }
      value = __fsub_rn(value, __fmul_rn(frequency, float(count)));
      if (count > 0) value = __fsub_rn(value, presence);
    }
    x[token] = value;
  });
}

__global__ void __launch_bounds__(kEntryThreads) restoreKernel(Step step) {
  const SamplingInputs& in = step.in;
  const int row = blockIdx.x;
  if (in.targets[row] >= 0 || in.logprobs[row] < 0) return;
  const Entries entries(in, row);
  float* x = step.logits + row * step.stride;
  inOrder<true>(in, entries,
                [&](int i, int token) { x[token] = in.saved[entries.savedAt(i)]; });
}

}  // namespace

void adjustLogits(const Step& step, bool save, cudaStream_t stream) {
  adjustKernel<<<step.rows, kEntryThreads, 0, stream>>>(step, save);
  checkLaunch("adjustLogits");
}

void restoreLogits(const Step& step, cudaStream_t stream) {
  restoreKernel<<<step.rows, kEntryThreads, 0, stream>>>(step);
  checkLaunch("restoreLogits");
}

}  // namespace millrace::cuda::sampling
