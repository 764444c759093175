// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

#include "chunkllm/core/status.hpp"
#include "chunkllm/text/token_vocabulary.hpp"

namespace chunkllm::detail {

/// Rank and result of each mergeable pair of tokens.
class MergeTable {
 public:
  static constexpr std::uint32_t kNoRank = std::numeric_limits<std::uint32_t>::max();

  struct Merge {
    std::uint32_t rank = kNoRank;
    std::int32_t merged = -1;
  };

  struct Pair {
    std::int32_t left = -1;
    std::int32_t right = -1;
    std::int32_t merged = -1;
  };

  MergeTable() : MergeTable(0) {}
  explicit MergeTable(std::size_t num_merges) : slots_(std::bit_ceil(2 * num_merges + 2)) {
    pairs_.reserve(num_merges);
  }

  /// Adds the pair of the next rank; a pair that is there already takes that rank, as in the
  /// reference. Call at most `num_merges` times.
  Status add(const Pair& pair) {
    const std::uint64_t key = pair_key(pair.left, pair.right);
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = hash(key) & mask;
    std::size_t probes = 0;
    for (; slots_[slot].key != kEmptyKey && slots_[slot].key != key; slot = (slot + 1) & mask) {
      if (++probes > kMaxProbes) return invalid_file("merges: too many colliding pairs");
    }
    slots_[slot] = {key, {static_cast<std::uint32_t>(pairs_.size()), pair.merged}};
    farthest_ = std::max(farthest_, probes);
    pairs_.push_back(pair);
    return {};
  }

  [[nodiscard]] std::size_t num_ranks() const { return pairs_.size(); }
  [[nodiscard]] const Pair& pair(std::uint32_t rank) const { return pairs_[rank]; }

  /// The merge of two adjacent tokens; its rank is kNoRank where there is none.
  [[nodiscard]] Merge find(std::int32_t left, std::int32_t right) const {
    const std::uint64_t key = pair_key(left, right);
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = hash(key) & mask;
    for (std::size_t probes = 0; probes <= farthest_; ++probes, slot = (slot + 1) & mask) {
      if (slots_[slot].key == key) return slots_[slot].merge;
      if (slots_[slot].key == kEmptyKey) break;
    }
    return {};
  }

 private:
  static constexpr std::uint64_t kEmptyKey = std::numeric_limits<std::uint64_t>::max();

  struct Slot {
    std::uint64_t key = kEmptyKey;
    Merge merge;
  };

  static std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
    return (static_cast<std::uint64_t>(static_cast<std::uint32_t>(left)) << 32) |
           static_cast<std::uint32_t>(right);
  }
  static std::uint64_t hash(std::uint64_t key) {
    return mix_words(key ^ kHashMultiplier, kHashMultiplier);
  }

  std::vector<Pair> pairs_;   // by rank
  std::vector<Slot> slots_;   // open addressing; a power of two, at most half full
  std::size_t farthest_ = 0;  // most slots that a key lies behind its own
};

/// A pair that may be merged: its rank and its left symbol.
struct MergeCandidate {
  std::uint32_t rank;
  std::uint32_t pos;

  bool operator>(const MergeCandidate& other) const {
    return rank != other.rank ? rank > other.rank : pos > other.pos;
  }
};

/// Buffers of `merge_symbols`, reused from word to word.
struct MergeScratch {
  std::vector<std::int32_t> symbols;
  std::vector<std::uint32_t> ranks;
  std::vector<std::uint32_t> next;
  std::vector<std::uint32_t> previous;
  std::vector<std::vector<std::uint32_t>> buckets;  // [num_ranks] positions; empty between words
  std::vector<std::uint32_t> active_ranks;          // heap of the ranks with a bucket
  std::vector<MergeCandidate> early;                // heap of candidates up to the current rank
};

/// Up to this many symbols a scan for the lowest rank beats sorting the pairs by rank.
inline constexpr std::size_t kMaxScannedSymbols = 64;

/// Merges a short word: a scan for the lowest rank a merge.
inline void merge_by_scan(const MergeTable& merges, MergeScratch& scratch) {
  auto& symbols = scratch.symbols;
  auto& ranks = scratch.ranks;  // ranks[i]: of the pair (i, i + 1)
  std::size_t n = symbols.size();
  ranks.resize(n);
  for (std::size_t i = 0; i + 1 < n; ++i) ranks[i] = merges.find(symbols[i], symbols[i + 1]).rank;
  while (n > 1) {
    std::size_t best = 0;
    for (std::size_t i = 1; i + 1 < n; ++i) {
      if (ranks[i] < ranks[best]) best = i;
    }
    if (ranks[best] == MergeTable::kNoRank) break;
    symbols[best] = merges.find(symbols[best], symbols[best + 1]).merged;
    --n;
    for (std::size_t i = best + 1; i < n; ++i) {
      symbols[i] = symbols[i + 1];
      ranks[i] = ranks[i + 1];
    }
    if (best > 0) ranks[best - 1] = merges.find(symbols[best - 1], symbols[best]).rank;
    if (best + 1 < n) ranks[best] = merges.find(symbols[best], symbols[best + 1]).rank;
  }
  symbols.resize(n);
}

