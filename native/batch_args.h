// Arguments that every executor's addon reads.
#pragma once
#include "batch.h"
#include "napi.h"

namespace millrace {

// Of a missing array: nothing.
template <class T>
std::vector<T> copyOf(const js::Value& value) {
  if (!value.present()) return {};
  const auto array = value.typedArray<T>();
  return {array.data, array.data + array.size};
}

inline BatchLimits toBatchLimits(const js::Value& value) {
  BatchLimits limits{};
  limits.blockSize = value.get("blockSize").int32(16, 1 << 16);
  if (limits.blockSize % 16 != 0) value.get("blockSize").fail("a multiple of 16");
  // Slots are 32-bit integers.
  limits.numBlocks = value.get("numBlocks").int32(1, 2147483647 / limits.blockSize);
  limits.maxTokens = value.get("maxTokens").int32(1, 1 << 24);
  limits.maxSeqs = value.get("maxSeqs").int32(1, 1 << 24);
  limits.maxModelLen = value.get("maxModelLen").int32(1);
  return limits;
}

template <class T>
void read(const js::Value& object, const char* key, Span<T>& span) {
  const auto array = object.get(key).typedArray<T>();
  span = {array.data, array.size};
}

inline Batch toBatch(const js::Value& value) {
  Batch b{};
  b.numTokens = value.get("numTokens").int32();
  b.numSeqs = value.get("numSeqs").int32();
  b.numRows = value.get("numRows").int32();
  b.numCopies = value.get("numCopies").int32(0, 1 << 28);
  read(value, "tokens", b.tokens);
  read(value, "positions", b.positions);
  read(value, "slots", b.slots);
  read(value, "queryStart", b.queryStart);
  read(value, "contextLens", b.contextLens);
  read(value, "blockTables", b.blockTables);
  read(value, "blockTableStart", b.blockTableStart);
  read(value, "rows", b.rows);
  read(value, "copies", b.copies);
  const js::Value sampling = value.get("sampling");
  read(sampling, "temperature", b.temperature);
  read(sampling, "topK", b.topK);
  read(sampling, "topP", b.topP);
  read(sampling, "minP", b.minP);
  read(sampling, "seed", b.seed);
  read(sampling, "draw", b.draw);
  read(sampling, "repetitionPenalty", b.repetitionPenalty);
  read(sampling, "presencePenalty", b.presencePenalty);
  read(sampling, "frequencyPenalty", b.frequencyPenalty);
  read(sampling, "historyStart", b.historyStart);
  read(sampling, "historyTokens", b.historyTokens);
  read(sampling, "historyCounts", b.historyCounts);
  read(sampling, "biasStart", b.biasStart);
  read(sampling, "biasTokens", b.biasTokens);
  read(sampling, "biasValues", b.biasValues);
  read(sampling, "logprobs", b.logprobs);
  read(sampling, "targets", b.targets);
  return b;
}

template <class T>
T* output(const js::Value& object, const char* key, size_t size) {
  const auto array = object.get(key).typedArray<T>();
  if (array.size < size) object.get(key).fail("an array of " + std::to_string(size) + " elements");
  return array.data;
}

}  // namespace millrace
