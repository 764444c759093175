// Copyright 2026 The chunkllm authors. SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "chunkllm/chunk/attended_set.hpp"
#include "chunkllm/chunk/chunk_options.hpp"
#include "chunkllm/chunk/chunk_scorer.hpp"
#include "chunkllm/chunk/chunk_selector.hpp"
#include "chunkllm/chunk/chunk_table.hpp"
#include "chunkllm/chunk/layer_scores.hpp"
#include "chunkllm/chunk/layer_state.hpp"
#include "chunkllm/chunk/score_chunks.hpp"
#include "chunkllm/core/thread_pool.hpp"

namespace chunkllm {

/// Chooses the sets of pending triggers and appends them to the layers' histories.
///
/// A view of a `ChunkState`'s parts, made for each use.
template <ChunkScorer Scorer>
class SetChooser {
 public:
  /// \param log_lengths  [table.num_chunks()]
  /// \param step_first   token of row 0 of the rows that the layers see
  SetChooser(const Scorer& scorer, const ChunkOptions& options, const ChunkTable& table,
             const std::vector<float>& log_lengths, std::int64_t step_first)
      : scorer_(scorer),
        options_(options),
        table_(table),
        log_lengths_(log_lengths),
        step_first_(step_first) {}

  /// A set for each pending trigger of a layer, by the layer's own scores.
  ///
  /// \return how many scores were NaN
  std::int64_t by_layer(LayerState& state, ThreadPool& pool) const {
    std::vector<SetRecord> chosen(state.pending.size());
    pool.parallel_for(static_cast<std::int64_t>(chosen.size()), [&](std::int64_t i, int) {
      const PendingRefresh& pending = state.pending[static_cast<std::size_t>(i)];
      SetRecord& record = chosen[static_cast<std::size_t>(i)];
      record.trigger = pending.trigger;
      record.effective = pending.effective;
      const CandidateRange range = candidate_range(table_, pending.trigger, options_);
      if (budget_holds_all(range, pending.trigger, options_.budget)) return;
      choose(record, range, scores(state, pending, range));
    });
    std::int64_t num_nan = 0;
    for (SetRecord& record : chosen) {
      num_nan += record.num_nan;
      state.history.push_back(std::move(record));
    }
    state.pending.clear();
    return num_nan;
  }

  /// One set for all layers by their joined scores, in effect behind the trigger, which is pending
  /// in each of them.
  ///
  /// \return how many joined scores were NaN
  std::int64_t together(std::span<LayerState> layers, std::int64_t trigger,
                        ThreadPool& pool) const {
    SetRecord record;
    record.trigger = trigger;
    record.effective = trigger + 1;
    const CandidateRange range = candidate_range(table_, trigger, options_);
    if (!budget_holds_all(range, trigger, options_.budget)) {
      std::vector<std::vector<float>> by_layer(layers.size());
      pool.parallel_for(static_cast<std::int64_t>(layers.size()), [&](std::int64_t l, int) {
        const LayerState& layer = layers[static_cast<std::size_t>(l)];
        if (!layer.selectable) return;
        const auto pending =
            std::find_if(layer.pending.begin(), layer.pending.end(),
                         [&](const PendingRefresh& p) { return p.trigger == trigger; });
        assert(pending != layer.pending.end());
        by_layer[static_cast<std::size_t>(l)] = scores(layer, *pending, range);
      });
      std::erase_if(by_layer, [](const std::vector<float>& s) { return s.empty(); });
      choose(record, range,
             join_layers(by_layer, options_.selection, table_, range, trigger, options_.budget,
                         options_.threshold));
    }
    const std::int64_t num_nan = record.num_nan;
    for (LayerState& layer : layers) {
      layer.pending.clear();
      if (!layer.selectable) continue;
      layer.history.push_back(record);
      record.num_nan = 0;  // counted once
    }
    return num_nan;
  }

 private:
  /// Scores of a trigger's candidates in one layer.
  [[nodiscard]] std::vector<float> scores(const LayerState& state, const PendingRefresh& pending,
                                          const CandidateRange& range) const {
    LayerRefresh refresh;
    refresh.layer = state.index;
    refresh.trigger = pending.trigger;
    refresh.row = state.row(pending.trigger - step_first_);
    refresh.range = range;
    refresh.table = &table_;
    refresh.keys = &state.keys;
    refresh.log_lengths = log_lengths_.data();
    refresh.maybe_open_key = pending.open_key.empty() ? nullptr : pending.open_key.data();
    refresh.open_length = pending.open_length;
    refresh.head_join = options_.head_join;
    return layer_scores(scorer_, refresh);
  }

  /// Fills a record's set with what scores and budget choose at its trigger.
  void choose(SetRecord& record, const CandidateRange& range,
              const std::vector<float>& candidate_scores) const {
    const ChunkOrder order(candidate_scores, options_.threshold);
    record.num_nan = order.num_nan();
    record.chunks = take_within_budget(table_, range, record.trigger, options_.budget, order);
    record.set = make_attended_set(table_, record.chunks, range.tail_begin);
  }

  const Scorer& scorer_;
  const ChunkOptions& options_;
  const ChunkTable& table_;
  const std::vector<float>& log_lengths_;
  std::int64_t step_first_;
};

}  // namespace chunkllm
