// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <variant>
#include <vector>

#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/chunk/qk_adapter.hpp"

namespace chunkllm {

/// Scores computed beforehand, for instance an oracle's: one list a layer and trigger.
class TableScorer : public ChunkScorerBase {
 public:
  /// [layer][position of the trigger token] -> scores of chunks 1, 2, ...; empty where unknown.
  using Table = std::vector<std::vector<std::vector<float>>>;

  explicit TableScorer(std::shared_ptr<const Table> table) : table_(std::move(table)) {}

  [[nodiscard]] ScorerShape shape() const { return {}; }
  /// Candidates behind the end of a list score 0.
  void direct_scores(std::int64_t layer, std::int64_t trigger, std::span<float> scores) const {
    const auto& layers = (*table_)[static_cast<std::size_t>(layer)];
    const auto row = static_cast<std::size_t>(trigger);
    const std::size_t known = row < layers.size() ? layers[row].size() : 0;
    for (std::size_t i = 0; i < scores.size(); ++i) scores[i] = i < known ? layers[row][i] : 0.0F;
  }

 private:
  std::shared_ptr<const Table> table_;
};

/// A scorer chosen at run time, for programs that take it from a flag.
class AnyScorer {
 public:
  using Variant = std::variant<MeanKeyScorer, MinMaxKeyScorer, QkAdapter, RecentScorer,
                               RandomScorer, TableScorer>;

  template <typename S>
  requires std::constructible_from<Variant, S>
  explicit AnyScorer(S scorer) : scorer_(std::move(scorer)) {}

  /// The scorer, if it is an S; else null.
  template <typename S>
  [[nodiscard]] const S* get_if() const {
    return std::get_if<S>(&scorer_);
  }

  [[nodiscard]] ScorerShape shape() const {
    return std::visit([](const auto& s) { return s.shape(); }, scorer_);
  }
  void add_token(std::int64_t layer, const TokenRow& row, bool is_first, float* state) const {
    std::visit([&](const auto& s) { s.add_token(layer, row, is_first, state); }, scorer_);
  }
  void make_key(std::int64_t layer, const float* state, std::int64_t length, float* key) const {
    std::visit([&](const auto& s) { s.make_key(layer, state, length, key); }, scorer_);
  }
  void make_query(std::int64_t layer, const TokenRow& row, float* query) const {
    std::visit([&](const auto& s) { s.make_query(layer, row, query); }, scorer_);
  }
  [[nodiscard]] const float* distance_bias(std::int64_t layer) const {
    return std::visit([&](const auto& s) { return s.distance_bias(layer); }, scorer_);
  }
  void direct_scores(std::int64_t layer, std::int64_t trigger, std::span<float> scores) const {
    std::visit([&](const auto& s) { s.direct_scores(layer, trigger, scores); }, scorer_);
  }

 private:
  Variant scorer_;
};

static_assert(ChunkScorer<AnyScorer>);

}  // namespace chunkllm
