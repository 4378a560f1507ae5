// The stages of `sample` that have a file of their own. Same conventions as kernels.h.
#pragma once
#include "sampling_device.cuh"

namespace millrace::cuda::sampling {

struct Step {
  float* logits;
  int64_t stride;
  int vocab;
  int rows;
  SamplingInputs in;
  SamplingOutputs out;
  Scratch scratch;
};

// sampling_adjust.cu: bias and penalties in place, in order. With `save`, what each entry replaced
// goes to in.saved; restoreLogits puts it back in the rows that want logprobs.
void adjustLogits(const Step& step, bool save, cudaStream_t stream);
void restoreLogits(const Step& step, cudaStream_t stream);

// sampling_filter.cu: for rows of Kind::Filtered, from the bins to the ends of the kept set: which
// bins they lie in, and what is in those bins.
void boundRows(const Step& step, cudaStream_t stream);
void gatherCandidates(const Step& step, int tilesEach, cudaStream_t stream);

// sampling_logprobs.cu: of the tokens chosen, from raw logits.
void writeLogprobs(const Step& step, int tilesEach, cudaStream_t stream);

inline dim3 tileGrid(const Step& step, int tilesEach) {
  return dim3((step.scratch.tiles + tilesEach - 1) / tilesEach, step.rows);
}

}  // namespace millrace::cuda::sampling
