#include "attention_plan.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

namespace millrace::cuda {

namespace {

int ceilDiv(int a, int b) { return (a + b - 1) / b; }

// Key tiles below which another piece of a prefill item costs more than it saves.
constexpr int kMinPieceTiles = 4;
constexpr int kMaxPieces = 64;

// Rows of a prefill tile with the keys they see.
struct RowTile {
  int seq, rowBegin, keyBegin, keyEnd, tiles;
};

template <typename Each>
void forRowTiles(const AttentionShape& shape, const AttentionBatch& batch, const PlanGeometry& g,
                 Each each) {
  const int group = shape.heads / shape.kvHeads;
  for (int seq = 0; seq < batch.numSeqs; seq++) {
    const int length = batch.queryStart[seq + 1] - batch.queryStart[seq];
    if (length <= 1) continue;
    const int context = batch.contextLens[seq], first = context - length;
    const int rows = length * group;
    for (int row = 0; row < rows; row += g.prefillRows) {
      const int firstToken = row / group;
      const int lastToken = (std::min(row + g.prefillRows, rows) - 1) / group;
      const int keyEnd = first + lastToken + 1;
      int keyBegin = 0;
      if (shape.window > 0) {
        keyBegin = std::max(0, first + firstToken - shape.window + 1);
        keyBegin -= keyBegin % g.prefillKeys;
      }
      each(RowTile{seq, row, keyBegin, keyEnd, ceilDiv(keyEnd - keyBegin, g.prefillKeys)});
    }
  }
}

// Walks over the items of the line.
struct ItemCursor {
  const DecodeEntry* entries;
  int count, passes, lineTiles;  // entries, passes over each, tiles of one pass over all
  int entry = 0, pass = 0, tiles = 0;
  int64_t begin = 0, end = 0;

  void enter() {
    if (entry == count) return;
    tiles = (entry + 1 < count ? entries[entry + 1].tileStart : lineTiles) -
            entries[entry].tileStart;
    end = begin + tiles;
  }
  void next() {
    begin = end;
    if (++pass < passes) {
      end += tiles;
      return;
    }
    pass = 0;
    entry++;
    enter();
  }
};

// Chooses where the stretches of so many workers end, one after the other, in a part of the line. A worker
// is a warp, or a block of `warps`.
class Borders {
 public:
  Borders(const ItemCursor& first, int64_t tiles, int workers, int warps)
      : ahead_(first), rest_(tiles), left_(workers), warps_(warps) {
    if (workers == 0) return;
    const int64_t even = (tiles + workers - 1) / workers;
    cap_ = std::max(even, std::min(even + kSnapTiles * warps, tiles * 11 / (10 * workers)));
    setEven();
  }
  // Of the worker that starts at `begin`, with `toItemEnd` tiles left of the item there.
  int64_t lengthFrom(int64_t begin, int64_t toItemEnd) {
    int64_t length = 0;
    if (toItemEnd > cap_) {
      // A long item alone, in pieces that are no shorter than even ones.
      const auto pieces = static_cast<int64_t>(toItemEnd * perEven_);
      if (pieces > 0 && toItemEnd <= pieces * cap_) length = toItemEnd / pieces;
    } else {
      while (ahead_.end <= begin + cap_ && ahead_.entry < ahead_.count) ahead_.next();
      if (ahead_.begin - begin >= even_ - spare_) length = ahead_.begin - begin;
    }
    // Warps that are idle are the last of all: nobody waits for their parts.
    if (warps_ == 1) length = std::min(length, rest_ - (left_ - 1));
    // A shorter stretch must not leave the others more than they may have.
    if (length <= 0 || rest_ - length > (left_ - 1) * cap_) {
      if (stale_) setEven();
      length = static_cast<int64_t>(even_);
      if (length < even_) length++;
    }
    // When the others have taken more than even, the last blocks are idle rather than nearly so.
    if (warps_ > 1) length = std::max(length, cap_ / 2);
    length = std::min(length, rest_);
    stale_ = true;
    rest_ -= length;
    left_--;
    return length;
  }