/// Merges a long word, n log n: positions in a bucket a rank, the ranks taken in ascending order.
///
/// In vocabularies as training makes them a merge only gives rise to pairs of higher rank. Pairs
/// up to the rank at hand, which other files may hold, wait in a heap that is always empty else.
/// One heap of all candidates does the same but misses the cache at each step: 20 times slower on a
/// word of 10 MB.
class BucketMerger {
 public:
  BucketMerger(const MergeTable& merges, MergeScratch& scratch)
      : merges_(merges),
        symbols_(scratch.symbols),
        next_(scratch.next),
        previous_(scratch.previous),
        scratch_(scratch) {}

  void run() {
    const auto n = static_cast<std::uint32_t>(symbols_.size());
    next_.resize(n);
    previous_.resize(n);
    if (scratch_.buckets.size() < merges_.num_ranks()) {
      scratch_.buckets.resize(merges_.num_ranks());
    }
    for (std::uint32_t i = 0; i < n; ++i) {
      next_[i] = i + 1 < n ? i + 1 : kNone;
      previous_[i] = i > 0 ? i - 1 : kNone;
    }
    for (std::uint32_t i = 0; i + 1 < n; ++i) add_candidate(i);
    while (!scratch_.active_ranks.empty()) merge_rank(pop(scratch_.active_ranks));
    std::erase(symbols_, kRemoved);
  }

 private:
  static constexpr std::uint32_t kNone = std::numeric_limits<std::uint32_t>::max();
  static constexpr std::int32_t kRemoved = -2;
  // Larger buckets are given back, so that one huge word does not keep its memory.
  static constexpr std::size_t kMaxKeptBucket = 1024;

  template <typename T>
  static void push(std::vector<T>& heap, T value) {
    heap.push_back(value);
    std::push_heap(heap.begin(), heap.end(), std::greater<>{});
  }
  template <typename T>
  static T pop(std::vector<T>& heap) {
    std::pop_heap(heap.begin(), heap.end(), std::greater<>{});
    const T value = heap.back();
    heap.pop_back();
    return value;
  }

  /// Notes the pair whose left symbol is at `pos`, which has a right one.
  void add_candidate(std::uint32_t pos) {
    const std::uint32_t rank = merges_.find(symbols_[pos], symbols_[next_[pos]]).rank;
    if (rank == MergeTable::kNoRank) return;
    if (current_rank_ != kNone && rank <= current_rank_) {
      push(scratch_.early, {rank, pos});
      return;
    }
    auto& bucket = scratch_.buckets[rank];
    if (bucket.empty()) push(scratch_.active_ranks, rank);
    bucket.push_back(pos);
  }

  void merge_rank(std::uint32_t rank) {
    current_rank_ = rank;
    std::vector<std::uint32_t> positions;
    positions.swap(scratch_.buckets[rank]);
    if (!std::is_sorted(positions.begin(), positions.end())) {
      std::sort(positions.begin(), positions.end());
    }
    auto& early = scratch_.early;
    for (const std::uint32_t pos : positions) {
      const MergeCandidate candidate{rank, pos};
      while (!early.empty() && candidate > early.front()) merge_at(pop(early));
      merge_at(candidate);
    }
    while (!early.empty()) merge_at(pop(early));
    positions.clear();
    if (positions.capacity() <= kMaxKeptBucket) positions.swap(scratch_.buckets[rank]);
  }

  void merge_at(const MergeCandidate& candidate) {
    const std::uint32_t pos = candidate.pos;
    const std::uint32_t right = next_[pos];
    const MergeTable::Pair& pair = merges_.pair(candidate.rank);
    // Candidates whose pair has changed since are stale.
    if (right == kNone || symbols_[pos] != pair.left || symbols_[right] != pair.right) return;
    symbols_[pos] = pair.merged;
    symbols_[right] = kRemoved;
    next_[pos] = next_[right];
    if (next_[pos] != kNone) previous_[next_[pos]] = pos;
    if (previous_[pos] != kNone) add_candidate(previous_[pos]);
    if (next_[pos] != kNone) add_candidate(pos);
  }

  const MergeTable& merges_;
  std::vector<std::int32_t>& symbols_;
  std::vector<std::uint32_t>& next_;
  std::vector<std::uint32_t>& previous_;
  MergeScratch& scratch_;
  std::uint32_t current_rank_ = kNone;
};

/// Replaces `scratch.symbols` by their merges: always the adjacent pair of lowest rank, the
/// leftmost on ties.
///
/// \pre  fewer than 2^32 - 1 symbols
/// Source: R. Sennrich et al., "Neural machine translation of rare words with subword units", 2016
inline void merge_symbols(const MergeTable& merges, MergeScratch& scratch) {
  if (scratch.symbols.size() <= kMaxScannedSymbols) {
    merge_by_scan(merges, scratch);
  } else {
    BucketMerger(merges, scratch).run();
  }
}

}  // namespace chunkllm::detail
