// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/core/host_device.hpp"

namespace chunkllm {

/// How much may be attended at the moment of a refresh (`--budget`).
struct Budget {
  enum class Kind : std::uint8_t {
    kTokens,  ///< `tokens`, always-kept parts included
    kShare,   ///< max(1024, share of the past), always-kept parts included
    kChunks   ///< `chunks` selected ones beside the always-kept parts
  };
  Kind kind = Kind::kTokens;
  std::int64_t tokens = 2048;
  double share = 1.0;  ///< (0, 1]
  std::int64_t chunks = 0;

  /// Tokens that may be attended when the past, the trigger included, has `past` tokens.
  [[nodiscard]] CHUNKLLM_HD std::int64_t tokens_at(std::int64_t past) const {
    switch (kind) {
      case Kind::kTokens: return tokens;
      case Kind::kShare: {
        // Neither operand is negative, so the cast is the floor.
        const auto share_of_past = static_cast<std::int64_t>(share * static_cast<double>(past));
        return share_of_past > 1024 ? share_of_past : 1024;
      }
      case Kind::kChunks: break;
    }
    return past;
  }
  [[nodiscard]] CHUNKLLM_HD std::int64_t max_chunks(std::int64_t candidates) const {
    return kind == Kind::kChunks && chunks < candidates ? chunks : candidates;
  }
};

/// Which layers share a set (`--selection`).
enum class Selection : std::uint8_t {
  kLayer,  ///< each its own, in effect inside the trigger token
  kMax,    ///< one for all, by the maximum of the layers' scores
  kVote,   ///< one for all, by the number of layers that would select a chunk (the paper)
  kSoft    ///< one for all, by the mean of the layers' scores
};

/// Candidates in a total order; `next()` hands them out one by one.
///
/// First those whose score is at or above `threshold`, by score, of equal scores the later chunk;
/// then the others, newest first; NaN scores last, newest first. A heap, since a budget takes
/// far fewer chunks than there are: O(candidates + taken log candidates).
class ChunkOrder {
 public:
  /// \param scores     [candidates], of chunks 1, 2, ...
  /// \param threshold  of the null class; 0 ranks all by score, since scores are shares >= 0
  ChunkOrder(std::span<const float> scores, float threshold) {
    heap_.reserve(scores.size());
    for (std::size_t i = 0; i < scores.size(); ++i) {
      const float score = scores[i];
      Entry entry{Tier::kByScore, score, static_cast<std::int64_t>(i) + 1};
      if (std::isnan(score)) {
        entry = {Tier::kNaN, 0.0F, entry.chunk};
        ++num_nan_;
      } else if (!(score >= threshold)) {
        entry = {Tier::kByRecency, 0.0F, entry.chunk};
      }
      heap_.push_back(entry);
    }
    std::make_heap(heap_.begin(), heap_.end(), comes_later);
  }

  [[nodiscard]] bool empty() const { return heap_.empty(); }
  [[nodiscard]] std::int64_t num_nan() const { return num_nan_; }
  [[nodiscard]] std::int64_t peek() const { return heap_.front().chunk; }
  std::int64_t next() {
    std::pop_heap(heap_.begin(), heap_.end(), comes_later);
    const std::int64_t chunk = heap_.back().chunk;
    heap_.pop_back();
    return chunk;
  }

 private:
  enum class Tier : std::uint8_t { kByScore, kByRecency, kNaN };
  struct Entry {
    Tier tier;
    float score;
    std::int64_t chunk;
  };
  static bool comes_later(const Entry& a, const Entry& b) {
    if (a.tier != b.tier) return a.tier > b.tier;
    if (a.score != b.score) return a.score < b.score;
    return a.chunk < b.chunk;
  }

  std::vector<Entry> heap_;
  std::int64_t num_nan_ = 0;
};

/// The longest prefix of `order` that the budget holds, ascending by chunk.
///
/// It stops at the first chunk that does not fit, so that the sets of growing token budgets nest.
///
/// \param token  the trigger; its past is [0, token + 1)
inline std::vector<std::int64_t> take_within_budget(const ChunkTable& table,
                                                    const CandidateRange& range, std::int64_t token,
                                                    const Budget& budget, ChunkOrder order) {
  std::vector<std::int64_t> chosen;
  if (range.num_candidates() == 0) return chosen;
  const std::int64_t past = token + 1;
  std::int64_t room = budget.tokens_at(past) - table.length(0) - (past - range.tail_begin);
  const std::int64_t max_chunks = budget.max_chunks(range.num_candidates());
  while (!order.empty() && static_cast<std::int64_t>(chosen.size()) < max_chunks) {
    room -= table.length(order.peek());
    if (room < 0) break;
    chosen.push_back(order.next());
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

/// Whether the budget holds every candidate, so that none needs a score.
inline bool budget_holds_all(const CandidateRange& range, std::int64_t token,
                             const Budget& budget) {
  return token + 1 <= budget.tokens_at(token + 1) &&
         range.num_candidates() <= budget.max_chunks(range.num_candidates());
}

/// One score array for all layers. Layers are visited in order, so sums are reproducible.
///
///   kMax   the maximum over layers
///   kSoft  the mean over layers
///   kVote  votes + mean, votes being the number of layers that would take the chunk under the
///          same budget; a mean of probabilities stays below 1, so votes decide first (means that
///          f32 cannot tell apart beside the votes are ties). A chunk whose mean lies below
///          `threshold` keeps its mean alone.
///
/// \param layer_scores  [layers][candidates]
/// Errors: none; kLayer is treated as kMax, since it has nothing to join. No layer: all 0.
inline std::vector<float> join_layers(std::span<const std::vector<float>> layer_scores,
                                      Selection selection, const ChunkTable& table,
                                      const CandidateRange& range, std::int64_t token,
                                      const Budget& budget, float threshold) {
  const auto candidates = static_cast<std::size_t>(range.num_candidates());
  std::vector<float> joined(candidates, 0.0F);
  if (layer_scores.empty()) return joined;
  if (selection == Selection::kMax || selection == Selection::kLayer) {
    joined = layer_scores.front();
    for (const std::vector<float>& scores : layer_scores) {
      for (std::size_t i = 0; i < candidates; ++i) {
        joined[i] = max_keeping_nan(joined[i], scores[i]);
      }
    }
    return joined;
  }
  for (const std::vector<float>& scores : layer_scores) {
    for (std::size_t i = 0; i < candidates; ++i) joined[i] += scores[i];
  }
  const float inverse = 1.0F / static_cast<float>(layer_scores.size());
  for (float& score : joined) score *= inverse;
  if (selection == Selection::kVote) {
    std::vector<float> votes(candidates, 0.0F);
    for (const std::vector<float>& scores : layer_scores) {
      for (const std::int64_t chunk :
           take_within_budget(table, range, token, budget, ChunkOrder(scores, threshold))) {
        votes[static_cast<std::size_t>(chunk - 1)] += 1.0F;
      }
    }
    for (std::size_t i = 0; i < candidates; ++i) {
      if (joined[i] >= threshold) joined[i] += votes[i];
    }
  }
  return joined;
}

}  // namespace chunkllm