 private:
  void setEven() {
    even_ = static_cast<double>(rest_) / left_;
    perEven_ = 1 / even_;
    // How much less than even is worth an item that is not cut.
    spare_ = std::min(even_ / 4, 8.0 * warps_);
    stale_ = false;
  }

  ItemCursor ahead_;  // begins at the last end of an item within the cap
  int64_t rest_, cap_ = 0;
  int left_, warps_;
  double even_ = 0, perEven_ = 0, spare_ = 0;
  bool stale_ = false;
};

// The line of tiles and the workers' stretches of it.
void planDecode(const AttentionShape& shape, const AttentionBatch& batch, const PlanGeometry& g,
                char* plan, AttentionPlan& result) {
  auto* workers = reinterpret_cast<DecodeWorker*>(plan);
  auto* entries = reinterpret_cast<DecodeEntry*>(plan + planEntriesAt(g));
  const int passes = shape.kvHeads * passesOf(shape);
  int count = 0;
  int64_t start = 0;
  for (int seq = 0; seq < batch.numSeqs; seq++) {
    if (batch.queryStart[seq + 1] - batch.queryStart[seq] != 1) continue;
    const int context = batch.contextLens[seq];
    if (context < 1) continue;
    entries[count++] = {static_cast<int>(start), seq, batch.queryStart[seq], context};
    start += tileEnd(context) - tileFirst(context, shape.window);
  }
  const int64_t tiles = start * passes;
  if (tiles > INT32_MAX) {
    throw std::invalid_argument("planAttention: the step's decodes read " + std::to_string(tiles) +
                                " tiles of 16 keys, more than 2^31 - 1");
  }
  const int most = static_cast<int>(
      std::clamp<int64_t>(tiles / (kMinWarpTiles * g.decodeWarps), 1, g.decodeBlocks));

  ItemCursor item{entries, count, passes, static_cast<int>(start)};
  item.enter();
  Borders blocks(item, tiles, most, g.decodeWarps);
  int w = 0, first = 0;  // first: the worker that began the item
  for (int64_t begin = 0; begin < tiles;) {
    const int64_t blockEnd = begin + blocks.lengthFrom(begin, item.end - begin);
    const auto warps = static_cast<int>(std::min<int64_t>(g.decodeWarps, blockEnd - begin));
    Borders borders(item, blockEnd - begin, warps, 1);
    for (; begin < blockEnd; w++) {
      const int64_t end = begin + borders.lengthFrom(begin, std::min(item.end, blockEnd) - begin);
      workers[w] = {static_cast<int>(begin), item.entry, first, w};
      if (item.end <= end) {
        for (int v = first; v < w; v++) workers[v].last = w;
        while (item.entry < count && item.end <= end) item.next();
        // The next worker begins an item, or goes on with one that begins within this stretch.
        first = item.begin < end ? w : w + 1;
      }
      begin = end;
    }
  }
  for (int v = w; v <= g.decodeWorkers(); v++) workers[v] = {static_cast<int>(tiles), count, v, v};
  result.decodeItems = w;
  result.decodeSeqs = count;
}

void planPrefill(const AttentionShape& shape, const AttentionBatch& batch, const PlanGeometry& g,
                 PrefillItem* items, AttentionPlan& result) {
  int64_t total = 0;
  int longest = 0;
  forRowTiles(shape, batch, g, [&](const RowTile& t) {
    total += t.tiles;
    longest = std::max(longest, t.tiles);
  });
  if (total == 0) return;
  // An item longer than its share would still run when the others are done.
  const int64_t share = (total * shape.kvHeads + g.prefillResident - 1) / g.prefillResident;
  const int pieceTiles = static_cast<int>(
      std::max<int64_t>(kMinPieceTiles, std::min<int64_t>(share / 2, INT32_MAX)));
  int piecesLeft = prefillPieces(shape, g);

  static thread_local std::vector<PrefillItem> list;
  static thread_local std::vector<int> offsets;
  list.clear();
  offsets.assign(longest + 2, 0);
  int slot = 0;
  forRowTiles(shape, batch, g, [&](const RowTile& t) {
    int parts = 1;
    if (t.tiles > share && t.tiles > kMinPieceTiles) {
      parts = std::min({ceilDiv(t.tiles, pieceTiles), kMaxPieces, piecesLeft});
      if (parts < 2) parts = 1;
    }
    for (int part = 0; part < parts; part++) {
      const int from = static_cast<int>(int64_t{t.tiles} * part / parts);
      const int to = static_cast<int>(int64_t{t.tiles} * (part + 1) / parts);
      list.push_back({t.seq, t.rowBegin, t.keyBegin + from * g.prefillKeys,
                      std::min(t.keyEnd, t.keyBegin + to * g.prefillKeys), part, parts, slot, 0});
      offsets[longest - (to - from) + 1]++;
    }
    if (parts > 1) {
      slot += parts;
      piecesLeft -= parts;
      result.splits++;
    }
  });
  // Longest first, by counting: blocks start in this order and the last ones are short.
  for (size_t i = 1; i < offsets.size(); i++) offsets[i] += offsets[i - 1];
  for (const PrefillItem& item : list) {
    const int tiles = ceilDiv(item.keyEnd - item.keyBegin, g.prefillKeys);
    items[offsets[longest - tiles]++] = item;
  }
  result.prefillItems = static_cast<int>(list.size());
}

}  // namespace

int tileFirst(int context, int window) {
  return window > 0 && context > window ? (context - window) / kTileTokens : 0;
}
int tileEnd(int context) { return ceilDiv(context, kTileTokens); }
int passesOf(const AttentionShape& shape) {
  return ceilDiv(shape.heads / shape.kvHeads, kPassRows);
}
int passRowsOf(const AttentionShape& shape) {
  return std::min(shape.heads / shape.kvHeads, kPassRows);
}
int prefillPieces(const AttentionShape& shape, const PlanGeometry& g) {
  return std::max(2, 2 * g.prefillResident / shape.kvHeads);
}

size_t planEntriesAt(const PlanGeometry& g) {
  return sizeof(DecodeWorker) * (g.decodeWorkers() + 1);
}
size_t planItemsAt(const PlanGeometry& g, int entries) {
  return planEntriesAt(g) + sizeof(DecodeEntry) * entries;
}

size_t planBytes(const AttentionShape& shape, const PlanGeometry& g, int maxTokens, int maxSeqs) {
  const int64_t rows = int64_t{maxTokens} * (shape.heads / shape.kvHeads);
  const int64_t items = (rows + g.prefillRows - 1) / g.prefillRows + maxSeqs +
                        prefillPieces(shape, g);
  return planItemsAt(g, maxSeqs) + sizeof(PrefillItem) * items;
}

AttentionPlan makePlan(const AttentionShape& shape, const AttentionBatch& batch, int paddedSeqs,
                       bool graph, const PlanGeometry& g, void* plan) {
  if (paddedSeqs < batch.numSeqs) {
    throw std::invalid_argument("planAttention: paddedSeqs is " + std::to_string(paddedSeqs) +
                                ", expected at least the " + std::to_string(batch.numSeqs) +
                                " sequences of the step");
  }
  AttentionPlan result;
  result.graph = graph;
  result.paddedSeqs = paddedSeqs;
  char* bytes = static_cast<char*>(plan);
  planDecode(shape, batch, g, bytes, result);
  auto* items = reinterpret_cast<PrefillItem*>(bytes + planItemsAt(g, result.decodeSeqs));
  planPrefill(shape, batch, g, items, result);
  if (graph && result.prefillItems > 0) {
    throw std::invalid_argument(
        "planAttention: graph is true, expected one query token a sequence, received chunks");
  }
  return result;
}

}  // namespace millrace::cuda
