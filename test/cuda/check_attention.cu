// Checks native/cuda/attention*.cu against a float64 form on the host, and times them.
//
//   nvcc -std=c++17 -O3 -lineinfo --expt-relaxed-constexpr -Xcompiler -pthread \
//     -DMILLRACE_ATTENTION_EXPERIMENTS -gencode arch=compute_90a,code=sm_90a -cudart static \
//     -Inative/cuda test/cuda/check_attention.cu native/cuda/attention*.cu native/cuda/hopper.cu \
//     native/cuda/attention_plan.cpp -o check_attention
//
//   check_attention [--plan] [--quick] [--only-times] [--time] [--experiments] [--overlap]
//     --plan: only the planner, needs no GPU      --quick: few small steps, for compute-sanitizer
//     --time: times too                           --experiments: times of all compiled alternatives
//     --only-times: without the checks            --overlap: programmatic dependent launch on
#include "attention_case.h"
#include "attention_decode.cuh"
#include "attention_overlap.cuh"
#include "attention_stores.cuh"
#include "attention_times.cuh"

using namespace attention_check;

namespace {

double boundOf(Elem elem) {
  return elem == Elem::F32 ? 2e-5 : elem == Elem::F16 ? 2e-3 : 1.2e-2;
}

std::string nameOfLayout(const Layout& l) {
  return std::string(nameOf(l.elem)) + (l.fp8 ? " fp8" : "") + " heads " + std::to_string(l.heads) + "/" +
         std::to_string(l.kvHeads) + " dim " + std::to_string(l.headDim) + " block " +
         std::to_string(l.blockSize) + (l.window ? " window " + std::to_string(l.window) : "");
}

void checkPlain(const std::string& name, const Step& step, const Expected& expected) {
  const int64_t outStride = step.layout.heads * step.layout.headDim + 2;
  Memory memory = memoryFor(step, outStride);
  memory.upload(step, step.batch.seqs(), false);
  attentionPlain(step.shape, memory.inputs(), memory.rowSeq.as<int>(), memory.positions.as<int>(),
                 step.batch.tokens(), memory.kv(), memory.qMatrix(step.qStride), memory.outMatrix(),
                 nullptr);
  report("plain " + name,
         errorOf(step, memory.out.download<uint8_t>(), outStride, step.batch.tokens(), expected),
         boundOf(step.layout.elem));
}

void checkFast(const std::string& name, const Step& step, const Expected& expected, int64_t outStride) {
  Memory memory = memoryFor(step, outStride);
  const AttentionPlan plan = memory.upload(step, step.batch.seqs(), false);
  double worst = 0;
  bool same = true;
  std::vector<uint8_t> first;
  for (int repeat = 0; repeat < 3; repeat++) {
    memory.clearOut();
    attention(step.shape, plan, memory.inputs(), memory.kv(), memory.qMatrix(step.qStride),
              memory.outMatrix(), nullptr);
    const auto bytes = memory.out.download<uint8_t>();
    worst = std::max(worst, errorOf(step, bytes, outStride, step.batch.tokens(), expected));
    if (repeat == 0) first = bytes;
    same = same && bytes == first;
  }
  const bool zero = memory.countersAreZero();
  const double bound = boundOf(step.layout.elem);
  report(name, same && zero ? worst : INFINITY, bound,
         !zero ? "(counters are not 0)" : !same ? "(repeats differ)" : "");
  if (!(worst <= bound)) {
    std::printf("     %s\n", firstWrong(step, first, outStride, expected, bound).c_str());
  }
}

// With each prefill kernel there is, where the step has chunks at all.
template <class Check>
void forPrefillVariants(const Step& step, Check check) {
#ifdef MILLRACE_ATTENTION_EXPERIMENTS
  if (step.batch.tokens() > step.batch.seqs()) {
    for (int variant = 0; variant < kAttentionVariants; variant++) {
      attentionVariants.prefill = variant;
      const char* name = prefillVariantName(step.shape);
      if (name) check(", prefill " + std::to_string(variant) + " (" + name + ")");
    }
    attentionVariants = {};
    return;
  }
#endif
  check("");
}

// The plain kernel, then every fast one three times: counters must have come back.
void checkStep(const std::string& what, const Layout& layout, const Batch& batch, Trend trend = {}) {
  static uint64_t seed = 100;
  const std::string name = nameOfLayout(layout) + ", " + what;
  try {
    const Step step(layout, batch, seed += 10, 0, trend);
    const auto expected = expectedOf(step);
    checkPlain(name, step, expected);
    if (layout.elem == Elem::F32) return;
    forPrefillVariants(step, [&](const std::string& variant) {
      // Rows of the output that are 4-byte aligned and no more, then 16-byte aligned as in a runner.
      for (int gap : {2, 8}) {
        checkFast(name + variant + (gap == 8 ? ", aligned" : ""), step, expected,
                  layout.heads * layout.headDim + gap);
      }
    });
  } catch (const std::exception& error) {
    report(name, INFINITY, 0, error.what());
  }
}

// Every GPU has a decode kernel for every size of head and group: for those with 99, 163 and 227 KB for a block.
void checkDivisions() {
  for (const int kilobytes : {99, 163, 227}) {
    int missing = 0;
    for (const bool fp8 : {false, true}) {
      for (const Elem elem : {Elem::BF16, Elem::F16}) {
        for (const int dim : {64, 128, 256}) {
          for (const int group : {1, 2, 4, 8, 16}) {
            const Layout layout = {elem, group, 1, dim, 16, 0, fp8};
            const DecodeKernel kernel = decodeKernel(layout.shape(), dim, size_t(kilobytes) << 10, 0);
            missing += !kernel.function;
          }
        }
      }
    }
    report("decode kernels for " + std::to_string(kilobytes) + " KB", missing, 0);
  }
}

// Steps of decodes that store their own keys and values: short and long ones, many and few.
void checkStores(bool quick) {
  Batch few, many, cut;
  for (int context : {1, 15, 16, 17, 33, 2000}) few.add(1, context);
  for (int s = 0; s < 150; s++) many.add(1, 1 + s * 37 % 700);
  cut.add(1, 20001);
  uint64_t seed = 7000;
  for (const bool fp8 : {false, true}) {
    for (const Elem elem : {Elem::BF16, Elem::F16}) {
      for (const int dim : {64, 128, 256}) {
        for (const int group : {1, 2, 4, 8, 16, 24}) {
          if (quick && (dim != 128 || group != 4)) continue;
          const Layout layout = {elem, 2 * group, 2, dim, dim == 64 ? 32 : 16, group == 2 ? 100 : 0, fp8};
          const Batch& batch = group == 4 && !quick ? many : group == 8 ? cut : few;
          const bool norm = group != 1, rope = group != 16;
          const std::string name = nameOfLayout(layout) + ", stores itself";
          try {
            report(name, storesError(layout, batch, seed += 10, norm, rope, boundOf(elem)), 1);
          } catch (const std::exception& error) {
            report(name, INFINITY, 0, error.what());
          }
        }
      }
    }
  }
}

// One capture, replayed for steps of other lengths and fewer sequences than the bucket has.
void checkGraph(const Layout& layout, int bucket, int maxContext) {
  const std::string name = nameOfLayout(layout) + ", graph of " + std::to_string(bucket);
  try {
    const int bs = layout.blockSize, blocks = bucket * ((maxContext + bs - 1) / bs) + 3;
    std::mt19937 random(5);
    const auto stepOf = [&](int seqs, int longest, uint64_t seed) {
      Batch batch;
      for (int s = 0; s < seqs; s++) batch.add(1, 1 + static_cast<int>(random() % longest));
      return Step(layout, batch, seed, blocks);
    };
    const Step start = stepOf(bucket, 40, 1);
    const int64_t outStride = layout.heads * layout.headDim;
    Memory memory(start.shape, bucket, bucket, bucket * start.qStride * bytesOf(layout.elem),
                  start.keys.size(), blocks + 2, outStride);
    AttentionPlan plan = memory.upload(start, bucket, true);
    cudaStream_t stream;
    check(cudaStreamCreate(&stream), "stream");
    const Graph graph(stream, [&] {
      attention(start.shape, plan, memory.inputs(), memory.kv(), memory.qMatrix(start.qStride),
                memory.outMatrix(), stream);
    });
    const int seqs[] = {bucket, 1, std::max(1, bucket - 1), std::max(1, bucket / 2), bucket};
    const int longest[] = {40, maxContext, maxContext, 1, maxContext};
    for (int i = 0; i < 5; i++) {
      const Step step = stepOf(seqs[i], longest[i], 10 + i);
      memory.upload(step, bucket, true);
      check(cudaDeviceSynchronize(), "upload");
      graph.launch(stream);
      check(cudaStreamSynchronize(stream), "graph");
      const double error = errorOf(step, memory.out.download<uint8_t>(), outStride, bucket,
                                   expectedOf(step));
      report(name + ", " + std::to_string(seqs[i]) + " seqs to " + std::to_string(longest[i]),
             memory.countersAreZero() ? error : INFINITY, boundOf(layout.elem));
    }
    cudaStreamDestroy(stream);
  } catch (const std::exception& error) {
    report(name, INFINITY, 0, error.what());
  }
}

void checkOverlap(const std::string& what, const Layout& layout, const Batch& batch) {
  const std::string name = nameOfLayout(layout) + ", behind a store, " + what;
  try {
    report(name, overlapError(layout, batch, 77), boundOf(layout.elem));
  } catch (const std::exception& error) {
    report(name, INFINITY, 0, error.what());
  }
}

Batch decodes(std::initializer_list<int> contexts) {
  Batch batch;
  for (int context : contexts) batch.add(1, context);
  return batch;
}
// Pairs of query tokens and context.
Batch chunks(std::initializer_list<std::pair<int, int>> lengths) {
  Batch batch;
  for (auto [queries, context] : lengths) batch.add(queries, context);
  return batch;
}

// What only the decode kernel has borders for.
void checkDecodes() {
  const Batch uneven = decodes({700, 1, 15, 16, 17, 130, 333});
  for (Elem elem : {Elem::BF16, Elem::F16}) {
    for (bool fp8 : {false, true}) {
      for (int dim : {64, 128, 256}) {
        for (int group : {7, 8, 9, 16, 17}) {
          checkStep("decodes", {elem, 2 * group, 2, dim, 16, 0, fp8}, uneven);
        }
        const Layout layout{elem, 8, 2, dim, 16, 0, fp8};
        // Scores that rise and fall by little and by much, and that are all far from 0.
        for (Trend trend : {Trend{0, 3}, Trend{0, 40}, Trend{-200, 0}, Trend{-90, 5}}) {
          checkStep("trend from " + std::to_string(int(trend.start)) + " by " +
                    std::to_string(int(trend.rise)), layout, uneven, trend);
        }
        // Fewer tiles than a ring has.
        for (int context : {1, 15, 16, 17, 33, 64, 65}) {
          checkStep("a decode of " + std::to_string(context), layout, decodes({context}));
        }
        checkOverlap("uneven", layout, uneven);
        checkOverlap("64 of 300", layout, repeated(64, 1, 300));
        checkOverlap("16 of 1", layout, repeated(16, 1, 1));
      }
    }
    checkStep("trend in a window", {elem, 12, 2, 128, 32, 100}, uneven, {0, 3});
    checkStep("trend of 2 x 16 heads", {elem, 32, 1, 128, 16, 0}, decodes({3000, 90}), {0, 1});
  }
}

// Of 2, 3 .. tokens, at most `most` different lengths.
Batch prompts(int count, int most) {
  Batch batch;
  for (int i = 0; i < count; i++) batch.add(2 + i % most, 2 + i % most);
  return batch;
}

void checkQuick() {
  for (Elem elem : {Elem::BF16, Elem::F16}) {
    checkStep("decode", {elem, 8, 2, 128, 16, 0}, decodes({1, 37, 300}));
    checkStep("mixed", {elem, 4, 2, 64, 32, 0}, chunks({{1, 90}, {40, 70}, {3, 200}, {1, 1}}));
    checkStep("window", {elem, 4, 2, 24, 16, 21}, chunks({{1, 90}, {40, 70}, {1, 10}}));
    checkStep("prefill", {elem, 4, 2, 128, 16, 0}, chunks({{130, 300}, {7, 520}}));
  }
  checkStep("mixed", {Elem::BF16, 2, 2, 256, 16, 0}, chunks({{1, 50}, {20, 41}}));
  checkStep("mixed", {Elem::F32, 4, 2, 24, 16, 9}, chunks({{1, 50}, {20, 41}}));
  checkGraph({Elem::BF16, 4, 2, 64, 16, 0}, 4, 90);
  checkOverlap("quick", {Elem::BF16, 8, 2, 128, 16, 0}, decodes({1, 37, 300}));
  checkStores(true);
  checkStep("trend", {Elem::BF16, 4, 2, 128, 16, 0, true}, decodes({300}), {0, 5});
  for (int dim : {24, 64, 128, 256}) {
    checkStep("mixed", {Elem::BF16, 4, 2, dim, 16, 0, true},
              chunks({{1, 90}, {40, 70}, {3, 200}, {1, 1}}));
  }
  checkStep("window", {Elem::F16, 4, 2, 80, 32, 21, true}, chunks({{1, 90}, {40, 70}, {1, 10}}));
  checkStep("prefill", {Elem::BF16, 4, 2, 128, 16, 0, true}, chunks({{130, 300}, {7, 520}}));
  checkStep("mixed", {Elem::F32, 4, 2, 24, 16, 9, true}, chunks({{1, 50}, {20, 41}}));
}

void checkAll() {
  checkDecodes();
  const Batch mixed = chunks({{1, 1}, {33, 33}, {1, 129}, {5, 530}, {1, 700}, {70, 171}, {2, 2},
                              {1, 16}, {1, 17}, {16, 16}, {129, 300}, {1, 15}});
  for (Elem elem : {Elem::BF16, Elem::F16}) {
    for (int dim : {16, 24, 50, 64, 80, 96, 128, 144, 256}) {
      checkStep("mixed", {elem, 4, 2, dim, 16, 0}, mixed);
      checkStep("mixed", {elem, 4, 2, dim, 32, 45}, mixed);
    }
    for (int group : {1, 2, 3, 4, 5, 7, 8, 16, 20, 32}) {
      checkStep("mixed", {elem, 2 * group, 2, 64, 48, 0}, mixed);
      checkStep("mixed", {elem, group, 1, 128, 64, 0}, mixed);
    }
    for (int window : {1, 2, 15, 16, 17, 64, 65, 200}) {
      checkStep("mixed", {elem, 8, 2, 128, 16, window}, mixed);
    }
    checkStep("one long decode", {elem, 8, 1, 128, 16, 0}, decodes({30001}));
    checkStep("one long decode", {elem, 4, 2, 64, 32, 0}, decodes({20000}));
    checkStep("one long of many", {elem, 4, 1, 128, 16, 0},
              decodes({7, 9001, 16, 31, 120, 5, 64, 1, 260, 33}));
    checkStep("split prefill", {elem, 4, 1, 128, 16, 0}, chunks({{9, 6000}}));
    checkStep("split prefill", {elem, 4, 1, 64, 16, 0}, chunks({{2, 9001}, {64, 1500}, {1, 900}}));
    checkStep("split prefill", {elem, 2, 1, 256, 16, 0}, chunks({{17, 2000}}));
    checkStep("split prefill", {elem, 4, 1, 128, 16, 1000}, chunks({{100, 4000}}));
    checkStep("prefill", {elem, 4, 2, 128, 16, 0}, chunks({{700, 700}, {256, 900}}));
    // Around the borders of tiles of rows and keys, and prompts for several units a block.
    const Batch borders = chunks({{127, 127}, {128, 128}, {129, 129}, {255, 255}, {256, 256}, {257, 257},
                                  {2, 128}, {2, 129}, {3, 256}, {63, 257}, {64, 384}, {65, 385}});
    for (int dim : {64, 128}) {
      checkStep("borders", {elem, 2, 2, dim, 16, 0}, borders);
      checkStep("borders", {elem, 4, 1, dim, 64, 130}, borders);
      checkStep("borders", {elem, 3, 1, dim, 32, 100}, borders);
      checkStep("700 prompts", {elem, 4, 2, dim, 16, 0}, prompts(700, 40));
      checkStep("borders", {elem, 2, 2, dim, 16, 0, true}, borders);
      checkStep("borders", {elem, 4, 1, dim, 64, 130, true}, borders);
      checkStep("borders", {elem, 3, 1, dim, 32, 100, true}, borders);
      checkStep("700 prompts", {elem, 4, 2, dim, 16, 0, true}, prompts(700, 40));
    }
    checkStep("700 prompts", {elem, 4, 2, 80, 16, 30}, prompts(700, 40));
    Batch many;
    for (int i = 0; i < 300; i++) many.add(1, 1 + (i * 37) % 400);
    checkStep("300 decodes", {elem, 8, 2, 128, 16, 0}, many);
    checkStep("60 prompts", {elem, 8, 2, 64, 16, 0}, prompts(60, 60));
    for (int dim : {16, 24, 50, 64, 80, 96, 128, 144, 256}) {
      checkStep("mixed", {elem, 4, 2, dim, 16, 0, true}, mixed);
      checkStep("mixed", {elem, 12, 2, dim, 32, 45, true}, mixed);
    }
    for (int group : {1, 2, 3, 5, 8, 16, 20, 32}) {
      checkStep("mixed", {elem, 2 * group, 2, 64, 48, 0, true}, mixed);
      checkStep("mixed", {elem, group, 1, 128, 64, 0, true}, mixed);
    }
    for (int window : {1, 2, 15, 16, 17, 64, 65, 200}) {
      checkStep("mixed", {elem, 8, 2, 128, 16, window, true}, mixed);
    }
    checkStep("one long decode", {elem, 8, 1, 128, 16, 0, true}, decodes({30001}));
    checkStep("one long decode", {elem, 4, 2, 64, 32, 0, true}, decodes({20000}));
    checkStep("split prefill", {elem, 4, 1, 128, 16, 0, true}, chunks({{9, 6000}}));
    checkStep("split prefill", {elem, 4, 1, 64, 16, 0, true}, chunks({{2, 9001}, {64, 1500}, {1, 900}}));
    checkStep("split prefill", {elem, 4, 1, 128, 16, 1000, true}, chunks({{100, 4000}}));
    checkStep("prefill", {elem, 4, 2, 128, 16, 0, true}, chunks({{700, 700}, {256, 900}}));
    checkStep("300 decodes", {elem, 8, 2, 128, 16, 0, true}, many);
    checkStep("60 prompts", {elem, 8, 2, 64, 16, 0, true}, prompts(60, 60));
  }
  for (int dim : {16, 24, 64, 128, 256}) {
    checkStep("mixed", {Elem::F32, 6, 2, dim, 16, dim == 64 ? 33 : 0}, mixed);
  }
  checkStores(false);
  checkGraph({Elem::BF16, 8, 2, 128, 16, 0}, 8, 3000);
  checkGraph({Elem::F16, 4, 4, 64, 32, 100}, 32, 500);
  checkGraph({Elem::BF16, 16, 1, 80, 16, 0}, 1, 5000);
  checkGraph({Elem::BF16, 8, 2, 128, 16, 0, true}, 8, 3000);
}

}  // namespace

int main(int count, char** arguments) {
  bool plan = false, quick = false, onlyTimes = false, times = false, experiments = false;
  for (int i = 1; i < count; i++) {
    const std::string argument = arguments[i];
    if (argument == "--plan") plan = true;
    else if (argument == "--quick") quick = true;
    else if (argument == "--only-times") onlyTimes = true;
    else if (argument == "--time") times = true;
    else if (argument == "--experiments") experiments = true;
    else if (argument == "--overlap") overlapLaunches = launchesCanOverlap();
    else return std::printf("unknown argument %s\n", argument.c_str()), 2;
  }
  try {
    if (!onlyTimes) {
      report("random plans", attention_plan_cases::checkPlans(quick ? 100 : 1000), 0);
      checkDivisions();
      if (quick) checkQuick();
      else if (!plan) checkAll();
    }
    if (times || (onlyTimes && !experiments)) timeShapes();
    if (experiments) timeExperiments();
  } catch (const std::exception& error) {
    report("stopped", INFINITY, 0, error.what());
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed > 0;
}
