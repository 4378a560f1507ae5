// Which runs of instructions hopper_chain.h does, for how many rows, and how they are cut: what is faster
// than launching them one by one, timed when the weights are there.
#pragma once
#include <functional>
#include <map>
#include <vector>

#include "hopper_chain.h"
#include "kernels.h"

namespace millrace::cuda {

// A chain somewhere in the program, and the launches it stands for.
struct ChainUse {
  Chain chain;
  std::function<void(int rows)> launches;
};

// The right to run chains on a GPU, which one of its users has at a time (hopper_chain.h).
class ChainRight {
 public:
  explicit ChainRight(int device);
  ~ChainRight();
  ChainRight(const ChainRight&) = delete;
  ChainRight& operator=(const ChainRight&) = delete;
  bool held() const { return held_; }

 private:
  const int device_;
  const bool held_;
};

class Chains {
 public:
  // The id of chains of this shape that have up to `maxRows`.
  int add(const Chain& chain, int maxRows);
  bool same(int id, const Chain& chain) const { return sameShape(kinds_[id].shape, chain); }
  int count() const { return static_cast<int>(kinds_.size()); }
  // Decides for each number of rows. `uses` are chains of the shape, of several layers if there are: they
  // come in turn, so that weights are not in a cache. `workspace` is Gemm's.
  void tune(int id, const std::vector<ChainUse>& uses, void* workspace, cudaStream_t stream);

  // Null where launches are faster. Rows of the same number always go the same way.
  const ChainTiles* tiles(int id, int rows) const;
  // Of one chain with so many rows, where it has tiles. And of all tuning.
  double seconds(int id, int rows) const { return kinds_[id].tuned.lower_bound(rows)->second.seconds; }
  double tuningSeconds() const { return tuningSeconds_; }

 private:
  struct Choice {
    bool chain = false;  // else launches
    ChainTiles tiles{};
    double seconds = 0;
  };
  struct Kind {
    Chain shape;
    int maxRows;
    std::map<int, Choice> tuned;
  };
  static bool sameShape(const Chain& a, const Chain& b);
  static Choice choose(const Chain& shape, int rows, const std::vector<ChainUse>& uses, void* workspace,
                       cudaStream_t stream);

  std::vector<Kind> kinds_;
  double tuningSeconds_ = 0;
};

}  // namespace millrace::cuda
