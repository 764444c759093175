// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "chunkllm/chunk/any_scorer.hpp"
#include "chunkllm/chunk/kv_cache.hpp"
#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/core/status.hpp"
#include "chunkllm/core/tensor_view.hpp"
#include "chunkllm/core/thread_pool.hpp"
#include "chunkllm/eval/head_mass.hpp"
#include "chunkllm/model/backbone_config.hpp"

namespace chunkllm {

/// What a `ChunkMassCollector` gathers.
struct ChunkMassOptions {
  MassRows rows = MassRows::kNext;
  HeadJoin head_join = HeadJoin::kMax;
};

/// The mass of `HeadMassCollector` as scores of a table: averaged over rows, joined over heads.
///
///   m[h,c] = sums[h,c] / number of the trigger's rows
///   score[c] = max (or mean) over h of m[h,c]
class ChunkMassCollector {
 public:
  /// Errors: those of `HeadMassCollector::create`.
  static Result<ChunkMassCollector> create(const BackboneConfig& config,
                                           std::vector<std::int64_t> chunk_ends,
                                           std::vector<std::int64_t> triggers,
                                           const ChunkMassOptions& options, ThreadPool& pool) {
    CHUNKLLM_ASSIGN_OR_RETURN(HeadMassCollector heads,
                              HeadMassCollector::create(config, std::move(chunk_ends),
                                                        std::move(triggers), options.rows, pool));
    return ChunkMassCollector(std::move(heads), config, options.head_join);
  }

  /// Takes a block of a layer: see `HeadMassCollector::observe`.
  template <typename T>
  void observe(std::int64_t layer, std::int64_t first_token, MatrixView<const float> q,
               const KvView<T>& kv, std::span<const float> lse) {
    heads_.observe(layer, first_token, q, kv, lse, [this](const HeadMass& mass) { join(mass); });
  }

  /// The scores, [layer][trigger] -> chunks 1, 2, ... closed at the trigger; empty for a trigger
  /// whose rows were never seen. The last trigger's rows may be cut off by the text's end. To be
  /// called once.
  TableScorer::Table take() {
    heads_.finish([this](const HeadMass& mass) { join(mass); });
    return std::move(table_);
  }

 private:
  ChunkMassCollector(HeadMassCollector heads, const BackboneConfig& config, HeadJoin head_join)
      : heads_(std::move(heads)),
        num_heads_(config.num_heads),
        head_join_(head_join),
        table_(static_cast<std::size_t>(config.num_layers)) {}

  void join(const HeadMass& mass) {
    auto& rows = table_[static_cast<std::size_t>(mass.layer)];
    const auto token = static_cast<std::size_t>(heads_.triggers()[mass.trigger]);
    if (rows.size() <= token) rows.resize(static_cast<std::size_t>(heads_.triggers().back()) + 1);
    std::vector<float>& scores = rows[token];
    scores.assign(static_cast<std::size_t>(std::max<std::int64_t>(mass.num_chunks - 1, 0)), 0.0F);
    for (std::int64_t head = 0; head < num_heads_; ++head) {
      const float* sums = mass.sums.data() + head * mass.num_chunks + 1;
      for (std::size_t i = 0; i < scores.size(); ++i) {
        scores[i] = head_join_ == HeadJoin::kMax ? max_keeping_nan(scores[i], sums[i])
                                                 : scores[i] + sums[i];
      }
    }
    const std::int64_t count = mass.num_rows * (head_join_ == HeadJoin::kMean ? num_heads_ : 1);
    for (float& score : scores) score /= static_cast<float>(count);
  }

  HeadMassCollector heads_;
  std::int64_t num_heads_;
  HeadJoin head_join_;
  TableScorer::Table table_;
};

}  // namespace chunkllm
