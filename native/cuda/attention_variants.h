// Which of the compiled alternatives of the attention kernels run. Only the check program, built
// with MILLRACE_ATTENTION_EXPERIMENTS, has more than the product's, number 0.
#pragma once
#include "kernels.h"

namespace millrace::cuda {

struct AttentionVariants {
  int decode = 0, prefill = 0;
};

#ifdef MILLRACE_ATTENTION_EXPERIMENTS
constexpr int kAttentionVariants = 6;  // of each kind, at most
inline AttentionVariants attentionVariants;
// Of the kernels that `attentionVariants` chooses for the shape; null where there is none.
const char* decodeVariantName(const AttentionShape& shape);
const char* prefillVariantName(const AttentionShape& shape);
#else
constexpr int kAttentionVariants = 1;
constexpr AttentionVariants attentionVariants;
#endif

}  // namespace millrace::cuda
